"""RT-DETR with a frozen foundation model (RADIO) in addition to its backbone, as in NVIDIA TAO.

RADIO gets the image at half the size. Its feature map is an additional level of the encoder with stride 64, which
reaches the decoder only through the fusion with the other levels. Its summary of the image is an additional query of
each decoder layer, which the other queries attend to and which predicts nothing.

RADIO's weights are loaded from `model.frozen_fm.checkpoint` whenever a detector is built. They are not part of its
state dict, so checkpoints do not become larger.

Shape legend: B batch, H, W input size, C channels of RADIO, S its summary, Q queries, D hidden_dim of the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetr_tool.checkpoints.loading import load_into
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rtdetr.model.decoder import RTDETRDecoder, TransformerDecoder
from rtdetr_tool.families.rtdetr.model.detector import RTDETR
from rtdetr_tool.families.rtdetr.model.radio import RadioOutput, RadioViT, radio_weights
from rtdetr_tool.models.backbones.base import ImageBackbone
from rtdetr_tool.models.decoder_layer import DecoderLayer
from rtdetr_tool.models.hybrid_encoder import EncoderOutput, HybridEncoder
from rtdetr_tool.ops.deformable import Memory, Shapes
from rtdetr_tool.ops.layers import modules_of_type
from rtdetr_tool.ops.structures import Predictions, Target

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
FILE_PREFIX = "frozen_radio."  # RADIO's tensors in TAO's detector checkpoints


class FoundationRTDETR(RTDETR):
    """An `RTDETR` with one more level in its encoder than in its backbone, for RADIO.

    Args:
        encoder: built for the channels of the backbone and then RADIO; returns the backbone's number of levels.
        decoder: the image query is added to its layers here.
    """

    static_batch = 1  # as exported by TAO; its engines and parsers expect this

    def __init__(
        self, backbone: ImageBackbone, encoder: HybridEncoder, decoder: RTDETRDecoder, frozen_radio: FrozenRadio
    ) -> None:
        super().__init__(backbone, encoder, decoder)
        plain = decoder.decoder
        layers = modules_of_type(plain.layers, DecoderLayer)
        decoder.decoder = ImageQueryDecoder(layers, plain.eval_idx, frozen_radio.summary_dim, decoder.hidden_dim)
        self.frozen_radio = frozen_radio

    def forward(self, images: Tensor, targets: Sequence[Target] | None = None) -> Predictions:
        """As `RTDETR.forward`."""
        radio: RadioOutput = self.frozen_radio(images)
        predictions: Predictions = self.decoder(self._maps(images, radio), targets, radio.summary)
        return predictions

    def features(self, images: Tensor) -> list[Tensor]:
        return self._maps(images, self.frozen_radio(images))

    def _maps(self, images: Tensor, radio: RadioOutput) -> list[Tensor]:
        fused: EncoderOutput = self.encoder([*self.backbone(images), radio.spatial])
        return fused.maps

    def load_frozen(self, weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Load RADIO's tensors if a detector's file has some (as TAO's), and return the other tensors.

        Raises:
            CheckpointError: RADIO has no weights, neither from this file nor from before.
        """
        frozen = {name: tensor for name, tensor in weights.items() if name.startswith(FILE_PREFIX)}
        if frozen:
            self.frozen_radio.load(frozen, source)
        self.frozen_radio.check_loaded()
        return {name: tensor for name, tensor in weights.items() if name not in frozen}


class FrozenRadio(nn.Module):
    """RADIO's features of images; never trained, always in eval mode, without gradients.

    The transformer is not in the module tree: it is moved and copied with this module, but code that iterates over
    modules, parameters or the state dict (train, freeze, optimizers, EMA, DDP, checkpoints) does not see it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vit: RadioViT) -> None:
        super().__init__()
        self._hidden = (vit.eval().requires_grad_(False),)
        self.width, self.summary_dim, self.summary_tokens = vit.width, vit.summary_dim, vit.summary_tokens
        self.loaded_from: str | None = None
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)

    @property
    def vit(self) -> RadioViT:
        return self._hidden[0]

    @torch.no_grad()
    def forward(self, images: Tensor) -> RadioOutput:
        """images [B, 3, H, W] 0..1, sides multiples of 32 -> summary [B, S], spatial [B, C, H / 64, W / 64].

        Odd sizes are rounded up, as the encoder's strided convolutions do.
        """
        self.check_loaded()
        if self.vit.patch_generator.pos_embed.device != images.device:  # FSDP only moves registered modules
            self.vit.to(images.device)
        half = (images[..., ::2, ::2] - self.mean) / self.std
        summary, spatial = self.vit(half)
        return RadioOutput(summary, F.max_pool2d(spatial, 2, ceil_mode=True))

    def check_loaded(self) -> None:
        if self.loaded_from is None:
            raise CheckpointError(
                "The frozen foundation model has no weights, because checkpoints of this tool do not include them. Set "
                "model.frozen_fm.checkpoint to their file."
            )

    def load(self, state_dict: Mapping[str, Tensor], source: str) -> None:
        """Load RADIO's weights as published, from TAO's files, or in half precision; all must match.

        Raises:
            CheckpointError: the weights are those of another model or do not match.
        """
        weights = radio_weights(state_dict, source)
        if any(tensor.is_meta for tensor in self.vit.parameters()):
            self.vit.to_empty(device=self.mean.device)
        load_into(self.vit, weights, source=source, what="foundation model")
        self.loaded_from = source

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Called by `to`, `cuda`, `float` and similar methods; without weights there is nothing to move."""
        if self.loaded_from is not None:
            self.vit._apply(fn)  # type: ignore[no-untyped-call]  # not annotated in torch
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # not annotated in torch


class ImageQueryDecoder(TransformerDecoder):
    """Adds a query to each layer, computed from RADIO's summary, with the whole image as its box."""

    whole_image: Tensor

    def __init__(self, layers: Iterable[DecoderLayer], eval_idx: int, summary_dim: int, hidden_dim: int) -> None:
        super().__init__(layers, eval_idx)
        self.image_query_proj = nn.ModuleList(nn.Linear(summary_dim, hidden_dim) for _ in self.layers)
        self.image_query_norm = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in self.layers)
        self.register_buffer("whole_image", torch.tensor([[[0.5, 0.5, 1.0, 1.0]]]), persistent=False)  # cxcywh 0..1

    def attend(
        self,
        index: int,
        content: Tensor,
        reference: Tensor,
        memory: Memory,
        shapes: Shapes,
        query_pos_head: nn.Module,
        attention_mask: Tensor | None,
        summary: Tensor | None,
    ) -> Tensor:
        query = self.image_query_norm[index](self.image_query_proj[index](summary))[:, None]  # [B, 1, D]
        whole = self.whole_image.expand(len(content), -1, -1)
        content = super().attend(
            index,
            torch.cat([content, query.to(content.dtype)], dim=1),
            torch.cat([reference, whole.to(reference.dtype)], dim=1),
            memory,
            shapes,
            query_pos_head,
            None if attention_mask is None else with_image_query(attention_mask),
            summary,
        )
        return content[:, :-1]


def with_image_query(attention_mask: Tensor) -> Tensor:
    """Add a row and a column: all queries see the image query, which sees the same as the last (matching) query."""
    wider = F.pad(attention_mask, (0, 1))
    return torch.cat([wider, wider[-1:]])

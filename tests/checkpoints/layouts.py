"""Names and shapes of tensors in the files of other programs, with random weights.

All names and shapes are equal to those of the state dicts of the official RT-DETR (v1 and v2, commit 068dfde, R18, R50)
and of NVIDIA TAO's RTDETRModel (tao_pytorch_backend 6.25.10, resnet_18, resnet_50).
"""

from __future__ import annotations

import re
from itertools import pairwise

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def random_weights(shapes: Shapes) -> dict[str, Tensor]:
    """Tensors with which every part of a network has an effect, and no output overflows."""
    torch.manual_seed(0)
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(1)
        elif name.endswith("num_points_scale"):
            weights[name] = torch.full(shape, 3 / shape[0])
        elif name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):  # norms
            weights[name] = torch.rand(shape) + 0.5
        else:
            fan_in = torch.Size(shape[1:]).numel() if len(shape) > 1 else 100
            weights[name] = torch.randn(shape) * fan_in**-0.5
    return weights


def official_shapes(
    version: int, depth: int = 18, classes: int = 80, width: int = 256, inner: int = 1024, layers: int = 3,
    expansion: float = 0.5,
) -> Shapes:  # fmt: skip
    """Names and shapes of the official RT-DETR with a ResNet-d."""
    shapes = {f"backbone.{name}": shape for name, shape in _presnet(depth).items()}
    shapes |= _neck(depth, classes, width, inner, layers, expansion)
    if version == 2:
        shapes = {_in_version_2(name): shape for name, shape in shapes.items()}
        shapes |= {f"decoder.decoder.layers.{i}.cross_attn.num_points_scale": (12,) for i in range(layers)}
        shapes |= {"decoder.anchors": (1, 8400, 4), "decoder.valid_mask": (1, 8400, 1)}
    return shapes


def tao_shapes(
    depth: int = 18, classes: int = 80, width: int = 256, inner: int = 1024, layers: int = 6, expansion: float = 1.0
) -> Shapes:
    """Names and shapes of NVIDIA TAO's RT-DETR with a plain ResNet; the backbone's norms have no batch counters."""
    backbone = {name: shape for name, shape in _timm_resnet(depth).items() if not name.endswith("batches_tracked")}
    shapes = {f"backbone.{name}": shape for name, shape in backbone.items()}
    shapes |= _neck(depth, classes, width, inner, layers, expansion)
    return {f"model.model.{name}": shape for name, shape in shapes.items()}


def _norm(name: str, width: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{part}": (width,) for part in parts}, f"{name}.num_batches_tracked": ()}


def _conv_norm(name: str, outputs: int, inputs: int, kernel: int, conv: str = "conv", norm: str = "norm") -> Shapes:
    return {f"{name}.{conv}.weight": (outputs, inputs, kernel, kernel), **_norm(f"{name}.{norm}", outputs)}


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _layer_norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _mlp(name: str, sizes: tuple[int, ...]) -> Shapes:
    return {
        key: shape
        for index, (inputs, outputs) in enumerate(pairwise(sizes))
        for key, shape in _linear(f"{name}.layers.{index}", outputs, inputs).items()
    }


def _attention(name: str, width: int) -> Shapes:
    joined = {f"{name}.in_proj_weight": (3 * width, width), f"{name}.in_proj_bias": (3 * width,)}
    return {**joined, **_linear(f"{name}.out_proj", width, width)}


def _presnet(depth: int) -> Shapes:
    factor, shapes = 1 if depth < 50 else 4, {}
    for index, (outputs, inputs) in enumerate(((32, 3), (32, 32), (64, 32)), 1):
        shapes |= _conv_norm(f"conv1.conv1_{index}", outputs, inputs, 3)
    inputs = 64
    for stage, blocks in enumerate(BLOCKS[depth]):
        width = 64 * 2**stage
        for block in range(blocks):
            name = f"res_layers.{stage}.blocks.{block}"
            if block == 0:
                shapes |= _conv_norm(f"{name}.short{'.conv' if stage else ''}", width * factor, inputs, 1)
            kernels = (3, 3) if depth < 50 else (1, 3, 1)
            for letter, kernel in zip("abc", kernels, strict=False):
                first, last = letter == "a", letter == "c"
                shapes |= _conv_norm(
                    f"{name}.branch2{letter}", width * factor if last else width, inputs if first else width, kernel
                )
            inputs = width * factor
    return shapes


def _timm_resnet(depth: int) -> Shapes:
    factor = 1 if depth < 50 else 4
    shapes = {"conv1.weight": (64, 3, 7, 7), **_norm("bn1", 64)}
    inputs = 64
    for stage, blocks in enumerate(BLOCKS[depth]):
        width = 64 * 2**stage
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            kernels = (3, 3) if depth < 50 else (1, 3, 1)
            for number, kernel in enumerate(kernels, 1):
                outputs = width * factor if number == 3 else width
                shapes |= {f"{name}.conv{number}.weight": (outputs, inputs if number == 1 else width, kernel, kernel)}
                shapes |= _norm(f"{name}.bn{number}", outputs)
            if block == 0 and (stage or factor > 1):
                shapes |= _conv_norm(f"{name}.downsample", width * factor, inputs, 1, "0", "1")
            inputs = width * factor
    return shapes


def _neck(depth: int, classes: int, width: int, inner: int, layers: int, expansion: float) -> Shapes:
    shapes: Shapes = {}
    for level in range(3):
        channels = 128 * 2**level * (1 if depth < 50 else 4)
        shapes |= _conv_norm(f"encoder.input_proj.{level}", width, channels, 1, "0", "1")
        shapes |= _conv_norm(f"decoder.input_proj.{level}", width, width, 1)
    name = "encoder.encoder.0.layers.0"
    shapes |= {**_attention(f"{name}.self_attn", width), **_linear(f"{name}.linear1", inner, width)}
    shapes |= {**_linear(f"{name}.linear2", width, inner)}
    shapes |= {**_layer_norm(f"{name}.norm1", width), **_layer_norm(f"{name}.norm2", width)}
    for step in range(2):
        shapes |= _conv_norm(f"encoder.lateral_convs.{step}", width, width, 1)
        shapes |= _conv_norm(f"encoder.downsample_convs.{step}", width, width, 3)
        for blocks in ("fpn_blocks", "pan_blocks"):
            shapes |= _fusion(f"encoder.{blocks}.{step}", width, int(width * expansion))
    for layer in range(layers):
        shapes |= _decoder_layer(f"decoder.decoder.layers.{layer}", width, inner)
        shapes |= _linear(f"decoder.dec_score_head.{layer}", classes, width)
        shapes |= _mlp(f"decoder.dec_bbox_head.{layer}", (width, width, width, 4))
    shapes |= {"decoder.denoising_class_embed.weight": (classes + 1, width)}
    shapes |= _mlp("decoder.query_pos_head", (4, 2 * width, width))
    shapes |= {**_linear("decoder.enc_output.0", width, width), **_layer_norm("decoder.enc_output.1", width)}
    shapes |= _linear("decoder.enc_score_head", classes, width)
    return shapes | _mlp("decoder.enc_bbox_head", (width, width, width, 4))


def _fusion(name: str, width: int, inside: int) -> Shapes:
    shapes = {**_conv_norm(f"{name}.conv1", inside, 2 * width, 1), **_conv_norm(f"{name}.conv2", inside, 2 * width, 1)}
    for block in range(3):
        shapes |= _conv_norm(f"{name}.bottlenecks.{block}.conv1", inside, inside, 3)
        shapes |= _conv_norm(f"{name}.bottlenecks.{block}.conv2", inside, inside, 1)
    return shapes if inside == width else shapes | _conv_norm(f"{name}.conv3", width, inside, 1)


def _decoder_layer(name: str, width: int, inner: int) -> Shapes:
    shapes = _attention(f"{name}.self_attn", width)
    samples = 8 * 3 * 4  # heads, levels, points
    shapes |= _linear(f"{name}.cross_attn.sampling_offsets", 2 * samples, width)
    shapes |= _linear(f"{name}.cross_attn.attention_weights", samples, width)
    shapes |= _linear(f"{name}.cross_attn.value_proj", width, width)
    shapes |= _linear(f"{name}.cross_attn.output_proj", width, width)
    shapes |= {**_linear(f"{name}.linear1", inner, width), **_linear(f"{name}.linear2", width, inner)}
    for number in (1, 2, 3):
        shapes |= _layer_norm(f"{name}.norm{number}", width)
    return shapes


def _in_version_2(name: str) -> str:
    name = name.replace("enc_output.0.", "enc_output.proj.").replace("enc_output.1.", "enc_output.norm.")
    name = re.sub(r"^(encoder\.input_proj\.\d)\.0\.", r"\1.conv.", name)
    return re.sub(r"^(encoder\.input_proj\.\d)\.1\.", r"\1.norm.", name)

"""Our RADIO against timm's with the same random weights, at several sizes.

timm has the architecture of later versions (C-RADIOv3), which equals version 2 without layer scales.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rtdetr_tool.families.rtdetr.model.radio import RadioViT

naflexvit = pytest.importorskip("timm.models.naflexvit")
if "pos_embed_align_corners" not in {entry.name for entry in dataclasses.fields(naflexvit.NaFlexVitCfg)}:
    pytest.skip("this version of timm has no RADIO models", allow_module_level=True)

WIDTH, DEPTH, HEADS, GRID = 32, 3, 4, 12


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    reference = naflexvit.NaFlexVit(
        naflexvit.NaFlexVitCfg(
            embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, class_token=True, reg_tokens=7, final_norm=False,
            global_pool="token", pos_embed_grid_size=(GRID, GRID), pos_embed_interp_mode="bilinear",
            pos_embed_ar_preserving=True, pos_embed_antialias=False, pos_embed_align_corners=True,
            patchify_channels_last=False,
        ),
        num_classes=0,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        reference.embeds.proj.bias.zero_()  # RADIO's patch embedding has none
    ours = RadioViT(WIDTH, DEPTH, HEADS, grid=GRID).eval()
    state = reference.state_dict()
    ours.load_state_dict(
        {name: tensor for name, tensor in state.items() if name.startswith("blocks.")}
        | {
            "patch_generator.embedder.weight": state["embeds.proj.weight"].reshape(WIDTH, -1),
            "patch_generator.pos_embed": state["embeds.pos_embed"].reshape(1, GRID * GRID, WIDTH),
            "patch_generator.cls_token.token": torch.cat([state["embeds.cls_token"], state["embeds.reg_token"]], 1)[0],
        }
    )
    return reference, ours


@pytest.mark.parametrize("size", [(192, 192), (64, 64), (96, 160), (256, 48)])
def test_summary_and_places_are_equal(pair, size):
    reference, ours = pair
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens = reference.forward_features(images)
        tokens = tokens["patches"] if isinstance(tokens, dict) else tokens
        result = ours(images)
    difference = max(
        (result.summary - tokens[:, :3].flatten(1)).abs().max().item(),
        (result.spatial.flatten(2).transpose(1, 2) - tokens[:, 8:]).abs().max().item(),
    )
    print(f"largest difference of RADIO's features: {difference:.1e}")
    assert result.spatial.shape == (2, WIDTH, size[0] // 16, size[1] // 16)
    assert difference < 1e-4
    assert tokens[:, 8:].std() > 0.1

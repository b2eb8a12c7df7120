"""D-FINE's recipe follows its variant, and freezes the backbone of large variants that start from weights."""

from __future__ import annotations

import pytest

from rtdetr_tool.spec import spec_from_dict
from rtdetr_tool.spec.recipe import recipe_line
from rtdetr_tool.training.freezing import resolve_freezing


def spec_of(variant: str, **train):
    return spec_from_dict({"model": {"arch": "dfine", "dfine": {"variant": variant}}, "train": train})


@pytest.mark.parametrize(  # the official configurations for COCO
    ("variant", "epochs", "lr", "lr_backbone", "decay", "repeats"),
    [
        ("n", 160, 8e-4, 4e-4, 1e-4, 0),
        ("s", 132, 2e-4, 1e-4, 1e-4, 20),
        ("m", 132, 2e-4, 2e-5, 1e-4, 6),
        ("l", 80, 2.5e-4, 1.25e-5, 1.25e-4, 4),
        ("x", 80, 2.5e-4, 2.5e-6, 1.25e-4, 3),
    ],
)
def test_unset_fields_have_the_values_of_the_variant(variant, epochs, lr, lr_backbone, decay, repeats):
    spec = spec_of(variant)
    optim, scales = spec.train.optim, spec.dataset.augmentation.multi_scales
    assert (spec.train.num_epochs, optim.lr, optim.lr_backbone, optim.weight_decay) == (epochs, lr, lr_backbone, decay)
    assert scales.count(640) == repeats and len(scales) == (repeats + 10 if repeats else 0)
    assert (spec.train.enable_ema, spec.train.ema.decay, spec.train.ema.tau) == (True, 0.9999, 1000.0)
    assert recipe_line(spec) == "Training recipe: D-FINE, the official configurations for COCO"


def test_set_fields_take_precedence_and_are_named():
    spec = spec_of("n", num_epochs=3)
    assert spec.train.num_epochs == 3
    assert recipe_line(spec).endswith("with train.num_epochs 3 instead of 160")


@pytest.mark.parametrize("variant", "nsmlx")
@pytest.mark.parametrize("start", [None, "/weights.pth"])
def test_stem_and_norms_of_large_variants_are_frozen_when_they_start_from_weights(variant, start):
    section = resolve_freezing(spec_of(variant, **({"pretrained_model_path": start} if start else {}))).model.dfine
    frozen = variant in "lx" and start is not None
    assert (section.freeze_norm, section.freeze_at) == (frozen, 0 if frozen else -1)

"""Names of transformers that several families share: those in memory, those in files, layers that do not predict."""

from __future__ import annotations

import pytest
import torch

from rtdetr_tool.checkpoints.renames import split_by_prefix
from rtdetr_tool.checkpoints.transformers_names import (
    FeedForwardNames,
    as_in_files,
    decoder_layers,
    encoder_layers,
    from_names_of_transformers,
    to_names_of_transformers,
    without_unused_layers,
)

SHARES = ".n_points_scale"


@pytest.mark.parametrize(
    "feed_forward", [FeedForwardNames("mlp.fc1.", "mlp.fc2."), FeedForwardNames("mlp.layers.0.", "mlp.layers.1.")]
)
def test_names_in_memory_and_in_files_have_the_same_counterparts(feed_forward):
    table = (*encoder_layers(feed_forward), *decoder_layers(feed_forward))
    ours = {
        "encoder.encoder.0.layers.0.linear2.weight": torch.rand(2, 2),
        "decoder.decoder.layers.1.linear1.bias": torch.rand(2),
        "decoder.decoder.layers.1.self_attn.out_proj.weight": torch.rand(2, 2),
        "decoder.decoder.layers.1.self_attn.in_proj_weight": torch.rand(6, 2),
    }
    in_memory = to_names_of_transformers(ours, table, SHARES, torch.full((4,), 0.25))
    in_files = as_in_files(in_memory, feed_forward)
    assert f"model.encoder.aifi.0.layers.0.{feed_forward.second}weight" in in_memory
    assert "model.encoder.encoder.0.layers.0.fc2.weight" in in_files
    assert "model.decoder.layers.1.self_attn.o_proj.weight" in in_memory
    assert "model.decoder.layers.1.self_attn.out_proj.weight" in in_files
    assert f"model.decoder.layers.1.encoder_attn{SHARES}" in in_files
    for names in (in_memory, in_files):
        back = from_names_of_transformers(names, table, feed_forward, (SHARES,))
        assert back.keys() == ours.keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in ours.items())


def test_layers_after_the_predicting_one_are_dropped_with_a_note():
    weights = {f"decoder.layers.{index}.norm": torch.ones(1) for index in range(12)} | {"encoder.norm": torch.ones(1)}
    kept, used, notes = without_unused_layers(weights, 12, 1, ("decoder.layers.",), "model")
    assert kept.keys() == {"decoder.layers.0.norm", "decoder.layers.1.norm", "encoder.norm"}
    assert used == 2 and notes == ["skipped decoder layers 2 to 11, which model.eval_idx does not use"]
    assert without_unused_layers(weights, 12, -1, ("decoder.layers.",), "model") == (weights, 12, [])


def test_split_by_prefix_only_removes_the_prefix_of_the_part():
    part, remaining = split_by_prefix({"backbone.backbone.x": 1, "encoder.backbone.x": 2}, "backbone.")
    assert part == {"backbone.x": 1} and remaining == {"encoder.backbone.x": 2}

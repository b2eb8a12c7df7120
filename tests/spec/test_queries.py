"""Tests of rtdetr_tool.spec.queries: queries over the declarations of fields, as used by other modules."""

from __future__ import annotations

import pytest

from rtdetr_tool.families import FAMILIES
from rtdetr_tool.spec import queries, read_spec
from rtdetr_tool.spec.schema import walk_fields


def test_a_section_passes_its_family_on_to_its_fields():
    assert queries.family_of("model.frozen_fm.checkpoint") == "rtdetr"
    assert queries.family_of("model.rfdetr.variant") == "rfdetr"
    assert queries.family_of("distill.teacher.num_points") == "rtdetr"
    assert queries.family_of("model.num_select") is None


def test_every_declared_family_exists():
    assert {entry.metadata["family"] for _, entry, _ in walk_fields()} == {None, *FAMILIES}


@pytest.mark.parametrize("section", ["model", "distill.teacher"])
def test_a_field_of_another_family_is_noted_for_model_and_teacher(section):
    overrides = [f"{section}.arch=rfdetr", f"{section}.dec_layers=2", f"{section}.rfdetr.dec_layers=2"]
    notes = read_spec(None, [*overrides, "distill.pretrained_teacher_model_path=x.pth"]).notes
    assert notes == [f"{section}.dec_layers has no effect: {section}.arch rfdetr does not use it"]


def test_what_no_tensor_shows_belongs_to_the_family():
    assert "nheads" in queries.fields_not_in_weights("rtdetr")
    assert queries.fields_not_in_weights("rfdetr") == ()


def test_reasons_cannot_be_changed_by_those_who_ask():
    with pytest.raises(TypeError):
        queries.reasons("unused")["model.backbone"] = "because"


def test_an_unused_field_of_the_teacher_is_noted():
    notes = read_spec(None, ["distill.teacher.clip_max_norm=1", "distill.pretrained_teacher_model_path=x.pth"]).notes
    assert notes == ["distill.teacher.clip_max_norm has no effect: gradients are clipped by train.clip_grad_norm"]


def test_the_declarations_are_read_once_for_the_families_of_all_fields(monkeypatch) -> None:
    walks = []
    monkeypatch.setattr(queries, "walk_fields", lambda: walks.append(1) or walk_fields())
    for function in (queries.family_of, queries.fields_of_other_families, queries._declared_families):
        function.cache_clear()
    assert "model.rfdetr.patch_size" in queries.fields_of_other_families("rtdetr")
    assert len(walks) == 2  # one for the names, one for the families

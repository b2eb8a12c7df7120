"""The `model` section: the shared fields, and those that each family declares.

A family's fields are in its own section, or directly in `model` (RT-DETR's, as in TAO's specs). Both come from the
table of families; this module names none of them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, make_dataclass
from typing import TYPE_CHECKING, Any, cast, get_type_hints

from rtdetr_tool.families import DEFAULT_FAMILY, FAMILIES, all_families, family_named
from rtdetr_tool.families.base import Family, KeypointLayout
from rtdetr_tool.spec.backbone_lora import BackboneLoraSpec
from rtdetr_tool.spec.fields import INF, Recorded, field


def _arch_help() -> str:
    parts = [f"{family.name}: {family.title}" for family in all_families()]
    sections = [f"model.{family.section}" for family in all_families() if family.section]
    return f"Model family. {'; '.join(parts)}. Only the fields of one family apply; {', '.join(sections)} are sections."


@dataclass(frozen=True)
class SharedModelSpec:
    """Architecture of the detector, and weights of matching and losses."""

    pretrained_backbone_path: str | None = field(
        None,
        "Weights of the backbone: a file, or `timm` (or `timm/<tag>`) for weights from timm. Ignored if "
        "train.pretrained_model_path is set.",
        path="read",
    )
    train_backbone: bool = field(
        True, "Train the backbone; false = freeze its weights and statistics.", parameter_groups=True
    )
    backbone_lora: BackboneLoraSpec = field(
        BackboneLoraSpec, "Train low-rank adapters of the backbone instead of its weights."
    )
    load_teacher_enc_dec: bool = field(
        False, "distill: initialize encoder and decoder from the tensors of the teacher that have the same shape."
    )
    num_select: int = field(
        300,
        "Detections per image: the (query, class) pairs with the best scores. At most num_queries * num_classes exist.",
        min=1,
        automl=True,
        recorded=Recorded("how many detections are kept per image", "warned", "warned", only_fewer=True),
    )
    bbox_loss_coef: float = field(
        5.0,
        "Weight of the L1 box loss.",
        min=0.0,
        max=INF,
        unlimited=True,
    )
    giou_loss_coef: float = field(
        2.0,
        "Weight of the generalized IoU loss.",
        min=0.0,
        max=INF,
        unlimited=True,
    )
    class_cost: float = field(
        2.0, "Weight of the class term in the matching of queries and objects.", min=0.0, max=INF, unlimited=True
    )
    bbox_cost: float = field(
        5.0,
        "Weight of the L1 box term in the matching.",
        min=0.0,
        max=INF,
        unlimited=True,
    )
    giou_cost: float = field(
        2.0, "Weight of the generalized IoU term in the matching.", min=0.0, max=INF, unlimited=True
    )
    clip_max_norm: float = field(
        0.1,
        "Accepted for old specs; gradients are clipped by train.clip_grad_norm.",
        unused="gradients are clipped by train.clip_grad_norm",
    )
    aux_loss: bool = field(True, "Compute losses for all decoder layers and the encoder, not only for the last layer.")
    backbone_names: list[str] = field(
        ["backbone.0"],
        "Accepted for old specs; the backbone is known without a name pattern.",
        unused="the backbone's parameters are known without a name pattern",
    )
    linear_proj_names: list[str] = field(
        ["reference_points", "sampling_offsets"],
        "Parameters with one of these strings in their name have the learning rate lr * "
        "train.optim.lr_linear_proj_mult.",
        parameter_groups=True,
    )
    distillation_loss_coef: float = field(
        1.0, "distill: weight of the sum of all binding losses.", min=0.0, unlimited=True
    )
    precise_msda: bool = field(
        False,
        "Deformable attention on a GPU with operators whose gradients are the same in every run, instead of the faster "
        "kernels that add them up in any order. On a CPU they always are. Combine with train.cudnn.deterministic.",
    )
    num_channels: int = field(
        3,
        "Channels of the images: 3 = RGB; 1 = gray; 4 = RGB with transparency; any other number for multispectral "
        "images (docs/datasets.md). With other numbers than 3, every image must have exactly this number.",
        min=1,
        max=512,
        origin="ours",
        architecture=True,
        size="breadth",
    )
    arch: str = field(DEFAULT_FAMILY, _arch_help(), options=tuple(FAMILIES), origin="ours", architecture=True)

    @property
    def kind(self) -> str:
        """The name of the model in messages and file names: `rtdetr-resnet_50`, `rfdetr-nano`."""
        return f"{self.arch}-{self.family.variant(self._whole)}"

    @property
    def _whole(self) -> ModelSpec:
        """Cast to the complete section with the fields of all families; there are no other instances."""
        return cast("ModelSpec", self)

    @property
    def family(self) -> Family:
        return family_named(self.arch)

    @property
    def size_multiple(self) -> int:
        """Height and width of every image must be multiples of this."""
        return self.family.size_multiple(self._whole)

    @property
    def query_count(self) -> int:
        """The number of objects that the model can detect per image."""
        return self.family.query_count(self._whole)

    @property
    def keypoints(self) -> KeypointLayout:
        """The keypoints that the model predicts."""
        return self.family.keypoints(self._whole)

    @property
    def predicts(self) -> str:
        """What the model predicts for each object and needs in the data, one of `catalog.PREDICTS`."""
        return self.family.predicts(self._whole)


def _fields_of_families() -> list[tuple[str, Any, Any]]:
    """(name, type, field) of the fields that families add."""
    fields: list[tuple[str, Any, Any]] = []
    for family in all_families():
        if family.fields_type is not None:
            hints = get_type_hints(family.fields_type)
            fields += [
                (entry.name, hints[entry.name], _of_family(entry, family.name))
                for entry in dataclasses.fields(family.fields_type)
            ]
        if family.section is not None and family.section_type is not None:
            text = f"{family.title}; only read with arch {family.name}."
            fields.append((family.section, family.section_type, field(family.section_type, text, family=family.name)))
    return fields


def _of_family(entry: dataclasses.Field[Any], family: str) -> Any:
    """A copy of a declaration that belongs to a family."""
    metadata = {**entry.metadata, "family": family}
    if entry.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=entry.default_factory, metadata=metadata)
    return dataclasses.field(default=entry.default, metadata=metadata)


if TYPE_CHECKING:

    class ModelSpec(SharedModelSpec):
        """The shared fields and those of all families, which families access through their own types."""

        def __init__(self, **fields: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

else:
    ModelSpec = make_dataclass(
        "ModelSpec",
        _fields_of_families(),
        bases=(SharedModelSpec,),
        frozen=True,
        namespace={"__module__": __name__, "__doc__": SharedModelSpec.__doc__},
    )

"""The interface of a model family, implemented by `families/<name>/family.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from rtdetr_tool.catalog import BOXES
from rtdetr_tool.families.keywords import Keyword
from rtdetr_tool.spec.fields import Recorded

if TYPE_CHECKING:
    from rtdetr_tool.spec.model import ModelSpec

# Declared with the field that is a model's number of queries.
QUERY_COUNT = Recorded("how many objects can be detected per image", weights="warned")
SIZE_FIELDS = ("train_spatial_size", "eval_spatial_size", "multi_scales")  # of `dataset.augmentation`


class OutsideWeights(NamedTuple):
    """Weights that a model requires in addition to its checkpoint."""

    field: str  # of `model`; names their file
    path: str | None
    what: str  # for messages, such as "the frozen foundation model"
    name: str  # under which they are published


class SubField(NamedTuple):
    """The field of `model` with a number in which sub-detectors of the same weights differ."""

    name: str  # relative to `model`
    offset: int = 0  # of the field's value from the number: a decoder layer's index from how many there are


class KeypointLayout(NamedTuple):
    """The keypoints that a model predicts."""

    counts: tuple[int, ...] = ()  # by class index
    trace_alpha: float = 0.0  # how much uncertain keypoints reduce the score of their object


class Family(ABC):
    """A model family without its network; nothing here imports torch.

    Which fields a family reads, and which of them are part of its architecture, is declared with each field
    (`spec.queries`). Names of fields here are relative to `model`. Methods with a `model` take the whole section,
    because families share fields of it.
    """

    name: ClassVar[str]  # in `model.arch`
    title: ClassVar[str]  # in messages
    section: ClassVar[str | None] = None  # the section of `model` with the family's own fields
    section_type: ClassVar[type | None] = None
    fields_type: ClassVar[type | None] = None  # a dataclass whose fields are directly in `model`, instead of a section
    class_heads: ClassVar[tuple[str, ...]] = ()  # parts of names of tensors with one row per class, by our names
    class_embeddings: ClassVar[tuple[str, ...]] = ()  # the same with one row more, which belongs to no class
    # Fields that follow from the format of a file and make a difference only for images that are not square.
    orientation_fields: ClassVar[tuple[str, ...]] = ()
    image_sides: ClassVar[tuple[str, ...]] = ()  # fields with a side of images, from which image sizes follow
    # The training recipe: dotted field of the spec -> default for this family, where the schema's is another one's.
    recipe: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    recipe_source: ClassVar[str] = "the schema's defaults"  # where the recipe comes from, in messages
    # The section of `model` with the fields `freeze_norm` and `freeze_at`; "" = in `model`; None = there are none.
    freezing: ClassVar[str | None] = None
    # Choices of `train.supernet` that the weights allow in addition to the resolution -> their field.
    sub_fields: ClassVar[Mapping[str, SubField]] = MappingProxyType({})
    # Keywords of the Python API that another package has for models of this family.
    train_keywords: ClassVar[Mapping[str, Keyword]] = MappingProxyType({})
    deprecated_keywords: ClassVar[Mapping[str, str]] = MappingProxyType({})  # of `train`, ignored -> the reason
    model_keywords: ClassVar[Mapping[str, Keyword]] = MappingProxyType({})  # of constructors
    # One of `catalog.PREDICTS` besides boxes -> dotted fields that a new spec proposes for such data.
    proposals: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

    def module(self, name: str) -> ModuleType:
        """A module of the family's package: `build`, `weights`, `api`. This imports torch."""
        return import_module(f"{type(self).__module__.rpartition('.')[0]}.{name}")

    def recipe_of(self, section: Mapping[str, Any]) -> Mapping[str, Any]:
        """The training recipe for these unchecked values of the family's section; it always has the same fields."""
        return self.recipe

    def is_frozen_by_recipe(self, model: ModelSpec, start: str) -> bool:
        """Whether the reference recipe freezes the stem and all batch norms of the backbone.

        Args:
            start: what the run starts from, `catalog.FROM_BACKBONE` or `FROM_DETECTOR`.
        """
        return False

    @abstractmethod
    def variant(self, model: ModelSpec) -> str:
        """The name of the model within the family, for messages and file names."""

    @abstractmethod
    def problems(self, model: ModelSpec, name: str) -> Iterator[str]:
        """What the fields of `model` require of each other; `name` is the section's."""

    def problems_unused(self, model: ModelSpec, name: str) -> Iterator[str]:
        """Fields of the family's section that contradict the choice of another family."""
        yield from ()

    @abstractmethod
    def size_multiple(self, model: ModelSpec) -> int:
        """Height and width of every image must be multiples of this."""

    def default_sizes(self, section: Any, multi_scales: Sequence[Any] | None = None) -> dict[str, list[Any]]:
        """`SIZE_FIELDS` where the user gives none, from the family's section; {} keeps the schema's defaults.

        Args:
            multi_scales: the user's; None where they are not given.
        """
        return {}

    @abstractmethod
    def query_count(self, model: ModelSpec) -> int:
        """The number of objects that a model can detect per image."""

    def whole_detector(self, model: ModelSpec) -> dict[str, int]:
        """The numbers of `sub_fields` that the whole model has."""
        return {}

    def fixed_reason(self, model: ModelSpec, choice: str) -> str:
        """Why sub-detectors cannot differ in this choice of `train.supernet`; empty if they can."""
        return "" if choice in self.sub_fields else f"the weights of {self.title} have only one value of it"

    def sub_values(self, model: ModelSpec, numbers: Mapping[str, int], size: tuple[int, int]) -> dict[str, Any]:
        """Field of `model` -> value, where a sub-detector differs from the whole model.

        Args:
            numbers: of `sub_fields`; those that are not given are the whole model's.
            size: height and width of its input.
        """
        return {self.sub_fields[choice].name: n + self.sub_fields[choice].offset for choice, n in numbers.items()}

    def outside_weights(self, model: ModelSpec) -> OutsideWeights | None:
        """Weights of the model that are in no checkpoint, None if it has none."""
        return None

    def published_license(self, model: ModelSpec) -> str | None:
        """The license of the published weights of this architecture or its backbone, None if there are none."""
        return None

    def class_rows(self, classes: int) -> int:
        """The number of class logits for this number of classes, if `dataset.num_classes` is not set."""
        return classes

    @abstractmethod
    def has_background(self, names: Sequence[str | None] | None) -> bool:
        """Whether a class row means "no object", which some layouts of deployed files require.

        Args:
            names: of the class rows, None for a row without a class; None instead of the list if they are unknown.
        """

    def predicts(self, model: ModelSpec) -> str:
        """What the model predicts for each object and needs in the data, one of `catalog.PREDICTS`."""
        return BOXES

    def boxes_only(self, kind: str) -> str:
        """The spec fields to set for training boxes instead of `kind`, for messages."""
        return ""

    def keypoints(self, model: ModelSpec) -> KeypointLayout:
        """The keypoints that the model predicts."""
        return KeypointLayout()

    def has_keypoints_of_data(self, model: ModelSpec) -> bool:
        """Whether the numbers of keypoints are to be those of the training data."""
        return False

    def with_keypoint_counts(self, model: ModelSpec, counts: Sequence[int]) -> ModelSpec:
        """The section with these numbers of keypoints by class index."""
        return model

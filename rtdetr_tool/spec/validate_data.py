"""The `validate_data` section: check datasets before training on them."""

from __future__ import annotations

from dataclasses import dataclass

from rtdetr_tool.spec.fields import field


@dataclass(frozen=True)
class ValidateDataSpec:
    """Check the datasets of a spec before training on them."""

    results_dir: str | None = field(
        None,
        "Folder of this command's results; null = <results_dir>/validate_data.",
        origin="ours",
        path="results",
    )
    num_pictures: int = field(
        60, "Maximum number of images with findings that report.html shows.", min=0, max=10_000, origin="ours"
    )
    num_samples: int = field(
        24, "Number of sample images with their labels that report.html shows.", min=0, max=10_000, origin="ours"
    )
    num_augmented: int = field(
        16,
        "Number of training images that augmented.jpg shows after augmentation, with their labels; 0 = none.",
        min=0,
        max=400,
        origin="ours",
    )

"""The `dataset` section: sources and loading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rtdetr_tool.families import all_families
from rtdetr_tool.spec.augmentation import AugmentationSpec
from rtdetr_tool.spec.fields import INF, Recorded, field

TRAINING = ("train", "distill")  # the commands that train


def _one_more() -> str:
    names = [family.name for family in all_families() if family.class_rows(1) > 1]
    return f", plus one with model.arch {' or '.join(names)} (the last logit belongs to no class)" if names else ""


@dataclass(frozen=True)
class DatasetSpec:
    """Images, labels and how they are loaded."""

    dataset_dir: str | None = field(
        None,
        "Folder of a dataset with splits (COCO, Roboflow, YOLO or Pascal VOC), or the yaml file of a YOLO dataset. "
        "Each of train_, val_ and test_data_sources that is not set uses its split of this dataset.",
        origin="ours",
        commands=(*TRAINING, "evaluate", "validate_data", "benchmark"),
        path="read",
    )
    format: str = field(
        "auto",
        "Format of the folders in dataset_dir. auto = detected from their content and logged.",
        options=("auto", "coco", "roboflow", "yolo", "voc"),
        origin="ours",
        commands=(*TRAINING, "evaluate", "validate_data", "benchmark"),
    )
    train_data_sources: list[dict[str, str]] | None = field(
        None,
        "Training sets, each {image_dir, json_file}: a folder of images and a COCO annotation file; or each "
        "{dataset_dir, split}: a dataset folder and its split (without split, the folder is a dataset without splits).",
        commands=(*TRAINING, "export", "gen_trt_engine", "quantize", "validate_data"),
    )
    val_data_sources: dict[str, str] | None = field(
        None,
        "Validation set {image_dir, json_file} or {dataset_dir, split}.",
        commands=(*TRAINING, "export", "gen_trt_engine", "quantize", "validate_data", "benchmark"),
    )
    test_data_sources: dict[str, str] | None = field(
        None,
        "Test set {image_dir, json_file} or {dataset_dir, split}, used by evaluate.",
        commands=("evaluate", "validate_data", "benchmark"),
    )
    infer_data_sources: dict[str, Any] | None = field(
        None,
        "Images and videos for inference {image_dir, video, classmap}: a folder or a list of folders with images and "
        "videos; a video file, the URL of a stream, the index of a camera, or a list of them; and a text file with one "
        "class name per line (optional if the checkpoint has class names).",
        commands=("inference", "benchmark"),
    )
    quant_calibration_data_sources: dict[str, str] | None = field(
        None,
        "Calibration images for quantize {image_dir, json_file}; json_file is optional.",
        commands=("quantize",),
    )
    batch_size: int = field(
        4,
        "Images per step and device, in all commands. auto = training determines the largest size that fits, see "
        "train.effective_batch_size.",
        min=1,
        max=INF,
        names={"auto": 0},
        automl=True,
        commands=(*TRAINING, "evaluate", "inference", "quantize"),
    )
    eval_batch_size: int | None = field(
        None,
        "Images per step and device in validation and in evaluate; null = batch_size.",
        min=1,
        max=INF,
        origin="ours",
        commands=(*TRAINING, "evaluate"),
    )
    workers: int = field(
        8,
        "Loader processes per device; 0 = load in the main process.",
        min=0,
        max=INF,
        automl=True,
        commands=(*TRAINING, "evaluate", "inference", "quantize", "validate_data"),
    )
    remap_mscoco_category: bool = field(
        False,
        "Map the 80 category ids of COCO (1..90) to 0..79. Only for the original COCO files.",
        recorded=Recorded("which category each class index means"),
        commands=(*TRAINING, "validate_data"),
    )
    pin_memory: bool = field(
        True,
        "Load into page-locked memory for faster copies to a GPU.",
        commands=(*TRAINING, "evaluate", "inference", "quantize"),
    )
    dataset_type: str = field(
        "serialized",
        "serialized = records packed into memory that all workers share; default = Python objects, needs more memory.",
        options=("serialized", "default"),
        commands=(*TRAINING, "evaluate"),
    )
    num_classes: int | None = field(
        80,
        f"Number of class logits. null = the number of classes in the training data{_one_more()}; this is also the "
        "default with dataset_dir.",
        min=1,
        max=INF,
        architecture=True,
        recorded=Recorded("the number of class scores"),
        commands=(*TRAINING, "validate_data"),
    )
    eval_class_ids: list[int] | None = field(
        None, "Category ids to evaluate; null = all.", min=0, commands=(*TRAINING, "evaluate")
    )
    augmentation: AugmentationSpec = field(
        AugmentationSpec, "Sizes and training augmentation.", commands=(*TRAINING, "validate_data")
    )
    class_ids: str = field(
        "auto",
        "Mapping of category ids to class indices. raw: index = id; contiguous: categories in id order become 0, 1, 2,"
        " ...; auto: raw if every id is below num_classes, otherwise contiguous.",
        options=("auto", "raw", "contiguous"),
        origin="ours",
        recorded=Recorded("which category each class index means", "elsewhere", "elsewhere"),
        commands=(*TRAINING, "validate_data"),
    )
    cache: str = field(
        "none",
        "Keep decoded training images for the next epochs, shared by the workers. ram: in memory (/dev/shm); disk: in "
        "a temporary file (in TMPDIR). Both disappear with the run.",
        options=("none", "ram", "disk"),
        origin="ours",
        commands=TRAINING,
    )
    cache_gb: float = field(
        16.0,
        "Maximum size of the cache of each process of a run; images that no longer fit are decoded every time. An "
        "image of 640 x 480 pixels needs 0.9 MB.",
        above=0.0,
        max=INF,
        unit="GB",
        origin="ours",
        commands=TRAINING,
    )
    on_bad_image: str = field(
        "skip",
        "What training does with an image that cannot be read. skip: warn once and use another image; error: stop. "
        "Validation and test always stop.",
        options=("skip", "error"),
        origin="ours",
        commands=(*TRAINING, "validate_data"),
    )
    repeat_threshold: float | None = field(
        None,
        "Repeat images of rare classes: an image with a class that occurs in the share f of the training images is "
        "drawn sqrt(repeat_threshold / f) times per epoch, if that is above 1. null = every image once.",
        above=0.0,
        max=1.0,
        origin="ours",
        commands=TRAINING,
    )
    train_source_shares: list[float] | None = field(
        None,
        "Shares of the training sources in each batch, one number per item of train_data_sources, such as [3, 1]. null "
        "= the images of all sources are shuffled together.",
        above=0.0,
        max=INF,
        origin="ours",
        commands=TRAINING,
    )
    value_range: list[float] | None = field(
        None,
        "Stored values of images that become black and white (0 and 255): [low, high] for all channels, or low and "
        "high of each channel in turn. null = those of the type: 0 to 255, 0 to 65535 with 16 bits, 0 to 1 for floats; "
        "with 3 channels, other gray images are scaled by their own maximum.",
        origin="ours",
        recorded=Recorded("how pixel values are scaled", "warned", "warned"),
    )
    max_bad_share: float = field(
        0.1,
        "With on_bad_image: skip, the maximum share of training images that may be missing or unreadable before the "
        "run stops. Up to 10 images never stop it.",
        min=0.0,
        max=1.0,
        origin="ours",
        commands=(*TRAINING, "validate_data"),
    )

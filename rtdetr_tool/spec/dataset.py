"""The `dataset` section: sources, loading and augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rtdetr_tool.families import all_families
from rtdetr_tool.spec.fields import INF, Recorded, field

TRAINING = ("train", "distill")  # the commands that train


def _from_the_model(text: str = "") -> str:
    """The families with a field that determines image sizes, for the help."""
    sides = [(family.name, side) for family in all_families() for side in family.image_sides]
    return " ".join(f"With model.arch {name}: {text}model.{side}." for name, side in sides)


def _one_more() -> str:
    names = [family.name for family in all_families() if family.class_rows(1) > 1]
    return f", plus one with model.arch {' or '.join(names)} (the last logit belongs to no class)" if names else ""


@dataclass(frozen=True)
class AugmentationSpec:
    """Sizes and training augmentation."""

    multi_scales: list[Any] = field(
        [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
        "Sizes from which one is chosen at random for each training step: a side, or [height, width]; multiples of 32. "
        f"[] = always train_spatial_size. {_from_the_model('around ')}",
        unit="pixels",
    )
    train_spatial_size: list[int] = field(
        [640, 640],
        f"Input size in training, [height, width]; multiples of 32. {_from_the_model()}",
        min=32,
        unit="pixels",
    )
    eval_spatial_size: list[int] = field(
        [640, 640],
        f"Input size in all other commands and in validation, [height, width]; multiples of 32. {_from_the_model()}",
        min=32,
        unit="pixels",
        recorded=Recorded("the input size", "elsewhere", "elsewhere"),
    )
    distortion_prob: float = field(
        0.8,
        "Probability of each photometric distortion (brightness, contrast, saturation, hue, channel order).",
        min=0.0,
        max=1.0,
        automl=True,
    )
    iou_crop_prob: float = field(
        0.8, "Probability of a crop that keeps a minimum IoU with an object.", min=0.0, max=1.0, automl=True
    )
    zoom_out_prob: float = field(
        0.5,
        "Probability of placing the image on a black canvas of 1 to 4 times its sides.",
        min=0.0,
        max=1.0,
        origin="ours",
    )
    flip_prob: float = field(0.5, "Probability of a horizontal flip.", min=0.0, max=1.0, origin="ours")
    keypoint_flip_pairs: list[int] | None = field(
        None,
        "Keypoints that exchange places in a mirrored image, as a flat list of pairs such as [1, 2, 3, 4]; null = by "
        "left and right in the names of keypoints (without any, images are not mirrored), [] = none.",
        min=0,
        max=999,
        origin="ours",
    )
    scale_jitter_prob: float = field(
        0.0,
        "Probability of training on a random square of the image: the shorter side is scaled to 400, 500 or 600 "
        "pixels, of which the square has 384 to 600. RF-DETR: 0.5.",
        min=0.0,
        max=1.0,
        origin="ours",
    )
    preserve_aspect_ratio: bool = field(
        False,
        "Keep the aspect ratio and pad on the right and at the bottom, in training and in all other commands.",
        recorded=Recorded("whether images are padded (true) or stretched (false)"),
    )


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
    max_bad_share: float = field(
        0.1,
        "With on_bad_image: skip, the maximum share of training images that may be missing or unreadable before the "
        "run stops. Up to 10 images never stop it.",
        min=0.0,
        max=1.0,
        origin="ours",
        commands=(*TRAINING, "validate_data"),
    )

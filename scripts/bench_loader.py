"""Images per second of one data worker: ours, and the same steps in torchvision v2 as in the official RT-DETR.

    python scripts/bench_loader.py IMAGES ANNOTATIONS.json [--count 64] [--turns 5]

Decoding, photometric distortion, zoom-out, IoU crop, flip, resize to 640 px and collation, alternately in one process
with one thread. The official code passes PIL images to torchvision; the row with tensors is for comparison. Rates are
per second of CPU time, because machines are shared, and ratios are medians of the ratios within a turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import v2

from rtdetr_tool.data.build import build_train_dataset
from rtdetr_tool.data.collate import collate
from rtdetr_tool.data.dataset import TrainDataset
from rtdetr_tool.spec import spec_from_dict

BATCH = 16
OFFICIAL = "torchvision v2 on PIL images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", help="folder of images")
    parser.add_argument("annotations", help="COCO file of the images")
    parser.add_argument("--count", type=int, default=64, help="images per turn (default 64)")
    parser.add_argument("--turns", type=int, default=5, help="alternations (default 5)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = {"image_dir": options.images, "json_file": options.annotations}
    datasets = {
        "ours": build(source),
        "ours, from the cache": build(source, cache="ram"),
        "ours, no distortion": build(source, distortion_prob=0.0),
        "ours, no distortion, no crop": build(source, distortion_prob=0.0, iou_crop_prob=0.0),
    }
    count = min(options.count, len(datasets["ours"]))
    samples: dict[str, Callable[[int], Any]] = {
        name: lambda index, dataset=dataset: dataset[(0, index)] for name, dataset in datasets.items()
    }
    for name, tensors in {OFFICIAL: False, "torchvision v2 on tensors": True}.items():
        samples[name] = torchvision_sample(datasets["ours"], tensors)
    for index in range(count):
        datasets["ours, from the cache"].sample((0, index))
    rates: dict[str, list[float]] = {name: [] for name in samples}
    for _ in range(options.turns):
        for name, sample in samples.items():
            rates[name].append(rate(sample, count, collate if name in datasets else stack))
    for name, measured in rates.items():
        ratio = statistics.median(one / other for one, other in zip(measured, rates[OFFICIAL], strict=True))
        print(f"{name:32s} {statistics.median(measured):7.1f} images/s of one core {ratio:6.2f} x official")


def build(source: dict[str, str], cache: str = "none", **augmentation: Any) -> TrainDataset:
    dataset = {"train_data_sources": [source], "cache": cache, "augmentation": {"multi_scales": [], **augmentation}}
    return build_train_dataset(spec_from_dict({"results_dir": "unused", "dataset": dataset}).dataset, seed=0)


def torchvision_sample(dataset: TrainDataset, tensors: bool) -> Callable[[int], Any]:
    transform = v2.Compose(
        [
            v2.RandomPhotometricDistort(p=0.8),
            v2.RandomZoomOut(fill=0),
            v2.RandomApply([v2.RandomIoUCrop()], p=0.8),
            v2.SanitizeBoundingBoxes(min_size=1),
            v2.RandomHorizontalFlip(),
            v2.Resize([640, 640]),
            v2.SanitizeBoundingBoxes(min_size=1),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )

    def sample(index: int) -> Any:
        record = dataset.records[index]
        image: Any = Image.open(record.path).convert("RGB")
        boxes = tv_tensors.BoundingBoxes(record.boxes, format="XYXY", canvas_size=(image.height, image.width))
        if tensors:
            image = tv_tensors.Image(decode_image(read_file(record.path), ImageReadMode.RGB))
        return transform(image, {"boxes": boxes, "labels": torch.from_numpy(record.labels)})

    return sample


def stack(samples: list[Any]) -> Any:
    return torch.stack([image for image, _ in samples]), [target for _, target in samples]


def rate(sample: Callable[[int], Any], count: int, join: Callable[[list[Any]], Any]) -> float:
    start = time.process_time()
    for first in range(0, count, BATCH):
        join([sample(index) for index in range(first, min(first + BATCH, count))])
    return count / (time.process_time() - start)


if __name__ == "__main__":
    main()

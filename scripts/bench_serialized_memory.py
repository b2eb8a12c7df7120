"""Memory of the training records with `dataset_type` serialized and default, with several numbers of workers.

    python scripts/bench_serialized_memory.py [--images 40000] [--objects 5] [--workers 0 1 4 8] [--start fork|spawn]

Writes an annotation file without images, reads it as in training, iterates twice over the project's data loader with a
dataset that only reads the records, and adds up the memory of the main process and of the workers, after a garbage
collection in each of them as in a long run. RSS counts a shared page once per process; PSS (proportional) divides it
among the processes that share it, so its sum (without pages of files, such as libraries) is the memory really used.
The rows `none` have no records: they show the interpreter and the parser.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import re
import subprocess
import sys
import tempfile

CATEGORIES = 80


def write_annotations(path: str, images: int, objects: int) -> None:
    rng = random.Random(0)
    annotations = [
        {
            "id": number + 1,
            "image_id": number // objects + 1,
            "category_id": rng.randrange(CATEGORIES),
            "bbox": [rng.uniform(0, 300), rng.uniform(0, 200), rng.uniform(5, 300), rng.uniform(5, 200)],
            "area": 100.0,
            "iscrowd": 0,
        }
        for number in range(images * objects)
    ]
    content = {
        "images": [{"id": i + 1, "file_name": f"{i:012d}.jpg", "width": 640, "height": 480} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in range(CATEGORIES)],
    }
    with open(path, "w") as file:
        json.dump(content, file)


def memory(pid: int) -> dict[str, float]:
    """RSS and PSS (private and shared memory, no files) of a process in MiB, from Linux's smaps_rollup."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        text = file.read()
    sizes = {name: int(kilobytes) / 1024 for name, kilobytes in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    return {"Rss": sizes["Rss"], "Pss": sizes["Pss_Anon"] + sizes["Pss_Shmem"]}


class Boxes:
    """A dataset that reads records as training does, without images."""

    def __init__(self, records) -> None:
        self.records, self.collected = records, False

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> int:
        if not self.collected:
            gc.collect()
            self.collected = True
        return len(self.records[index].boxes)


def measure(kind: str, workers: int, folder: str, start: str) -> dict[str, float]:
    from rtdetr_tool.data.build import build_train_dataset
    from rtdetr_tool.data.coco import read_source
    from rtdetr_tool.data.loader import DetectionLoader, start_worker
    from rtdetr_tool.data.serialized import SerializedRecords
    from rtdetr_tool.ops.classes import ClassMap

    assert build_train_dataset  # imported, because every training has its module in memory
    source = read_source(folder, os.path.join(folder, "annotations.json"))
    records = source.records(ClassMap.from_categories(source.categories, CATEGORIES))
    del source
    records = {"none": lambda r: r[:1], "serialized": SerializedRecords, "default": lambda r: r}[kind](records)
    loader = DetectionLoader(
        Boxes(records),
        batch_size=max(1, min(100, len(records) // max(1, workers))),
        num_workers=workers,
        collate_fn=sum,
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
        multiprocessing_context=start if workers else None,
    )
    for _ in range(2):
        for _ in loader:
            pass
    processes = loader._iterator._workers if workers else []
    held = [memory(pid) for pid in [os.getpid(), *(process.pid for process in processes)]]
    return {
        "main_rss": held[0]["Rss"],
        "worker_rss": max((one["Rss"] for one in held[1:]), default=0.0),
        "sum_rss": sum(one["Rss"] for one in held),
        "sum_pss": sum(one["Pss"] for one in held),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--objects", type=int, default=5, help="per image")
    parser.add_argument("--kinds", nargs="+", default=["none", "serialized", "default"])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 4, 8])
    parser.add_argument("--start", choices=("fork", "spawn"), default="fork")
    parser.add_argument("--one", nargs=3, metavar=("KIND", "WORKERS", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]), args.one[2], args.start)))
        return
    print(f"{args.images} images, {args.images * args.objects} annotations, workers by {args.start}; MiB")
    print(f"{'dataset_type':<12} {'workers':>7} {'main RSS':>9} {'worker RSS':>10} {'sum RSS':>8} {'sum PSS':>8}")
    with tempfile.TemporaryDirectory() as folder:
        write_annotations(os.path.join(folder, "annotations.json"), args.images, args.objects)
        for kind in args.kinds:
            for workers in args.workers:
                # Each in a separate process, so that none is affected by the memory of another.
                command = [sys.executable, __file__, "--start", args.start, "--one", kind, str(workers), folder]
                sizes = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                print(
                    f"{kind:<12} {workers:>7} {sizes['main_rss']:>9.0f} {sizes['worker_rss']:>10.0f}"
                    f" {sizes['sum_rss']:>8.0f} {sizes['sum_pss']:>8.0f}"
                )


if __name__ == "__main__":
    main()

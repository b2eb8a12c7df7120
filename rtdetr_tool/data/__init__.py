"""Datasets: finding, reading, checking, augmenting and batching images and their annotations.

In: the `dataset` section. Out: datasets and loaders of `Batch` (`ops/structures`), a `ClassMap`, findings of checks.

    build_sources, build             from the section to sources, then to datasets and loaders
    loader, collate                  batches from worker processes
    source, dataset_folder           what a source is, and the table of formats (`FORMATS`)
    coco, coco_folder, yolo, voc     one reader per format; each returns a `Source`
    joining                          the classes of a run over all its sources and splits
    decoding, pixels, preprocess     the one opener of images, conversion to RGB, resizing
    window, transforms               augmentation in one window
    sampling, serialized             which image comes next; records in memory that the workers share
    inspection, file_check           checks before training and in `validate_data`, of annotations and of image files
    findings, repairs                results of the checks, and annotations that were repaired
    faults                           tells faults of the machine from corrupted files

The augmentation of sample i in epoch e depends on (seed, e, i) only, so workers, ranks and resuming do not change it.
May import `ops`, `spec` (in `build` and `build_sources` only) and the layers below; imports no other package in this
layer.
"""

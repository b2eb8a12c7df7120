"""`rtdetr evaluate`: COCO metrics of a checkpoint on the test set."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from rich.table import Table

from rtdetr_tool.commands.detection import as_run, evaluator_for, open_for, score
from rtdetr_tool.commands.session import record_spec
from rtdetr_tool.data.build import build_eval_dataset
from rtdetr_tool.files import write_atomically
from rtdetr_tool.log import console
from rtdetr_tool.metrics.result import CocoResult, score_text
from rtdetr_tool.spec import LoadedSpec
from rtdetr_tool.status import current_status
from rtdetr_tool.training.distributed import gather_objects, rank

logger = logging.getLogger(__name__)


def run(loaded: LoadedSpec) -> None:
    section = loaded.spec.evaluate
    current_status().running(f"Loading checkpoint: {section.trt_engine or section.checkpoint}")
    detecting = open_for(loaded, section)
    runtime, spec = detecting.model.runtime, detecting.spec
    record_spec(as_run(spec, "evaluate"), "evaluate")
    masks = spec.model.predicts_masks
    dataset = build_eval_dataset(spec.dataset, "test", class_map=runtime.class_map, masks=masks)
    evaluator = evaluator_for("test", dataset, spec)
    times = score(runtime, detecting.loader(dataset), evaluator, spec.model.num_select, section.conf_threshold)

    states = gather_objects([evaluator.state()])
    if rank() != 0:
        return
    evaluator.merge(states[1:])
    result = evaluator.compute()
    folder = Path(loaded.spec.evaluate.results_dir)
    write_atomically(folder / "results.json", json.dumps(result.to_dict(), indent=2) + "\n")
    write_atomically(folder / "predictions.json", json.dumps(evaluator.results_json()) + "\n")
    kpi = {"test_mAP": result.map, "test_mAP50": result.map50, **result.stats}
    if result.masks is not None:
        kpi |= {"test_segm_mAP": result.masks["AP"], "test_segm_mAP50": result.masks["AP50"]}
    current_status().running("Test metrics generated.", kpi=kpi)
    print_result(result)
    logger.info("Runtime %s on %s: %s", runtime.name, runtime.device, times.summary())
    if result.masks is not None:
        logger.info("Masks: mAP %s, mAP50 %s", score_text(result.masks["AP"]), score_text(result.masks["AP50"]))
    scores = score_text(result.map), score_text(result.map50)
    logger.info("mAP %s, mAP50 %s; numbers and predictions are in %s", *scores, folder)


def print_result(result: CocoResult) -> None:
    """COCO's numbers and the score of each class, as tables on the console; `-` is a score that is undefined."""
    numbers = Table("metric", title=f"COCO metrics (maxDets {result.max_dets})")
    kinds = {"boxes": result.stats} if result.masks is None else {"boxes": result.stats, "masks": result.masks}
    for kind in kinds:
        numbers.add_column(kind, justify="right")
    for name in result.stats:  # one below the other: twelve columns do not fit a terminal
        numbers.add_row(name, *(score_text(stats[name]) for stats in kinds.values()))
    numbers.add_section()
    best = result.best
    for name, value in (("F1", best.f1), ("precision", best.precision), ("recall", best.recall)):
        numbers.add_row(name if best.threshold is None else f"{name} at {best.threshold:.2f}", score_text(value))
    console().print(numbers)
    classes = Table(title="By class")
    for name in ("class", "id", "objects", "AP", "AP50", "AR"):
        classes.add_column(name, justify="left" if name == "class" else "right")
    for row in result.per_class:
        classes.add_row(row.name, str(row.category_id), str(row.objects), *map(score_text, (row.ap, row.ap50, row.ar)))
    console().print(classes)


"""`rtdetr evaluate`: COCO metrics of a checkpoint, graph or engine on the test set."""

from __future__ import annotations

import json
import logging

from rtdetr_tool.catalog import BOXES
from rtdetr_tool.commands.session import record_spec
from rtdetr_tool.commands.tables import print_result
from rtdetr_tool.files import write_atomically
from rtdetr_tool.json_output import command_output
from rtdetr_tool.metrics.result import score_text
from rtdetr_tool.spec import LoadedSpec
from rtdetr_tool.spec.metric_names import SCORES, tao_name
from rtdetr_tool.spec.required import results_folder
from rtdetr_tool.status import current_status
from rtdetr_tool.training.distributed import gather_objects, rank, world_size
from rtdetr_tool.workflows.detection import as_run, open_for, score_split

logger = logging.getLogger(__name__)


def run(loaded: LoadedSpec) -> None:
    section = loaded.spec.evaluate
    current_status().running(f"Loading checkpoint: {section.trt_engine or section.checkpoint}")
    model = open_for(loaded, section).model
    record_spec(as_run(model.spec, "evaluate"), "evaluate")
    evaluator, times, dataset = score_split(model, "test", section.conf_threshold, rank(), world_size(), section.tiles)

    states = gather_objects([evaluator.state()])
    if rank() != 0:
        return
    evaluator.merge(states[1:])
    result = evaluator.compute()
    folder = results_folder(section, "evaluate")
    command_output().results = content = result.to_dict()
    write_atomically(folder / "results.json", json.dumps(content, indent=2) + "\n")
    write_atomically(folder / "predictions.json", evaluator.results_text() + "\n")
    kpi = {"test_mAP": result.map, "test_mAP50": result.map50, **result.stats}
    best = {"F1": result.best.f1, "precision": result.best.precision, "recall": result.best.recall}
    kpi |= {f"test_{name}": value for name, value in best.items()}
    kpi |= {f"test_AP/{row.name}": row.ap for row in result.per_class if row.ap is not None}
    beyond_boxes = {kind: stats for kind, stats in result.by_kind.items() if kind != BOXES}
    for kind, stats in beyond_boxes.items():
        names = (tao_name(f"test/{name}") for name in SCORES[kind])
        kpi |= dict(zip(names, (stats["AP"], stats["AP50"]), strict=False))
    current_status().running("Test metrics generated.", kpi=kpi)
    print_result(result)
    logger.info("Runtime %s on %s: %s", model.runtime.name, model.runtime.device, times.summary())
    for kind, stats in beyond_boxes.items():
        scores = score_text(stats["AP"]), score_text(stats["AP50"])
        logger.info("%s: mAP %s, mAP50 %s", kind.capitalize(), *scores)
    scores = score_text(result.map), score_text(result.map50)
    logger.info("mAP %s, mAP50 %s; wrote metrics and predictions to %s", *scores, folder)
    if section.report:
        facts = {"runtime": f"{model.runtime.name} on {model.runtime.device}", "speed": times.summary()}
        try:
            from rtdetr_tool.reports.run import write_evaluation_report  # imports matplotlib

            name = section.trt_engine or section.checkpoint
            logger.info("Wrote %s", write_evaluation_report(folder, name, evaluator, result, dataset, facts))
        except Exception as error:  # the results are complete without it
            logger.warning("Skipping the report: %s", str(error) or type(error).__name__)
            logger.debug("traceback", exc_info=error)

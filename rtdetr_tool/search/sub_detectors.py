"""Score all sub-detectors of weights trained with `train.supernet`, without training; a killed run resumes."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from rtdetr_tool.checkpoints.detector_file import read_detector
from rtdetr_tool.checkpoints.published import weights_path
from rtdetr_tool.checkpoints.spec_merge import complete_spec
from rtdetr_tool.checkpoints.sub_detectors import recorded_supernet
from rtdetr_tool.errors import UserError
from rtdetr_tool.files import make_folder_below, sha256_of, write_atomically
from rtdetr_tool.formats.opening import open_model
from rtdetr_tool.messages import first_of
from rtdetr_tool.metrics.result import CocoResult
from rtdetr_tool.progress import Task
from rtdetr_tool.redaction import without_secrets
from rtdetr_tool.search import latency
from rtdetr_tool.search.results import SearchResults, TrialResult, value_text
from rtdetr_tool.search.trial import TrainingSession, reason_of
from rtdetr_tool.spec import ExperimentSpec, LoadedSpec, spec_to_dict
from rtdetr_tool.spec.required import required
from rtdetr_tool.spec.search_ranges import Parameter, with_values
from rtdetr_tool.spec.sub_detectors import SubDetector, sub_detectors, sub_spec_values
from rtdetr_tool.spec.supernet import CHOICES, SupernetSpec
from rtdetr_tool.status import current_status
from rtdetr_tool.workflows.benchmark_steps import choose_device
from rtdetr_tool.workflows.detection import score_split

logger = logging.getLogger(__name__)

FRONT = "pareto"  # folder of the specs of the Pareto front
_USING = ("evaluate", "inference", "export", "serve")  # sections of commands that open the checkpoint
_OF_OTHER_MODELS = ("input_width", "input_height", "trt_engine")  # fields of these sections that a spec must not keep


class SubDetectorSearch:
    """The sub-detectors of `automl.supernet_checkpoint`, scored in a results folder that no other process uses.

    It has the interface of `Search`.

    Args:
        session: not used, because nothing is trained.
    """

    def __init__(self, loaded: LoadedSpec, folder: Path, session: TrainingSession | None = None) -> None:
        self.section, self.folder = loaded.spec.automl, folder
        self.checkpoint = required(self.section.supernet_checkpoint, "automl.supernet_checkpoint")
        meta = read_detector(self.checkpoint, {}).meta
        whole = complete_spec(LoadedSpec(loaded.spec), meta)
        supernet = self._choices(loaded.spec.train.supernet, recorded_supernet(meta))
        self.whole = replace(whole, train=replace(whole.train, supernet=supernet))
        self.loaded = LoadedSpec(self.whole, {**loaded.explicit}, source=loaded.source)
        self.subs = sub_detectors(self.whole)
        names = list(self.subs[0].values)
        seen = {name: list({str(sub.values[name]): sub.values[name] for sub in self.subs}.values()) for name in names}
        self.parameters = [Parameter(name, choices=tuple(seen[name])) for name in names]
        self.identity = self._identity()
        self.trials = self._resumed()

    @property
    def kind(self) -> str:
        """What the weights predict, one of `catalog.PREDICTS`."""
        return self.whole.model.predicts

    def _choices(self, given: SupernetSpec, recorded: SupernetSpec | None) -> SupernetSpec:
        """The choices of the spec, if it has any, or else those of the weights."""
        if recorded is None:
            raise UserError(
                f"automl.supernet_checkpoint: {self.checkpoint} was not trained with train.supernet.enabled; expected "
                "weights of such a run"
            )
        if not given.enabled:
            return recorded
        for name in CHOICES:
            others = [value for value in getattr(given, name) if value not in getattr(recorded, name)]
            if others:
                trained = first_of(getattr(recorded, name)) if getattr(recorded, name) else "those of the model only"
                raise UserError(
                    f"train.supernet.{name}: {self.checkpoint} was not trained with {first_of(others)}; expected "
                    f"{trained}"
                )
        return given

    def run(self) -> None:
        """Score the sub-detectors that are not scored yet."""
        done = len(self.trials)
        if done:
            logger.info("Resuming: %d of %d sub-detectors are scored already", done, len(self.subs))
        with Task("Scoring", len(self.subs), "sub-detectors", done) as progress:
            for number, sub in enumerate(self.subs):
                if number in self.trials:
                    continue
                text = ", ".join(f"{name} {value_text(value)}" for name, value in sub.values.items())
                current_status().running(f"Sub-detector {number + 1} of {len(self.subs)}: {text}")
                self.trials[number] = trial = self._trial(number, sub)
                self.results().write(self.folder)
                if trial.reason:
                    logger.warning("Skipping %s: %s", text, trial.reason)
                else:
                    logger.info("%s: %.4f, %.2f ms", text, trial.score, trial.latency)
                progress.advance()

    def results(self) -> SearchResults:
        trials = [self.trials[number] for number in sorted(self.trials)]
        return SearchResults.of_trials(trials, self.parameters, self.section, self.identity)

    def write_specs(self, results: SearchResults) -> None:
        """Write the spec of each point of the Pareto front, and of the best one."""
        folder = self.folder / FRONT
        make_folder_below(self.folder, folder)
        for path in folder.glob("point_*.yaml"):
            path.unlink()
        for trial in results.trials:
            if trial.number in results.front:
                write_atomically(folder / point_name(trial.number), self.spec_text(trial))
        logger.info("Wrote a spec for each of %d points of the Pareto front to %s", len(results.front), folder)

    def spec_text(self, trial: TrialResult) -> str:
        """The spec of a sub-detector for `evaluate`, `inference` and `export`; secrets are masked."""
        path = os.path.abspath(self.checkpoint) if os.path.exists(self.checkpoint) else self.checkpoint
        data = with_values(self.loaded.explicit, self._values(self.subs[trial.number]))
        data["train"] = {name: value for name, value in data["train"].items() if name != "supernet"}
        for name in _USING:
            given = {key: value for key, value in (data.get(name) or {}).items() if key not in _OF_OTHER_MODELS}
            data[name] = {**given, "checkpoint": path}
        text: str = yaml.safe_dump(without_secrets(data), sort_keys=False, allow_unicode=True)
        return text

    def _values(self, sub: SubDetector) -> dict[str, Any]:
        return {"model.arch": self.whole.model.arch, **sub_spec_values(sub, self.whole.model)}

    def _trial(self, number: int, sub: SubDetector) -> TrialResult:
        started = time.monotonic()
        result = TrialResult(number, "failed", None, None, sub.values, {}, None, "")
        try:
            values = self._values(sub)
            loaded = self.loaded.with_values(values)
            score = self._score(loaded)
            runtime = self.section.latency_runtime
            seconds = latency.measure_latency(
                loaded.spec, self.checkpoint, runtime, self.folder, with_values({}, values)
            )
            result = replace(result, state="finished", score=score, latency=seconds)
        except UserError as error:
            result = replace(result, reason=reason_of(error))
        return replace(result, seconds=time.monotonic() - started)

    def _score(self, loaded: LoadedSpec) -> float:
        spec = loaded.spec
        device = choose_device(latency.latency_section(spec, self.section.latency_runtime, self.checkpoint))
        model = open_model(self.checkpoint, loaded, device)
        result = score_split(model, "val", spec.evaluate.conf_threshold).evaluator.compute()
        score = score_of(result, spec)
        if score is None:
            raise UserError("the validation data has no objects to score the detections against")
        return score

    # Resuming

    def _identity(self) -> dict[str, Any]:
        """What scores and latencies depend on, besides the sub-detector."""
        data = spec_to_dict(self.whole)
        fixed = latency.latency_section(self.whole, self.section.latency_runtime, self.checkpoint)
        names = ("runtimes", "seconds", "warmup", "threads", "gpu_id", "on_cpu")
        identity = {
            "checkpoint": self.checkpoint,
            "sha256": sha256_of(weights_path(self.checkpoint)),
            "best_metric": self.whole.train.best_metric,
            "val_data_sources": data["dataset"]["val_data_sources"],
            "dataset_dir": data["dataset"]["dataset_dir"],
            "benchmark": {name: getattr(fixed, name) for name in names},
        }
        plain: dict[str, Any] = json.loads(json.dumps(without_secrets(identity)))
        return plain

    def _resumed(self) -> dict[int, TrialResult]:
        """The finished trials in the folder by the number of their sub-detector now."""
        path = self.folder / "automl.json"
        if not path.is_file():
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
        known = content.get("supernet")
        if not isinstance(known, Mapping) or known != self.identity:
            other = [name for name in self.identity if known and known.get(name) != self.identity[name]]
            what = f"other values of {', '.join(other)}" if other else "the trials of another search"
            raise UserError(f"{path} has {what}. Restore them to resume it, or use another results folder (-r)")
        numbers = {json.dumps(sub.values): number for number, sub in enumerate(self.subs)}
        finished = [TrialResult(**trial) for trial in content["trials"] if trial["state"] == "finished"]
        scored = {numbers[json.dumps(trial.values)]: trial for trial in finished if json.dumps(trial.values) in numbers}
        return {number: replace(trial, number=number) for number, trial in scored.items()}


def point_name(number: int) -> str:
    return f"point_{number:04d}.yaml"


def score_of(result: CocoResult, spec: ExperimentSpec) -> float | None:
    """The score that decides the best checkpoint in training (`train.best_metric`)."""
    kind = spec.model.predicts
    return result.by_kind[kind]["AP"] if spec.train.best_metric == "mAP" else result.recall(kind)

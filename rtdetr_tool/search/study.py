"""The database of a search: Optuna's study with its sampler and pruner."""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rtdetr_tool.errors import UserError
from rtdetr_tool.messages import first_of
from rtdetr_tool.redaction import mask_secrets, without_secrets
from rtdetr_tool.search.storage import open_storage, storage_failure, storage_url
from rtdetr_tool.spec import AutomlSpec, ExperimentSpec, spec_to_dict
from rtdetr_tool.spec.search_ranges import Parameter

if TYPE_CHECKING:
    import optuna
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

_INSTALL = 'automl requires optuna: pip install "rtdetr-tool[automl]"'
_SPEC = "rtdetr_spec"  # attribute of a study: the spec of its trials
_REDUCTION = 3  # of the trials that continue at each rung
_SECTIONS = ("model", "dataset", "train")
_FREE = ("dataset.workers", "train.results_dir", "train.gpu_ids", "train.num_gpus", "train.tensorboard", "train.report")
_SCALARS = (bool, int, float, str, type(None))


def require_optuna() -> None:
    """UserError with the pip command if Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError(_INSTALL)


def open_study(
    section: AutomlSpec, folder: Path, spec: ExperimentSpec, parameters: Sequence[Parameter]
) -> optuna.Study:
    """The study in the database, created if needed.

    Raises:
        UserError: the database cannot be opened, or has a search of this name with another spec.
    """
    import optuna

    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()  # to the log file
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = storage_url(section, folder)
    shown = mask_secrets(section.storage or str(folder / Path(url).name))
    directions: list[Literal["maximize", "minimize"]] = ["maximize"]
    if section.has_latency:
        directions.append("minimize")
    identity = search_identity(section, spec, parameters)
    try:
        storage = open_storage(url)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(
                storage=storage, study_name=section.study_name, directions=directions, load_if_exists=True
            )
        known = study.user_attrs.get(_SPEC)
        if known is None:
            study.set_user_attr(_SPEC, identity)
    except ImportError as error:
        package = 'psycopg: pip install "psycopg[binary]"' if url.startswith("postgresql") else f"{error.name}"
        raise UserError(f"automl.storage: {shown} requires {package}") from None
    except Exception as error:  # of SQLAlchemy, of the database's driver and of Optuna
        raise UserError(
            f"automl.storage: {shown} cannot be used: {storage_failure(error)}. Expected a database that exists and "
            "can be written; use another storage, or remove a damaged file to start the search from scratch"
        ) from None
    if known is not None:
        _check_identity(known, identity, section, shown)
    return study


def search_identity(section: AutomlSpec, spec: ExperimentSpec, parameters: Sequence[Parameter]) -> dict[str, Any]:
    """What all trials of a search have in common, by dotted name; secrets are masked."""
    searched = {parameter.name for parameter in parameters}
    data = without_secrets({key: value for key, value in spec_to_dict(spec).items() if key in _SECTIONS})
    flat = {name: value for name, value in _flat(data) if name not in searched and name not in _FREE}
    flat |= {f"automl.parameters.{parameter.name}": parameter.text for parameter in parameters}
    return {**flat, "automl.objective": "pareto" if section.has_latency else "map"}


def _flat(data: Mapping[str, Any], prefix: str = "") -> Any:
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_identity(known: Mapping[str, Any], now: Mapping[str, Any], section: AutomlSpec, storage: str) -> None:
    """UserError if the trials in the database were trained with another spec."""
    now = json.loads(json.dumps(now))
    different = [name for name in {**known, **now} if known.get(name) != now.get(name)]
    if different:
        changes = first_of(f"{name} ({known.get(name)}, now {now.get(name)})" for name in different)
        raise UserError(
            f"automl.study_name: the search {section.study_name!r} in {storage} has other values of {changes}. "
            "Restore them to resume it, or start another search with another results folder or study_name"
        )


def sampler_for(section: AutomlSpec, parameters: Sequence[Parameter], number: int) -> BaseSampler:
    """The sampler that chooses the trial with this number.

    Its seed depends on the number, so that a resumed search makes the same choices.
    """
    from optuna import samplers

    seed = (section.seed * 1_000_003 + number) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of features that Optuna may change
        if section.sampler == "tpe":
            return samplers.TPESampler(seed=seed, constant_liar=True)
        if section.sampler == "gp":
            return samplers.GPSampler(seed=seed)
        if section.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        points = grid(parameters, section.seed)
        return samplers.PartialFixedSampler(points[number % len(points)], samplers.RandomSampler(seed=seed))


def grid(parameters: Sequence[Parameter], seed: int) -> list[dict[str, Any]]:
    """All combinations of values, as Optuna sees them, in a random order."""
    values: dict[str, list[Any]] = {}
    for parameter in parameters:
        if parameter.choices:
            values[parameter.name] = list(_categories(parameter))
            continue
        step = parameter.step or 1
        count = int((parameter.high - parameter.low) / step + 1e-9) + 1  # type: ignore[operator]  # set without choices
        numbers = [parameter.low + index * step for index in range(count)]  # type: ignore[operator]  # as above
        values[parameter.name] = [int(number) for number in numbers] if parameter.whole else numbers
    points = [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]
    random.Random(seed).shuffle(points)
    return points


def pruner_for(section: AutomlSpec, validations: int) -> BasePruner:
    from optuna import pruners

    start = section.pruning_start
    kind = section.effective_pruner
    if kind == "asha":
        return pruners.SuccessiveHalvingPruner(min_resource=start, reduction_factor=_REDUCTION)
    if kind == "hyperband":
        return pruners.HyperbandPruner(
            min_resource=start, max_resource=max(validations, start), reduction_factor=_REDUCTION
        )
    if kind == "median":
        return pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=start)
    return pruners.NopPruner()


def suggest(trial: Trial, parameter: Parameter) -> Any:
    """The value of a field in a trial; the same again for a trial that already has one."""
    if parameter.choices:
        category = trial.suggest_categorical(parameter.name, _categories(parameter))
        return parameter.choices[_categories(parameter).index(category)]
    low, high, step = parameter.low, parameter.high, parameter.step
    assert low is not None and high is not None
    if parameter.whole:
        return trial.suggest_int(parameter.name, int(low), int(high), step=int(step or 1), log=parameter.log)
    return trial.suggest_float(parameter.name, low, high, step=step, log=parameter.log)


def decoded(parameter: Parameter, stored: Any) -> Any:
    """The value of a field for a value in the database."""
    if parameter.choices and stored in _categories(parameter):
        return parameter.choices[_categories(parameter).index(stored)]
    return stored


def _categories(parameter: Parameter) -> list[Any]:
    """The choices as the database stores them: lists and mappings as JSON."""
    return [choice if isinstance(choice, _SCALARS) else json.dumps(choice) for choice in parameter.choices]

"""The session around every command: results folder, resolved spec, status lines, log file and exit code."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rtdetr_tool.commands.run_lock import RunLock
from rtdetr_tool.commands.signals import termination_as_preemption, was_interrupted
from rtdetr_tool.errors import Preempted, RtdetrError, SpecError, UserError, WriteError
from rtdetr_tool.files import confirming, remove_unfinished, write_atomically
from rtdetr_tool.json_output import command_output
from rtdetr_tool.log import LogFile, close_log_file, open_log_file, set_up_console
from rtdetr_tool.redaction import mask_secrets, without_secrets
from rtdetr_tool.spec import ExperimentSpec, LoadedSpec, spec_to_dict
from rtdetr_tool.spec.commands import COMMANDS
from rtdetr_tool.spec.required import results_folder
from rtdetr_tool.status import StatusLogger, current_status, process_rank, set_current_status

logger = logging.getLogger(__name__)

OK, FAILED, WRONG_INPUT, INTERRUPTED, PREEMPTED = 0, 1, 2, 130, Preempted.exit_code

WRITTEN_FILES = (
    "experiment.yaml",
    "status.json",
    "results.json",
    "predictions.json",
    "images.json",
    "videos.json",
    "report.html",
    "automl.json",
    "best_spec.yaml",
)
WRITTEN_BY_LIBRARIES = ("csv_logs", "lightning_logs", "wandb", "mlflow.db", "mlflow_artifacts", "dataset_grids")


def run_session(loaded: LoadedSpec, command: str, run: Callable[[LoadedSpec], int | None], last: bool = False) -> int:
    """Run a command and return its exit code. `last`: the process ends afterwards, and no signal changes the code.

    The codes are 0 for success, 1 for a failure, 2 for invalid input, 75 after SIGTERM, SIGUSR1 or SIGHUP (run the same
    command again) and 130 after Ctrl-C. Writes `experiment.yaml` (the resolved spec), `status.json` (whose last line is
    SUCCESS or FAILURE) and `log.txt` to the command's results folder. Only the first process of a run writes.
    """
    set_up_console(process_rank())
    try:
        folder = prepare_folder(loaded.spec, command)
        with one_run_in(folder, command) as lock:
            return _run_in(folder, loaded, command, run, lock, last)
    except UserError as error:
        return report_user_error(error)


def _run_in(
    folder: Path,
    loaded: LoadedSpec,
    command: str,
    run: Callable[[LoadedSpec], int | None],
    lock: RunLock | None,
    last: bool,
) -> int:
    """`run_session` in a folder that is locked for other runs."""
    first = process_rank() == 0
    command_output().results_dir = str(folder)
    refuse_links_out(folder)
    for name in WRITTEN_FILES if first else ():
        remove_unfinished(folder / name)
    try:
        handler = open_log_file(folder / "log.txt") if first else None
    except OSError as error:
        raise UserError(f"the log file {folder / 'log.txt'} cannot be written: {error.strerror}") from None
    confirm = partial(_confirm, lock, handler) if lock is not None else lambda: None
    outer = current_status()  # of a search, whose trials are sessions as well
    status = StatusLogger(folder / "status.json", mask_secrets, write_atomically, confirm)
    set_current_status(status)
    try:
        if lock is not None and (earlier := lock.stale):
            status.failure(f"Killed: {earlier} did not exit cleanly.")
            logger.warning("%s did not exit cleanly (it was killed, or its machine went down)", earlier)
        with confirming(folder, status.confirm_folder), termination_as_preemption(last) as over:
            return _report(over, loaded, command, run, folder)
    finally:
        set_current_status(outer)
        command_output().metrics = status.kpi
        status.close()
        if handler is not None:
            close_log_file(handler)


def _confirm(lock: RunLock, handler: LogFile | None) -> None:
    """Recreate a results folder that was deleted during the run; WriteError if another run is using it now."""
    folder = lock.path.parent
    try:
        again = lock.renew()
    except UserError as error:
        text = f"The results folder {folder} was deleted during the run and now belongs to another run: {error}"
        raise WriteError(text) from error
    except OSError as error:
        reason = f"cannot be created again: {error.strerror}"
        raise WriteError(f"The results folder {folder} was deleted during the run and {reason}.") from error
    if again:
        if handler is not None:
            handler.reopen()
        logger.warning("%s, or the lock file in it, was deleted during the run and has been created again", folder)


def _report(
    over: Callable[[], None], loaded: LoadedSpec, command: str, run: Callable[[LoadedSpec], int | None], folder: Path
) -> int:
    """Run the command and report its result in `status.json`, in the log and as exit code."""
    status, log = current_status(), folder / "log.txt"
    try:
        try:
            record_spec(loaded.spec, command)
            status.started(f"Starting RT-DETR {command}.")
            for note in loaded.notes:
                logger.warning(note)
            code = run(loaded) or OK
        finally:
            over()
        if code == OK:
            status.success(f"RT-DETR {command} finished successfully.")
        else:
            status.failure(f"RT-DETR {command} finished with problems; see {log}.")
        return code
    except UserError as error:
        kind = "Schema validation error" if isinstance(error, SpecError) else "Configuration error"
        status.failure(f"{kind}: {error}")
        return report_user_error(error)
    except Preempted as error:
        status.failure(f"User/System interruption: {error}")
        command_output().error = str(error)
        logger.error(str(error))
        # The first process may have started the others, and treats any other exit code as a failure.
        return PREEMPTED if process_rank() == 0 else OK
    except BaseException as error:
        if was_interrupted(error):
            status.failure("User/System interruption: the run was interrupted.")
            command_output().error = "Interrupted."
            logger.error("Interrupted.")
            return INTERRUPTED
        status.failure(f"{_failure_kind(error)}: {str(error) or type(error).__name__}")
        return report_failure(error, log)


def refuse_links_out(folder: Path) -> None:
    """UserError if a folder or file of libraries is a link that points outside the results folder."""
    inside = os.path.realpath(folder)
    for place in (folder / name for name in WRITTEN_BY_LIBRARIES):
        below = list(place.iterdir()) if place.is_dir() and not place.is_symlink() else []
        for path in (place, *below):
            if path.is_symlink() and os.path.commonpath([inside, os.path.realpath(path)]) != inside:
                raise UserError(f"{path} is a link that points outside the results folder {folder}; remove it.")


@contextmanager
def one_run_in(folder: Path, command: str) -> Iterator[RunLock | None]:
    """Lock the folder for other runs of an exclusive command."""
    if not COMMANDS[command].exclusive or process_rank() != 0:
        yield None
        return
    try:
        lock = RunLock(folder, command)
    except OSError as error:
        raise UserError(f"the lock file in {folder} cannot be written: {error.strerror}") from None
    try:
        yield lock
    finally:
        lock.release()


def prepare_folder(spec: ExperimentSpec, command: str) -> Path:
    """The command's results folder, created if needed; `UserError` if it cannot be written."""
    folder = results_folder(getattr(spec, command), command)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"the results folder {folder} cannot be written: {error.strerror or error}. "
            "Use another one with -r or results_dir=..."
        ) from None
    return folder


def record_spec(spec: ExperimentSpec, command: str) -> None:
    """Write `experiment.yaml`, the spec that the command uses, in the first process only."""
    if process_rank() == 0:
        write_atomically(results_folder(getattr(spec, command), command) / "experiment.yaml", spec_to_yaml(spec))


def spec_to_yaml(spec: ExperimentSpec) -> str:
    import yaml

    text: str = yaml.safe_dump(without_secrets(spec_to_dict(spec)), sort_keys=False, allow_unicode=True)
    return text


def report_user_error(error: UserError) -> int:
    command_output().error = str(error)
    logger.error(f"Error: {error}")
    return error.exit_code


def report_failure(error: BaseException, log_file: Path | None = None) -> int:
    """A short message on the console, the traceback in the log file."""
    logger.debug("traceback", exc_info=error)
    where = f" The traceback is in {log_file}." if log_file else ""
    name = [] if isinstance(error, RtdetrError) else [type(error).__name__]
    text = ": ".join([*name, *([str(error)] if str(error) else [])])
    command_output().error = f"{text.rstrip('.')}.{where}"
    logger.error(f"Failed: {command_output().error}")
    return FAILED


def _failure_kind(error: BaseException) -> str:
    if isinstance(error, NotImplementedError):
        return "Feature not implemented"
    if isinstance(error, (ValueError, TypeError)):
        return "Parameter validation error"
    if isinstance(error, OSError):
        return "File system error"
    if isinstance(error, SystemExit):
        return "User/System interruption"
    return "Run time error"

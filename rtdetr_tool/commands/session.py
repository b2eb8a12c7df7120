"""What every command has around it: results folder, spec dump, status lines, log file, exit code."""

from __future__ import annotations

import logging
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rtdetr_tool.errors import RtdetrError, SpecError, UserError
from rtdetr_tool.files import write_atomically
from rtdetr_tool.log import close_log_file, mask_secrets, open_log_file, set_up_console, without_secrets
from rtdetr_tool.spec import ExperimentSpec, LoadedSpec, spec_to_dict
from rtdetr_tool.status import StatusLogger, process_rank, set_current_status

logger = logging.getLogger(__name__)

OK, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


def run_session(loaded: LoadedSpec, command: str, run: Callable[[LoadedSpec], int | None]) -> int:
    """Run a command and return its exit code: 0 done, 1 our failure, 2 the user's input is wrong, 130 interrupted.

    Under the command's results folder it leaves `experiment.yaml` (the resolved spec), `status.json` (ends with SUCCESS
    or FAILURE) and `log.txt`. Only the first process of a run writes.
    """
    first = process_rank() == 0
    set_up_console(process_rank())
    try:
        folder = prepare_folder(loaded.spec, command)
        handler = open_log_file(folder / "log.txt") if first else None
    except UserError as error:
        return report_user_error(error)
    except OSError as error:
        return report_user_error(UserError(f"the log file {folder / 'log.txt'} cannot be written: {error.strerror}"))
    status = StatusLogger(folder / "status.json", clean=mask_secrets)
    set_current_status(status)
    try:
        if first:
            write_atomically(folder / "experiment.yaml", spec_to_yaml(loaded.spec))
        status.started(f"Starting RT-DETR {command}.")
        for note in loaded.notes:
            logger.warning(note)
        with termination_as_interrupt():
            code = run(loaded) or OK
        if code == OK:
            status.success(f"RT-DETR {command} finished successfully.")
        else:
            status.failure(f"RT-DETR {command} finished with problems; see {folder / 'log.txt'}.")
        return code
    except UserError as error:
        kind = "Schema validation error" if isinstance(error, SpecError) else "Configuration error"
        status.failure(f"{kind}: {error}")
        return report_user_error(error)
    except BaseException as error:
        if was_interrupted(error):
            status.failure("User/System interruption: the run was interrupted.")
            logger.error("Interrupted.")
            return INTERRUPTED
        status.failure(f"{_failure_kind(error)}: {str(error) or type(error).__name__}")
        return report_failure(error, folder / "log.txt")
    finally:
        set_current_status(StatusLogger())
        if handler is not None:
            close_log_file(handler)


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """SIGTERM, as schedulers send it, ends the run as Ctrl-C does: cleaned up, a FAILURE line, exit code 130."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    usable = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if usable:
        signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if usable:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def was_interrupted(error: BaseException | None) -> bool:
    """Whether the error is, or stands for, a `KeyboardInterrupt`: Lightning turns that into `SystemExit(1)`."""
    while isinstance(error, SystemExit):
        error = error.__context__
    return isinstance(error, KeyboardInterrupt)


def prepare_folder(spec: ExperimentSpec, command: str) -> Path:
    """The command's results folder, made if needed; `UserError` when it cannot be written."""
    folder = Path(getattr(spec, command).results_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"the results folder {folder} cannot be written: {error.strerror or error}. "
            "Give another one with -r or results_dir=..."
        ) from None
    return folder


def spec_to_yaml(spec: ExperimentSpec) -> str:
    import yaml

    return yaml.safe_dump(without_secrets(spec_to_dict(spec)), sort_keys=False, allow_unicode=True)


def report_user_error(error: UserError) -> int:
    logger.error(f"Error: {error}")
    return error.exit_code


def report_failure(error: BaseException, log_file: Path | None = None) -> int:
    """A short message on the console, the traceback in the log file."""
    logger.debug("traceback", exc_info=error)
    where = f" The traceback is in {log_file}." if log_file else ""
    name = [] if isinstance(error, RtdetrError) else [type(error).__name__]
    text = ": ".join([*name, *([str(error)] if str(error) else [])])
    logger.error(f"Failed: {text.rstrip('.')}.{where}")
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

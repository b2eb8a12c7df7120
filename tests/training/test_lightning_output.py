"""Lightning's own messages stay off the terminal."""

from __future__ import annotations

import logging
import sys
import warnings

from rtdetr_tool.training.fit import fit
from rtdetr_tool.training.lightning_output import quiet_lightning
from rtdetr_tool.training.trainer import build_trainer

LIGHTNING = logging.getLogger("pytorch_lightning")


def imported_first(monkeypatch) -> logging.Handler:
    """Make Lightning's logger what it is when nobody has set up logging before its import.

    Not a fixture: pytest adds handlers of its own to loggers that do not propagate when a test begins.
    """
    handler = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(LIGHTNING, "handlers", [handler])
    monkeypatch.setattr(LIGHTNING, "propagate", False)
    monkeypatch.setattr(LIGHTNING, "level", logging.INFO)
    return handler


def test_a_run_writes_nothing_of_lightning(make_spec, capsys, caplog, monkeypatch):
    handler = imported_first(monkeypatch)
    with warnings.catch_warnings(), caplog.at_level(logging.INFO):
        warnings.resetwarnings()
        fit(make_spec())
        build_trainer(make_spec())
    written = capsys.readouterr().err
    assert "Best val_mAP" in written
    for words in ("Tip", "GPU available", "Trainer", "pytorch_lightning", "UserWarning"):
        assert words not in written
    assert any("GPU available" in record.getMessage() for record in caplog.records)  # who logs, gets it
    assert LIGHTNING.handlers == [handler] and not LIGHTNING.propagate


def test_what_was_asked_for_is_kept(tmp_path, monkeypatch):
    """A handler for a file, and a filter that shows warnings, as a command sets them for its log file."""
    file = logging.FileHandler(tmp_path / "log")
    monkeypatch.setattr(LIGHTNING, "handlers", [file])
    with warnings.catch_warnings(record=True) as seen, quiet_lightning():
        warnings.simplefilter("default")
        warnings.warn_explicit("hint", UserWarning, "trainer.py", 1, module="pytorch_lightning.trainer")
        assert LIGHTNING.handlers == [file]
    file.close()
    assert len(seen) == 1


def test_warnings_of_others_stay(monkeypatch):
    with warnings.catch_warnings(record=True) as seen:
        warnings.resetwarnings()
        with quiet_lightning():
            warnings.warn_explicit("hint", UserWarning, "trainer.py", 1, module="pytorch_lightning.trainer")
            warnings.warn_explicit("mine", UserWarning, "callback.py", 1, module="my_callback")
    assert [str(warning.message) for warning in seen] == ["mine"]

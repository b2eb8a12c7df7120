"""Lightning's own messages stay off the terminal."""

from __future__ import annotations

import logging
import sys
import warnings

from rtdetr_tool.training.fit import fit
from rtdetr_tool.training.lightning_output import quiet_lightning
from rtdetr_tool.training.trainer import build_trainer

LIGHTNING = logging.getLogger("pytorch_lightning")


def import_without_logging(monkeypatch) -> logging.Handler:
    """Set Lightning's logger to its state after an import without logging set up.

    Not a fixture, because pytest adds handlers to loggers that do not propagate when a test starts.
    """
    handler = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(LIGHTNING, "handlers", [handler])
    monkeypatch.setattr(LIGHTNING, "propagate", False)
    monkeypatch.setattr(LIGHTNING, "level", logging.INFO)
    return handler


def test_a_run_prints_nothing_of_lightning(make_spec, capsys, caplog, monkeypatch):
    handler = import_without_logging(monkeypatch)
    with warnings.catch_warnings(), caplog.at_level(logging.INFO):
        warnings.resetwarnings()
        fit(make_spec())
        build_trainer(make_spec())
    written = capsys.readouterr().err
    assert "Best val/mAP_50_95" in written
    for words in ("Tip", "GPU available", "Trainer", "pytorch_lightning", "UserWarning"):
        assert words not in written
    assert any("GPU available" in record.getMessage() for record in caplog.records)  # root handlers still receive it
    assert LIGHTNING.handlers == [handler] and not LIGHTNING.propagate


def test_existing_handlers_and_filters_are_kept(tmp_path, monkeypatch):
    """A file handler and a filter that shows warnings, as commands set up for their log file."""
    file = logging.FileHandler(tmp_path / "log")
    monkeypatch.setattr(LIGHTNING, "handlers", [file])
    with warnings.catch_warnings(record=True) as seen, quiet_lightning():
        warnings.simplefilter("default")
        warnings.warn_explicit("hint", UserWarning, "trainer.py", 1, module="pytorch_lightning.trainer")
        assert LIGHTNING.handlers == [file]
    file.close()
    assert len(seen) == 1


def test_other_warnings_are_shown(monkeypatch):
    with warnings.catch_warnings(record=True) as seen:
        warnings.resetwarnings()
        with quiet_lightning():
            warnings.warn_explicit("hint", UserWarning, "trainer.py", 1, module="pytorch_lightning.trainer")
            warnings.warn_explicit("mine", UserWarning, "callback.py", 1, module="my_callback")
    assert [str(warning.message) for warning in seen] == ["mine"]

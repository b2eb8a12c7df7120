"""Console and log file."""

from __future__ import annotations

import logging
import os
import warnings

import pytest
from _pytest.logging import LogCaptureHandler
from rich.table import Table

from rtdetr_tool.log import close_log_file, console, escape_controls, open_log_file, set_up_console
from rtdetr_tool.redaction import mask_secrets

logger = logging.getLogger("rtdetr_tool.some.place")


@pytest.fixture
def log_file(tmp_path):
    path = tmp_path / "log.txt"
    handler = open_log_file(path)
    yield path
    close_log_file(handler)


@pytest.fixture(autouse=True)
def console_for_rank_zero():
    set_up_console(0)
    yield
    set_up_console(0)


class TestConsole:
    def test_information_is_shown_as_it_is_and_details_are_not(self, capsys):
        logger.debug("a detail")
        logger.info("[bold]not markup[/bold] %s", 3)
        shown = capsys.readouterr()
        assert shown.err == "[bold]not markup[/bold] 3\n"
        assert shown.out == ""

    def test_long_lines_are_not_broken_where_nobody_looks_at_a_terminal(self, capsys):
        logger.info("word " * 100)
        assert capsys.readouterr().err.count("\n") == 1

    def test_setting_up_twice_shows_once(self, capsys):
        set_up_console(0)
        logger.info("once")
        assert capsys.readouterr().err == "once\n"

    def test_other_processes_show_errors_only(self, capsys):
        set_up_console(1)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn("a library complains", UserWarning, stacklevel=1)
        finally:
            logging.captureWarnings(False)
        logger.warning("quiet")
        logger.error("loud")
        assert capsys.readouterr().err == "loud\n"


class TestLogFile:
    def test_it_holds_details_level_place_and_traceback(self, log_file, capsys):
        try:
            raise ZeroDivisionError("by nothing")
        except ZeroDivisionError:
            logger.debug("traceback", exc_info=True)
        text = log_file.read_text()
        assert "DEBUG   rtdetr_tool.some.place: traceback" in text
        assert "ZeroDivisionError: by nothing" in text
        assert capsys.readouterr().err == ""

    def test_warnings_of_libraries_go_there_and_not_to_the_console(self, log_file, capsys):
        warnings.warn("a library complains", UserWarning, stacklevel=1)
        logging.getLogger("pytorch_lightning.utilities.rank_zero").warning("Lightning complains")
        text = log_file.read_text()
        assert "a library complains" in text
        assert "Lightning complains" in text
        assert capsys.readouterr().err == ""

    def test_a_later_run_appends(self, tmp_path):
        path = tmp_path / "log.txt"
        for number in (1, 2):
            handler = open_log_file(path)
            logger.info("run %d", number)
            close_log_file(handler)
        assert "run 1" in path.read_text()
        assert "run 2" in path.read_text()

    def test_closing_leaves_warnings_and_loggers_as_they_were(self, tmp_path):
        before = warnings.filters[:], logging.getLogger("rtdetr_tool").handlers[:], logging.getLogger().handlers[:]
        close_log_file(open_log_file(tmp_path / "log.txt"))
        after = warnings.filters[:], logging.getLogger("rtdetr_tool").handlers[:], logging.getLogger().handlers[:]
        assert after == before


class TestTextsOfOthers:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("\x1b[2J\x1b]0;title\x07.png", r"\x1b[2J\x1b]0;title\x07.png"),
            ("a\rb\x08\x7f\x9b31m", r"a\rb\x08\x7f\x9b31m"),
            ("gpj.\u202eevil\u2028x", r"gpj.\u202eevil\u2028x"),
            (os.fsdecode(b"\xff.png"), r"\udcff.png"),
            ("a\tb\nc ü 猫 :smile: [red]", "a\tb\nc ü 猫 :smile: [red]"),
        ],
    )
    def test_what_a_terminal_obeys_is_written_out_and_the_rest_stays(self, text, shown):
        assert escape_controls(text) == shown

    def test_console_and_file_show_them_as_they_are(self, log_file, capsys):
        text = "\x1b[2J[/red]:smile:\udcff.png"
        record = logger.makeRecord(logger.name, logging.WARNING, __file__, 1, "cannot read %s", (text,), None)
        for handler in logging.getLogger("rtdetr_tool").handlers:
            if not isinstance(handler, LogCaptureHandler):  # could not send such text on to another process
                handler.handle(record)
        line = r"cannot read \x1b[2J[/red]:smile:\udcff.png" + "\n"
        assert capsys.readouterr().err == line
        assert log_file.read_text().endswith(line)

    def test_tables_know_no_markup_either(self, capsys):
        table = Table("class [b]", title="[/red] \x1b[2J")
        table.add_row("[bold]x[/bold] :cat: \x1b[2J")
        console().print(table)
        text = capsys.readouterr().err
        assert r"[bold]x[/bold] :cat: \x1b[2J" in text and r"[/red] \x1b[2J" in text and "class [b]" in text


class TestSecrets:
    @pytest.mark.parametrize(
        "text",
        [
            "WANDB_API_KEY=abcdef123456",
            "api_key: abcdef123456 and more",
            '{"api_key": "abcdef123456", "x": 1}',
            "{'encryption_key': 'abcdef123456'}",
            "encryption_key=abcdef123456",
            "password = abcdef123456",
            "https://user:abcdef123456@host/path",
        ],
    )
    def test_values_of_keys_and_passwords_are_masked(self, text):
        masked = mask_secrets(text)
        assert "abcdef123456" not in masked
        assert "***" in masked

    def test_values_of_secret_environment_variables_are_masked_wherever_they_stand(self, monkeypatch):
        monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
        assert mask_secrets("login with 0123456789abcdef failed") == "login with *** failed"

    @pytest.mark.parametrize("text", ["best tokens: 300 of 8400", "key points", "https://host:8080/path", "x=1"])
    def test_harmless_texts_stay(self, text):
        assert mask_secrets(text) == text

    def test_console_and_file_are_masked(self, log_file, capsys):
        logger.info("token=abcdef123456")
        logger.info("login with %s", "password=abcdef123456")
        assert "abcdef" not in log_file.read_text() + capsys.readouterr().err

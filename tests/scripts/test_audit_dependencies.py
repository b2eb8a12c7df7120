"""`make audit`: the script's handling of pip-audit's output, without requests to the services."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "audit_dependencies.py"

CLEAN = {"name": "numpy", "version": "2.4.6", "vulns": []}
WEAK = {
    "name": "pillow", "version": "1.0", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-2"], "fix_versions": ["1.1", "2"]}]
}  # fmt: skip
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.15.0)"}


@pytest.fixture
def audit(tmp_path):
    """Run the script with a fake pip-audit that prints one answer per service and fails like the real one."""

    def run(**answers) -> subprocess.CompletedProcess:
        program = tmp_path / "pip-audit"
        program.write_text(
            f"#!{sys.executable}\nimport sys\nanswer = {answers!r}[sys.argv[sys.argv.index('-s') + 1]]\n"
            "assert {'--no-deps', '--disable-pip', '-r'} <= set(sys.argv)\n"
            "print(answer) if answer.startswith('{') else sys.exit(answer)\n"
        )
        program.chmod(0o755)
        return subprocess.run([sys.executable, str(SCRIPT), str(program)], capture_output=True, text=True)

    return run


def answer(*rows: dict) -> str:
    return json.dumps({"dependencies": list(rows), "fixes": []})


def test_all_looked_up_and_none_weak_is_success(audit):
    run = audit(pypi=answer(CLEAN))
    assert (run.returncode, run.stdout) == (0, "1 packages checked (pypi), 0 with known vulnerabilities\n")


def test_a_weak_package_is_named_with_what_mends_it(audit):
    run = audit(pypi=answer(CLEAN, WEAK))
    assert run.returncode == 1
    assert "pillow 1.0: PYSEC-1 CVE-2; fixed in 1.1, 2" in run.stdout


def test_packages_passed_over_are_no_success(audit):
    run = audit(pypi=answer(CLEAN, UNKNOWN), osv=answer(CLEAN, UNKNOWN))
    assert run.returncode == 2
    assert "1 of 2 packages could not be checked" in run.stderr


def test_the_second_service_is_asked_where_the_first_knows_nothing(audit):
    assert audit(pypi=answer(UNKNOWN), osv=answer(WEAK)).returncode == 1
    assert audit(pypi="no route to host", osv=answer(CLEAN)).returncode == 0


def test_no_service_is_one_clear_line(audit):
    run = audit(pypi="no route to host", osv="name or service not known")
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr == (
        "The audit is incomplete: no package could be checked at pypi or osv (name or service not known)\n"
    )


def test_a_missing_program_is_logged(tmp_path):
    run = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path / "none")], capture_output=True, text=True)
    assert run.returncode == 2 and "No such file" in run.stderr and "Traceback" not in run.stderr

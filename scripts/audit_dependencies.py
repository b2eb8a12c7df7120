"""Check the packages in the lock files for known vulnerabilities in PyPI or OSV: `make audit`.

pip-audit skips packages without an answer from the service, and succeeds. Here that is a failure: exit code 0 means
that all packages were checked and have no known vulnerability, 1 that one has, 2 that not all could be checked.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-dev.lock")
SERVICES = ("pypi", "osv")
SECONDS = 600


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pip_audit", help="the program pip-audit")
    parser.add_argument("locks", nargs="*", default=[str(ROOT / name) for name in LOCKS], help="lock files")
    options = parser.parse_args()
    for service in SERVICES:
        rows, trouble = look_up(options.pip_audit, options.locks, service)
        unknown = [row for row in rows if "skip_reason" in row]
        if rows and not unknown and not trouble:
            break
    weak = [row for row in rows if row.get("vulns")]
    for row in weak:
        for entry in row["vulns"]:
            fixed = ", ".join(entry.get("fix_versions") or []) or "no version yet"
            names = " ".join([entry["id"], *entry.get("aliases", [])])
            print(f"{row['name']} {row['version']}: {names}; fixed in {fixed}")
    if trouble or unknown or not rows:
        what = f"{len(unknown)} of {len(rows)} packages" if rows else "no package"
        reason = trouble or f"{unknown[0]['skip_reason']}, ..."
        verb = "could not be checked" if rows else "could be checked"
        print(f"The audit is incomplete: {what} {verb} at {' or '.join(SERVICES)} ({reason})", file=sys.stderr)
        return 1 if weak else 2
    print(f"{len(rows)} packages checked ({service}), {len(weak)} with known vulnerabilities")
    return 1 if weak else 0


def look_up(pip_audit: str, locks: list[str], service: str) -> tuple[list[dict[str, Any]], str | None]:
    """A row per package ({name, version, vulns} or {name, skip_reason}), and the reason if the whole run failed."""
    files = [argument for lock in locks for argument in ("-r", lock)]
    command = [pip_audit, "--disable-pip", "--no-deps", "--format", "json", "--progress-spinner", "off", "-s", service]
    try:
        run = subprocess.run([*command, *files], capture_output=True, text=True, timeout=SECONDS)
        return json.loads(run.stdout)["dependencies"], None
    except subprocess.TimeoutExpired:
        return [], f"no answer within {SECONDS} s"
    except OSError as error:
        return [], f"{pip_audit}: {error.strerror}"
    except (ValueError, KeyError, TypeError):
        return [], (run.stderr.strip().splitlines() or ["no output from pip-audit"])[-1][:300]


if __name__ == "__main__":
    sys.exit(main())

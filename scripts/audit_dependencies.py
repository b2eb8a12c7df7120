"""Known weaknesses of the packages in the lock files, as PyPI or OSV know them: `make audit`.

pip-audit asks; where a service does not answer it passes the package over and succeeds. Here that counts: exit 0 says
that every package was looked up and none has a known weakness, 1 that one has, 2 that not all could be looked up.
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
            mended = ", ".join(entry.get("fix_versions") or []) or "no version yet"
            names = " ".join([entry["id"], *entry.get("aliases", [])])
            print(f"{row['name']} {row['version']}: {names}; mended in {mended}")
    if trouble or unknown or not rows:
        what = f"{len(unknown)} of {len(rows)} packages" if rows else "no package"
        reason = trouble or f"{unknown[0]['skip_reason']}, ..."
        verb = "could not be looked up" if rows else "could be looked up"
        print(f"Nothing is certain: {what} {verb} at {' or '.join(SERVICES)} ({reason})", file=sys.stderr)
        return 1 if weak else 2
    print(f"{len(rows)} packages looked up ({service}), {len(weak)} with known weaknesses")
    return 1 if weak else 0


def look_up(pip_audit: str, locks: list[str], service: str) -> tuple[list[dict[str, Any]], str | None]:
    """A row per package ({name, version, vulns} or {name, skip_reason}), and what went wrong as a whole."""
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
        return [], (run.stderr.strip().splitlines() or ["pip-audit says nothing"])[-1][:300]


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.audit [--json FILE] [--page FILE] [--only GROUP ...]`.

Ends with 1 when ours is looser than hardened docker or bubblewrap on a row without a reason, or
when one of these two or of ours gave no report.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GROUPS = ("ours", "bwrap", "docker", "runsc")


def say(text: str) -> None:
    """Progress."""
    sys.stderr.write(f"{text}\n")


def main() -> int:
    """Run, compare, write; the exit status."""
    from sandboxruntime.syscall_numbers import NUMBERS
    from tests.audit.compare import HELD_TO, compare, rows
    from tests.audit.peers import OURS, collect, listening
    from tests.audit.report import document, page
    from tests.benchmarks.facts import programs
    from tests.support import remove_cgroups

    parser = argparse.ArgumentParser(prog="python -m tests.audit", description="Compare sandboxes.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only", nargs="*", choices=GROUPS, default=[])
    given = parser.parse_args()
    try:
        with listening() as host:
            subjects = collect(host, set(given.only), say)
    finally:
        remove_cgroups()
    names = {number: name for name, number in NUMBERS["x86_64"].items()}
    found = {
        each.name: rows(each.report, host.facts, each.limits, names)
        for each in subjects if not each.failure
    }  # fmt: skip
    ours = {name: each for name, each in found.items() if name.startswith("ours")}
    compared = compare(ours, {name: each for name, each in found.items() if name not in ours})
    facts = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "Linux": platform.release(), "Python": platform.python_version(), **programs(),
    }  # fmt: skip
    told = [{"name": each.name, "how": each.how, "failure": each.failure} for each in subjects]
    if given.json:
        given.json.write_text(json.dumps(document(facts, told, compared), indent=1) + "\n")
    if given.page:
        given.page.write_text(page(facts, told, compared))
    bad = [row for row in compared if row.is_unexplained]
    for row in bad:
        values = {name: each.value for name, each in {**row.ours, **row.others}.items()}
        sys.stderr.write(f"looser, unexplained: {row.name}: {values}\n")
    wanted = set() if given.only else {*HELD_TO, *(f"ours, {profile}" for profile in OURS)}
    missing = sorted(wanted - set(found))
    for each in subjects:
        if each.failure:
            sys.stderr.write(f"no report: {each.name}: {each.failure}\n")
    return 1 if bad or missing else 0


if __name__ == "__main__":
    # The daemon's modules come from this tree, whatever the environment has installed.
    sys.path.insert(0, str(ROOT / "runtime"))
    sys.exit(main())

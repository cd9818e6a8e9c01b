"""`python -m tests.audit [--json FILE] [--page FILE] [--only GROUP ...]`.

Ends with 1 when ours is looser than another on a row without a reason, or when one gave no report.
`--judge FILE` runs nothing: it writes the page of a record, with the reasons that there are now.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GROUPS = ("ours", "bwrap", "docker", "runsc")


def say(text: str) -> None:
    """Progress."""
    sys.stderr.write(f"{text}\n")


def main() -> int:
    """Run or read, compare, write; the exit status."""
    from tests.audit.compare import HELD_TO
    from tests.audit.peers import OURS
    from tests.audit.report import page, text_of, unexplained

    parser = argparse.ArgumentParser(prog="python -m tests.audit", description="Compare sandboxes.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only", nargs="*", choices=GROUPS, default=[])
    parser.add_argument("--judge", type=Path, help="a record")
    given = parser.parse_args()
    record = json.loads(given.judge.read_text()) if given.judge else _run(set(given.only))
    if given.json:
        given.json.write_text(text_of(record))
    if given.page:
        given.page.write_text(page(record))
    bad = unexplained(record)
    for name in bad:
        say(f"looser, unexplained: {name}: {record['rows'][name]['values']}")
    for each in record["subjects"]:
        if each["failure"]:
            say(f"no report: {each['name']}: {each['failure']}")
    wanted = set() if given.only else {*HELD_TO, *(f"ours, {profile}" for profile in OURS)}
    missing = wanted - {each["name"] for each in record["subjects"] if not each["failure"]}
    return 1 if bad or missing else 0


def _run(only: set[str]) -> dict[str, Any]:
    """The record of all sandboxes, or of those groups."""
    from sandboxruntime.syscall_numbers import NUMBERS
    from tests.audit.compare import compare, rows
    from tests.audit.peers import collect, listening
    from tests.audit.report import document
    from tests.benchmarks.facts import programs
    from tests.support import remove_cgroups

    try:
        with listening() as host:
            subjects = collect(host, only, say)
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
    return document(facts, told, compared)


if __name__ == "__main__":
    # The daemon's modules come from this tree, whatever the environment has installed.
    sys.path.insert(0, str(ROOT / "runtime"))
    sys.exit(main())

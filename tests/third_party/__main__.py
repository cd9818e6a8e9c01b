"""`python -m tests.third_party [--only TOOL ...] [--json FILE] [--page FILE]`.

Ends with 1 when a tool found what it must not find. With --only, the rest of an existing
JSON file stays. `--of FILE --page FILE` runs nothing, and writes the page of that JSON file.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# tool -> the module that has it; each has a function `measure`
TOOLS = {
    "privileges": "tests.third_party.privileges",
    "seccomp": "tests.third_party.simulator",
    "stress-ng": "tests.third_party.stress",
    "trinity": "tests.third_party.trinity",
    "cpython": "tests.third_party.cpython",
}


def main() -> int:
    """Run, judge, write; the exit status."""
    from tests.support import heed_signals, remove_cgroups
    from tests.third_party.report import document, merged, page
    from tests.third_party.tools import Result, say

    parser = argparse.ArgumentParser(prog="python -m tests.third_party", description=__doc__)
    parser.add_argument("--only", nargs="*", choices=TOOLS, default=[])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--of", type=Path, help="a JSON file, whose page is written")
    given = parser.parse_args()
    if given.of and given.page:
        given.page.write_text(page(json.loads(given.of.read_text())))
        return 0
    heed_signals()
    results: dict[str, list[Result]] = {}
    try:
        for name in given.only or TOOLS:
            say(name)
            results[name] = importlib.import_module(TOOLS[name]).measure()
    finally:
        remove_cgroups()
    facts = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "Linux": platform.release(), "processors": os.cpu_count(),
        "Python": platform.python_version(),
    }  # fmt: skip
    found = document(facts, results)
    if given.json:
        old = json.loads(given.json.read_text()) if given.json.exists() else {}
        found = merged(old, found, list(TOOLS))
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    if given.page:
        given.page.write_text(page(found))
    problems = [text for each in results.values() for one in each for text in one.problems]
    for text in problems:
        say(f"not as it should be: {text}")
    return 1 if problems else 0


if __name__ == "__main__":
    # The daemon's modules come from this tree, whatever the environment has installed.
    sys.path.insert(0, str(ROOT / "runtime"))
    sys.exit(main())

"""Let every privileged operation of starts, ends and execs fail, with every errno.

    python -m tests.faults [--every N] [--errno NAME ...] [--only SCENARIO ...] [--rotate] [--json FILE]

Ends with 1 when user code ran, something leaked, an error named nothing or a next start failed.
A file of an earlier run keeps what it has of the scenarios, and errnos, that are not run.
"""

from __future__ import annotations

import argparse
import errno
import json
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults import scenarios, served
from tests.faults.record import ERRNOS
from tests.support import host_state, leaks, remove_cgroups

ALL = (*scenarios.SCENARIOS, *served.SERVED)


def main() -> int:
    """Run; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every Nth point (1)")
    parser.add_argument("--errno", nargs="+", choices=ERRNOS, default=list(ERRNOS))
    parser.add_argument("--only", nargs="+", choices=ALL, default=list(ALL))
    parser.add_argument("--rotate", action="store_true", help="one errno a point, in turn")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    asked: list[int] = []
    signal.signal(signal.SIGINT, lambda signum, _: asked.append(signum))  # ends it after a point
    before = host_state()
    before["scratch"].append(".boot")  # the first daemon on a data directory makes it
    clean = True
    try:
        for name in options.only:
            began = time.monotonic()
            codes = [getattr(errno, each) for each in options.errno]
            run = served.run if name in served.SERVED else scenarios.run
            found = run(
                name, codes, every=options.every, rotate=options.rotate, until=lambda: bool(asked)
            )
            for kind, items in leaks(before).items():
                if kind in ("mounts", "namespaces", "processes"):
                    continue  # other programs of this host have them; ours are in cgroups
                found.leaks.append(f"of the host: {kind}: {items}")
            clean = clean and found.is_clean()
            document = {
                "seconds": round(time.monotonic() - began),
                "errnos": "one a point, in turn" if options.rotate else options.errno,
                "every": options.every,
                **found.document(),
            }
            print(f"{name}: {json.dumps(document, indent=1)}", flush=True)
            if options.json:
                _add(options.json, name, document)
    finally:
        remove_cgroups()
    return 0 if clean else 1


def _add(path: Path, name: str, document: dict[str, Any]) -> None:
    """One scenario's findings in a file beside those of others, and of its own with other errnos."""
    known = json.loads(path.read_text()) if path.exists() else {}
    merged = {**known, name: together(known.get(name), document)}
    ordered = {name: merged[name] for name in ALL if name in merged}
    path.write_text(json.dumps(ordered, indent=1) + "\n")


def together(first: dict[str, Any] | None, second: dict[str, Any]) -> dict[str, Any]:
    """Two runs of a scenario as one, or the second where it has an errno of the first. Pure."""
    lists = first is not None and isinstance(first["errnos"], list)
    if first is None or not lists or not isinstance(second["errnos"], list):
        return second
    if set(first["errnos"]) & set(second["errnos"]) or first["every"] != second["every"]:
        return second
    both = {}
    for key, value in second.items():
        if isinstance(value, dict):
            both[key] = dict(sorted((Counter(first[key]) + Counter(value)).items()))
        else:
            both[key] = first[key] + value
    both["points"], both["every"] = max(first["points"], second["points"]), second["every"]
    both["refused at"] = dict(Counter(both["refused at"]).most_common())
    return both


if __name__ == "__main__":
    raise SystemExit(main())

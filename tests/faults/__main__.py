"""Let every privileged operation of starts, ends and execs fail, with every errno.

    python -m tests.faults [--every N] [--errno NAME ...] [--only SCENARIO ...] [--rotate] [--json FILE]

Ends with 1 when user code ran, something leaked, an error named nothing or a next start failed.
"""

from __future__ import annotations

import argparse
import errno
import json
import signal
import time
from pathlib import Path

from tests.faults.scene import ERRNOS, SCENARIOS, Found, at_point, baseline, count, scene
from tests.support import host_state, leaks, remove_cgroups


def main() -> int:
    """Run; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every Nth point (1)")
    parser.add_argument("--errno", nargs="+", choices=ERRNOS, default=list(ERRNOS))
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--rotate", action="store_true", help="one errno a point, in turn")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    before = host_state()
    found = Found()
    try:
        for scenario in options.only:
            codes = [getattr(errno, name) for name in options.errno]
            run(found, scenario, options.every, codes, rotate=options.rotate)
            print(f"{scenario}: {time.monotonic() - began:.0f} s", flush=True)
        for kind, items in leaks(before).items():
            if kind in ("mounts", "namespaces", "processes"):
                continue  # other programs of this host have them; ours are in cgroups
            found.leaks += [f"of the host: {kind}: {items}"]
    finally:
        remove_cgroups()
    print(json.dumps(found.document(), indent=1))
    if options.json:
        document = {"seconds": round(time.monotonic() - began), **found.document()}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if found.is_clean() else 1


def run(found: Found, scenario: str, every: int, codes: list[int], *, rotate: bool = False) -> None:
    """Every point of one scenario, in a launcher of its own; SIGINT ends it after a point."""
    with scene() as stage:
        stage.found = found
        held = baseline(stage)
        asked: list[int] = []
        signal.signal(signal.SIGINT, lambda signum, _: asked.append(signum))
        for turn, number in enumerate(range(1, count(stage, scenario) + 1, every)):
            if asked:
                found.problems.append(f"{scenario}: interrupted before operation {number}")
                return
            for code in [codes[turn % len(codes)]] if rotate else codes:
                at_point(stage, scenario, number, code, held)


if __name__ == "__main__":
    raise SystemExit(main())

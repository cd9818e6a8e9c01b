"""Let every privileged operation of starts, ends and execs fail, with every errno.

    python -m tests.faults [--every N] [--errno NAME ...] [--only SCENARIO ...] [--rotate]
                           [--json FILE [--page PAGE]]

Ends with 1 when user code ran, something leaked, an error named nothing or a next start failed.
A file of an earlier run keeps what it has of the scenarios that are not run, or are run with less.
"""

from __future__ import annotations

import argparse
import errno
import json
import signal
import time
from pathlib import Path

from tests.faults import figures, scenarios, served
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
    parser.add_argument("--page", type=Path, help="write the figures of FILE into a page")
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
            sampled = served.SERVED.get(name)
            every = options.every * (sampled.every if sampled else 1)
            rotate = options.rotate or (sampled is not None and sampled.every > 1)
            run = served.run if sampled else scenarios.run
            found = run(name, codes, every=every, rotate=rotate, until=lambda: bool(asked))
            for kind, items in leaks(before).items():
                if kind in ("mounts", "namespaces", "processes"):
                    continue  # other programs of this host have them; ours are in cgroups
                found.leaks.append(f"of the host: {kind}: {items}")
            clean = clean and found.is_clean()
            document = {
                "seconds": round(time.monotonic() - began),
                "errnos": "one a point, in turn" if rotate else options.errno,
                "every": every,
                "interrupted": bool(asked),
                **found.document(),
            }
            print(f"{name}: {json.dumps(document, indent=1)}", flush=True)
            if options.json and (reason := figures.keep(options.json, name, document)):
                print(f"{name}: not written to {options.json}: {reason}", flush=True)
            if asked:
                break
        if options.json and options.page and clean and not asked:
            record = json.loads(options.json.read_text())
            if dirty := figures.dirty(record):
                print(f"{options.page}: not written: {dirty} found something", flush=True)
                return 1
            options.page.write_text(figures.put_into(options.page.read_text(), record))
    finally:
        remove_cgroups()
    return 0 if clean and not asked else 1


if __name__ == "__main__":
    raise SystemExit(main())

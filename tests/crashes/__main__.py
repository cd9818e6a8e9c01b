"""Kill daemon and launcher at every step, and at random moments, with kernels standing by.

    python -m tests.crashes [--random 200] [--steps all|none] [--seed N] [--json FILE]

Ends with 1 when a kernel was lost, something leaked, or an operation hung or failed unclearly.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from sandboxkernel.models import KernelCreate
from tests.crashes.scene import PREPARED, Found, crash_at, crash_at_random, host_state, scene
from tests.support import remove_cgroups, run_inside, running_daemon, warm_up

ROLES = ("daemon", "launcher")


def main() -> int:
    """Run; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", type=int, default=200, metavar="N", help="random moments (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the first random moment")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every Nth step (1)")
    parser.add_argument("--adopt", type=int, default=100, metavar="N", help="kernels at once (100)")
    parser.add_argument("--only", choices=("steps", "random"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    parts: dict[str, Found] = {}
    took = adoption(options.adopt) if options.adopt else {}
    with tempfile.TemporaryDirectory(prefix="crashes-", dir="/srv") as work:
        if options.only != "random":
            parts["steps"] = at_every_step(Path(work), options.every)
        if options.only != "steps":
            parts["random"] = at_random(
                Path(work), range(options.seed, options.seed + options.random)
            )
    remove_cgroups()
    for name, found in parts.items():
        print(f"{name}: {sum(found.crashes.values())} crashes {dict(found.crashes)}, "
              f"failed clearly {dict(found.errors())}, lost {len(found.lost)}, "
              f"leaks {len(found.leaks)}, stuck {len(found.stuck)}")  # fmt: skip
        for problem in (*found.lost, *found.leaks, *found.stuck):
            print(f"  {problem}")
    print(f"adoption: {took}\n{time.monotonic() - began:.0f} s")
    if options.json:
        document = {"adoption": took, **{name: found.document() for name, found in parts.items()}}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if all(found.is_clean() for found in parts.values()) else 1


def adoption(count: int) -> dict[str, float]:
    """So many idle kernels of one user: how long the next daemon takes until it serves them."""
    with running_daemon(
        'c.SandboxKernelDaemon.grants = [{"user": "*", "max_kernels": 1000}]'
    ) as daemon:
        warm_up(daemon)
        client = daemon.client()
        ids = [client.create(KernelCreate(kernel_id=f"adopt-{n}")).id for n in range(count)]
        took: dict[str, float] = {"kernels": count}
        for role in ("daemon and launcher", "launcher"):
            began = time.monotonic()
            if role == "launcher":
                os.kill(daemon.launcher, signal.SIGKILL)
            else:
                daemon.kill()
                daemon.start()
            # The launcher answers only when it has adopted all of them.
            assert run_inside(daemon, client.inspect(ids[-1]), "true")[0] == 0
            took[f"{role}, s"] = round(time.monotonic() - began, 2)
        assert all(client.inspect(each).state == "running" for each in ids)
        return took


def at_every_step(work: Path, every: int) -> Found:
    """Each operation again and again, with the trap one effect later each time."""
    with scene(work, trapped=True) as stage:
        before = host_state()
        for name in PREPARED:
            for role in ROLES:
                number = 1
                while crash_at(stage, role, name, number):
                    sys.stderr.write(f"\r{role} in {name}: {number}   ")
                    number += every
                stage.check_leaks(before, f"{role} in {name}")
        sys.stderr.write("\n")
        return stage.found


def at_random(work: Path, seeds: range) -> Found:
    """Random operations and moments."""
    with scene(work, trapped=False) as stage:
        before = host_state()
        for seed in seeds:
            crash_at_random(stage, seed)
            sys.stderr.write(f"\rseed {seed}   ")
            if seed % 20 == 19:
                stage.check_leaks(before, f"seed {seed}")
        stage.check_leaks(before, "the last one")
        sys.stderr.write("\n")
        return stage.found


if __name__ == "__main__":
    sys.exit(main())

"""The command line of the benchmarks.

    python -m tests.benchmarks [--only GROUP ...] [--blocks N] [--json FILE] [--quick]

Needs root, as the daemon does. Exit codes: 0 measured, 1 failed, 2 wrong use, or the machine is
too busy for a verdict.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from sandboxkernel.models import Image
from tests.benchmarks import facts
from tests.benchmarks.bench import CONFIG, SCRATCH, Bench, Size, say, talking_to
from tests.benchmarks.groups import GROUPS, Group
from tests.benchmarks.peers import precompile
from tests.benchmarks.report import summarise
from tests.benchmarks.results import Results, to_document
from tests.support import RunningDaemon, remove_cgroups, running_daemon, warm_up

__all__ = ["main"]

EXIT_BUSY, EXIT_TERMINATED = 2, 128 + signal.SIGTERM
QUICK_BLOCKS = 3


@dataclass(frozen=True, slots=True)
class Options:
    """The command line, checked."""

    groups: tuple[Group, ...]
    blocks: int | None
    json: Path | None
    quick: bool
    wait_s: float
    even_if_busy: bool


def _parser() -> argparse.ArgumentParser:
    shown = "\n".join(
        f"  {g.name:11}{'' if g.usual else '(only when named) '}{g.summary}" for g in GROUPS
    )
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measure sandboxed kernels beside plain ones and print a Markdown report.\n"
        "Peers take turns in interleaved blocks; a failed start counts as infinitely slow.",
        epilog=f"groups:\n{shown}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [group.name for group in GROUPS]
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="GROUP",
        choices=names,
        action="extend",
        help="measure these groups instead of the usual ones",
    )
    parser.add_argument(
        "--blocks",
        type=int,
        metavar="N",
        help="blocks of the groups that start kernels one by one; default: each group's own number",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write samples and facts, for tests.benchmarks.report",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small numbers: to see that it works, not to believe the figures",
    )
    parser.add_argument(
        "--wait-quiet",
        type=float,
        default=180.0,
        metavar="SECONDS",
        help="how long to wait for a quiet machine before giving up (180)",
    )
    parser.add_argument(
        "--even-if-busy",
        action="store_true",
        help="measure a busy machine; the report says so and gives no verdict",
    )
    return parser


def parse(argv: list[str]) -> Options:
    """Parse the command line; exits with 2 when it is wrong."""
    parser = _parser()
    given = parser.parse_args(argv)  # fmt: skip
    if given.blocks is not None and given.blocks < 1:
        parser.error("--blocks is not 1 or more")
    chosen = [g for g in GROUPS if (g.name in given.only if given.only else g.usual)]
    return Options(tuple(chosen), given.blocks, given.json, given.quick, given.wait_quiet,
                   given.even_if_busy)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run with a daemon of our own; the exit code."""
    options = parse(sys.argv[1:] if argv is None else argv)
    if os.geteuid() != 0:
        say("benchmarks need root, as the daemon does")
        return 1
    # Kernels, daemons and mounts are taken down on the way out; a signal's default would skip it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    precompile()
    reason = _wait_until_quiet(options.wait_s)
    if reason and not options.even_if_busy:
        say(f"no verdict: {reason}")
        return EXIT_BUSY
    results = Results()
    try:
        with running_daemon(CONFIG) as daemon, talking_to(daemon):
            _measure(options, daemon, results, reason)
    finally:
        remove_cgroups()
    if options.json:
        _write(options.json, results)
    print(summarise(results))
    return 0


def _wait_until_quiet(wait_s: float) -> str:
    """Why the machine is still busy after `wait_s`; empty once it is quiet."""
    deadline = time.monotonic() + wait_s
    while reason := facts.why_busy():
        if time.monotonic() > deadline:
            return reason
    return ""


def _measure(options: Options, daemon: RunningDaemon, results: Results, busy: str) -> None:
    client = daemon.client()
    *_, image = client.prepare_image("host")
    assert isinstance(image, Image)
    scratch = SCRATCH / image.digest.split(":")[1][:12]
    scratch.mkdir(parents=True, exist_ok=True)
    disturbed: dict[str, str] = {"begin": busy} if busy else {}
    results.facts = {**facts.collect(client, image), "quick": options.quick,
                     "groups": {}, "disturbed": disturbed}  # fmt: skip
    warm_up(daemon)
    began = facts.CpuTimes.now()
    bench = Bench(daemon, client, image, scratch, Size(1, options.quick), results)
    for group in options.groups:
        if reason := facts.others_busy():
            disturbed[group.name] = reason
            say(f"{group.name}: {reason}")
        blocks = options.blocks or (QUICK_BLOCKS if options.quick else group.blocks)
        started = time.monotonic()
        group.measure(replace(bench, size=Size(blocks, options.quick)))
        results.facts["groups"][group.name] = round(time.monotonic() - started)
        results.facts["zygotes_mib"] = facts.zygotes(client)
    steal = facts.CpuTimes.now().since(began).steal_percent
    results.facts["steal_percent"] = round(steal, 2)
    if steal > facts.STEAL_MAX:
        disturbed["run"] = f"the hypervisor took {steal:.1f} % of the time"


def _write(path: Path, results: Results) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(to_document(results), indent=1) + "\n")
    say(f"written: {path}")

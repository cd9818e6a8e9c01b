"""Run targets under atheris (libFuzzer), one process each; what is found is written and named.

PYTHONPATH=.:runtime python -m tests.fuzz --seconds 600    # what `make fuzz-guided` runs
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.fuzz import figures, outside, product, runtime
from tests.support import ROOT

__all__ = ["CORPUS", "TARGETS", "Outcome", "run_target", "todays_seed"]

CORPUS = Path(__file__).parent / "corpus"
TARGETS = {
    f.__name__: (f, seeds)
    for part in (runtime, outside, product)
    for f, seeds in part.TARGETS.items()
}
LENGTH_MAX = 8192  # bytes of an input
_PROGRESS = re.compile(rb"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+)")


@dataclass(frozen=True)
class Outcome:
    """How often a target ran, how many points of the code it reached, and what went wrong."""

    executions: int
    coverage: int
    finding: str


def run_target(name: str, *options: str, seed: int, corpus: Path | None = None) -> Outcome:
    """Run one target. `options` are libFuzzer's; `corpus` is kept, and grows.

    The same seed and number of runs make up the same inputs.
    """
    with tempfile.TemporaryDirectory(prefix="sandboxkernel-fuzz-", dir="/dev/shm") as scratch:
        seeds = Path(scratch) / "seeds"
        seeds.mkdir()
        for index, example in enumerate(TARGETS[name][1]):
            (seeds / str(index)).write_bytes(example)
        if (CORPUS / name).is_dir():
            shutil.copytree(CORPUS / name, seeds, dirs_exist_ok=True)
        kept = (corpus or Path(scratch) / "corpus").resolve() / name
        kept.mkdir(parents=True, exist_ok=True)
        found = Path(scratch) / "found"
        found.mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.one", name, str(kept), str(seeds),
             f"-max_len={LENGTH_MAX}", "-timeout=20", "-rss_limit_mb=1024", "-verbosity=1",
             f"-seed={seed}",
             f"-artifact_prefix={found}/", *options],
            capture_output=True,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": scratch},  # libFuzzer ends without a farewell
        )  # fmt: skip
        progress = _PROGRESS.findall(done.stderr)
        executions, coverage, _ = progress[-1] if progress else (0, 0, 0)
        finding = ""
        if done.returncode != 0:
            inputs = b"\n".join(path.read_bytes() for path in found.iterdir())
            text = (done.stdout or done.stderr).decode(errors="replace")
            finding = f"{inputs!r}\n{text[-2000:]}"
            for path in found.iterdir():
                shutil.copy(path, kept / f"found-{path.name}")
        return Outcome(int(executions), int(coverage), finding)


def todays_seed() -> int:
    """Another one every day: a number that is a date says by itself how to have the run again."""
    return int(datetime.datetime.now(datetime.UTC).strftime("%Y%m%d"))


def _run(names: Sequence[str], seconds: int, seed: int, corpus: Path | None) -> dict[str, Any]:
    """Every target in turn, told as it ends; their part of the record."""
    readers: dict[str, Any] = {}
    for name in names:
        began = time.monotonic()
        outcome = run_target(
            name, f"-max_total_time={max(1, seconds // len(names))}", seed=seed, corpus=corpus
        )
        sys.stdout.write(
            f"{name}: {outcome.executions} executions, {outcome.coverage} points reached\n"
        )
        if outcome.finding:
            sys.stdout.write(f"FOUND, again by {name} --seed {seed}: {outcome.finding}\n")
        sys.stdout.flush()
        readers[name] = {
            "inputs": outcome.executions,
            "seconds": round(time.monotonic() - began),
            "points": outcome.coverage,
            "finding": outcome.finding,
        }
    return readers


def _main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz what reads others' bytes.")
    parser.add_argument("target", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=600, help="in all")
    parser.add_argument("--seed", type=int, default=todays_seed(), help="today's date")
    parser.add_argument("--corpus", type=Path, help="a directory that is kept, and grows")
    parser.add_argument("--json", type=Path, help="the record of a run of every target")
    parser.add_argument("--page", type=Path, help="write the figures of the record into a page")
    options = parser.parse_args()
    if unknown := set(options.target) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}")
    if options.json and options.target:
        parser.error("a record is of every target")
    names = options.target or list(TARGETS)
    record = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {
            "Linux": platform.release(),
            "Python": platform.python_version(),
            **{name: version(name) for name in ("atheris", "msgspec")},
        },
        "seed": options.seed,
        "seconds": options.seconds,
        "readers": _run(names, options.seconds, options.seed, options.corpus),
    }
    findings = figures.found_something(record)
    if options.json:
        if reason := figures.keep(options.json, record):
            sys.stdout.write(f"not written to {options.json}: {reason}\n")
        elif options.page and not findings:
            options.page.write_text(figures.put_into(options.page.read_text(), record))
    sys.exit(1 if findings else os.EX_OK)


if __name__ == "__main__":
    _main()

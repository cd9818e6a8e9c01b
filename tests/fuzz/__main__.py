"""Run targets under atheris (libFuzzer), one process each; what is found is written and named.

PYTHONPATH=.:runtime python -m tests.fuzz --seconds 600    # what `make fuzz-guided` runs
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import product, runtime
from tests.support import ROOT

__all__ = ["CORPUS", "TARGETS", "Outcome", "run_target"]

CORPUS = Path(__file__).parent / "corpus"
TARGETS = {
    f.__name__: (f, seeds) for part in (runtime, product) for f, seeds in part.TARGETS.items()
}
LENGTH_MAX = 8192  # bytes of an input
_PROGRESS = re.compile(rb"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+)")


@dataclass(frozen=True)
class Outcome:
    """How often a target ran, how many points of the code it reached, and what went wrong."""

    executions: int
    coverage: int
    finding: str


def run_target(name: str, *options: str, corpus: Path | None = None) -> Outcome:
    """Run one target. `options` are libFuzzer's; `corpus` is kept, and grows."""
    with tempfile.TemporaryDirectory(prefix="sandboxkernel-fuzz-", dir="/dev/shm") as scratch:
        seeds = Path(scratch) / "seeds"
        seeds.mkdir()
        for index, seed in enumerate(TARGETS[name][1]):
            (seeds / str(index)).write_bytes(seed)
        if (CORPUS / name).is_dir():
            shutil.copytree(CORPUS / name, seeds, dirs_exist_ok=True)
        kept = (corpus or Path(scratch) / "corpus").resolve() / name
        kept.mkdir(parents=True, exist_ok=True)
        found = Path(scratch) / "found"
        found.mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.one", name, str(kept), str(seeds),
             f"-max_len={LENGTH_MAX}", "-timeout=20", "-rss_limit_mb=1024", "-verbosity=1",
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


def _main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz what reads others' bytes.")
    parser.add_argument("target", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=600, help="in all")
    parser.add_argument("--corpus", type=Path, help="a directory that is kept, and grows")
    options = parser.parse_args()
    if unknown := set(options.target) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}")
    names = options.target or list(TARGETS)
    each = max(1, options.seconds // len(names))
    findings = 0
    for name in names:
        outcome = run_target(name, f"-max_total_time={each}", corpus=options.corpus)
        findings += bool(outcome.finding)
        sys.stdout.write(
            f"{name}: {outcome.executions} executions, {outcome.coverage} points reached\n"
        )
        if outcome.finding:
            sys.stdout.write(f"FOUND {outcome.finding}\n")
        sys.stdout.flush()
    sys.exit(1 if findings else os.EX_OK)


if __name__ == "__main__":
    _main()

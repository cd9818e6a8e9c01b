"""Every stressor of stress-ng in a sandbox with caps, beside a victim, on a host that is watched.

One sandbox for each stressor, because one that runs out of memory is ended as a whole. What counts
is what the outside sees: a stressor may fail, the host may not.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.conformance.session import session
from tests.support import running_daemon
from tests.third_party.tools import Result, image_with, package, say, with_image
from tests.third_party.torment import CAPS, CONFIG, HEAD, Seen, failures, figures, observe
from tests.third_party.watch import SAME, Watch

__all__ = ["CLASSES", "EXCLUDED", "Run", "judged", "measure", "result", "run_classes"]

WORKERS, SECONDS, GIVE_UP_S = 2, 1, 40.0
WORK = Path("/srv/sandboxkernel-stress")
# Small classes first: a stressor counts to the first class that has it.
CLASSES = ("gpu", "security", "device", "pipe", "network", "interrupt", "scheduler", "cpu",
           "cpu-cache", "io", "filesystem", "vm", "memory", "os")  # fmt: skip
# stressor -> why it does not run
EXCLUDED: Mapping[str, str] = {}
# Words of one that found that it cannot do its work, which ends with 0 all the same, or that
# stress-ng keeps for a machine that may hang (--pathological), which ends with 1.
SKIPPED = re.compile(
    r"will be skipped|skipping|disabled '|No stress workers invoked|finished prematurely|not (?:supported|"
    r"implemented)"
)
# stress-ng(1), EXIT STATUS
STATUS = {0: "passed", 2: "failed", 3: "refused", 4: "refused", 5: "killed", 6: "failed"}
KINDS = ("passed", "refused", "failed", "out of memory", "killed", "stuck")


@dataclass(slots=True)
class Run:
    """One stressor: what became of it, in its own words, and what was seen from outside."""

    fate: str
    said: list[str]
    seen: Seen


def measure() -> list[Result]:
    """A table of classes."""
    return [result(*run_classes(CLASSES))]


def run_classes(names: tuple[str, ...]) -> tuple[dict[str, list[Run]], list[str]]:
    """The runs of some classes, and what was not as it should be."""
    WORK.mkdir(exist_ok=True)
    runs: dict[str, list[Run]] = {}
    problems: list[str] = []
    with image_with("stress-ng") as image, running_daemon(CONFIG + with_image(image)) as daemon:
        os.environ["SANDBOXKERNEL_HOST"] = f"unix://{daemon.socket_path}"
        with session(WORK) as victim:
            victim.run("1")
            watch = Watch()
            for name in names:
                runs[name] = []
                for stressor in _stressors(name):
                    seen = observe(
                        daemon.client(), victim, stressor,
                        ["stress-ng", f"--{stressor}", str(WORKERS), "--timeout", str(SECONDS),
                         "--temp-path", "."], give_up_s=GIVE_UP_S,
                    )  # fmt: skip
                    runs[name].append(judged(seen))
                    problems += seen.broken()
                problems += [f"after class {name}: {text}" for text in watch.changes()]
                problems += [f"in class {name}, daemon: {text}" for text in failures(daemon)]
                say(f"{name}: {dict(collections.Counter(each.fate for each in runs[name]))}")
    with contextlib.suppress(OSError):
        WORK.rmdir()
    return runs, problems


def _stressors(wanted: str) -> list[str]:
    """Those of a class that no class before it has."""
    seen = set(EXCLUDED)
    found: list[str] = []
    for name in CLASSES[: CLASSES.index(wanted) + 1]:
        shown = subprocess.run(
            ["stress-ng", "--class", f"{name}?"], capture_output=True, text=True, check=False
        )
        _, _, listed = (shown.stdout + shown.stderr).partition("stressors:")
        found = [each for each in listed.split() if each not in seen]
        seen |= set(found)
    return found


def judged(seen: Seen) -> Run:
    """What became of a stressor. Pure, but that the output is taken away."""
    said = _said(seen.output)
    seen.output = ""
    if not seen.reason:
        return Run("stuck", said, seen)
    if seen.reason == "oom_killed":
        return Run("out of memory", said, seen)
    fate = STATUS.get(seen.code if seen.code is not None else -1, "killed")
    skipped = any(SKIPPED.search(line) for line in said)
    return Run("refused" if skipped and seen.code in (0, 1) else fate, said, seen)


def _said(text: str) -> list[str]:
    """Why it failed or did nothing, in its own words."""
    told = re.findall(r"stress-ng: (?:fail|error|warn|info):\s+\[\d+\] (.*)", text)
    kept = [line for line in told
            if not re.match(r"setting|dispatching|successful|unsuccess|no CPUs found", line)]  # fmt: skip
    return list(dict.fromkeys(re.sub(r"\[\d+\]|\bPID \d+|pid=\d+", "", line) for line in kept))[:3]


def result(runs: Mapping[str, list[Run]], problems: list[str]) -> Result:
    """The table."""
    every = [run for each in runs.values() for run in each]
    made = Result(
        "stress-ng",
        package("stress-ng"),
        f"Each of {len(every)} stressors, {WORKERS} workers for {SECONDS} s, in a sandbox of its own with "
        f"{CAPS}, on {os.cpu_count()} processors; a class has what no class above it has",
        ("class", "stressors", *KINDS, *HEAD),
        problems=problems,
        details={name: [asdict(run) for run in each] for name, each in runs.items()},
    )
    for name, each in {**runs, "all": every}.items():
        if each:
            fates = collections.Counter(run.fate for run in each)
            counts = [str(fates[kind]) for kind in KINDS]
            made.rows.append([name, str(len(each)), *counts, *figures([run.seen for run in each])])
    made.notes += [
        "*Refused* is a stressor that finds that it cannot do its work there, or that this build does "
        "not have; *out of memory* ends the whole sandbox, as it is meant to. After every class the host "
        f"was compared with before: {SAME}. Others worked on the machine at the same time.",
        _failures(every),
        "Did not end by themselves, and ended with their sandboxes: "
        f"{', '.join(run.seen.name for run in every if run.fate == 'stuck') or 'none'}.",
        *(f"Does not run: {name}: {reason}." for name, reason in EXCLUDED.items()),
    ]
    return made


def _failures(runs: list[Run]) -> str:
    failed = [run for run in runs if run.fate in ("failed", "killed")]
    if not failed:
        return "No stressor failed."
    told = "; ".join(f"{run.seen.name} ({(run.said or ['no word'])[0]})" for run in failed)
    return f"Failed, or killed, in their own words: {told}."

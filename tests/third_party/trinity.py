"""trinity, which calls Linux with made-up arguments, in sandboxes with caps, beside a victim."""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import asdict
from pathlib import Path

from tests.conformance.session import session
from tests.support import running_daemon
from tests.third_party.tools import Result, image_with, package, say, with_image
from tests.third_party.torment import CAPS, CONFIG, HEAD, Seen, failures, figures, observe
from tests.third_party.watch import SAME, Watch

__all__ = ["measure"]

WORK = Path("/srv/sandboxkernel-trinity")
CHILDREN = 8
# What it is told, and for how many seconds. It crashes where it makes sockets of families that there
# are none of, and waits for ever for children that a call of the 32-bit table has killed.
ROUNDS = {
    "all calls": ("-a 64 --disable-fds=sockets", 40.0),
    "files (-g vfs)": ("-a 64 --disable-fds=sockets -g vfs", 30.0),
    "memory (-g vm)": ("-a 64 --disable-fds=sockets -g vm", 20.0),
    "sockets of one family (-P INET)": ("-a 64 -P INET", 20.0),
    "both tables": ("--disable-fds=sockets", 10.0),
}
COUNT = re.compile(r"Ran (\d+) syscalls\. Successes: (\d+) +Failures: (\d+)")
CALLS, GIVE_UP_S = 10_000, 12.0  # of one sandbox


def measure() -> list[Result]:
    """A table of rounds."""
    WORK.mkdir(exist_ok=True)
    result = Result(
        "trinity",
        package("trinity"),
        f"{CHILDREN} children, at most {CALLS} calls and {GIVE_UP_S:g} s a sandbox, one sandbox after the other for "
        f"{sum(seconds for _, seconds in ROUNDS.values()):.0f} s, each with {CAPS}; no logs, seeds from 1",
        ("calls", "seconds", "sandboxes", "calls counted", "succeeded", "ended with", *HEAD),
    )
    with image_with("trinity") as image, running_daemon(CONFIG + with_image(image)) as daemon:
        os.environ["SANDBOXKERNEL_HOST"] = f"unix://{daemon.socket_path}"
        with session(WORK) as victim:
            victim.run("1")
            watch = Watch()
            for name, (options, seconds) in ROUNDS.items():
                began, seen = time.monotonic(), list[Seen]()
                while (left := seconds - (time.monotonic() - began)) > 0.5:
                    command = (f"cd /tmp; exec trinity -q -l off -C {CHILDREN} -N {CALLS} "
                               f"-s {len(seen) + 1} {options}")  # fmt: skip
                    client = daemon.client()
                    seen.append(
                        observe(
                            client,
                            victim,
                            name,
                            ["sh", "-c", command],
                            give_up_s=min(left, GIVE_UP_S),
                        )
                    )
                    result.problems += seen[-1].broken()
                result.problems += [f"after {name}: {text}" for text in watch.changes()]
                result.rows.append([name, f"{seconds:.0f}", *_row(seen)])
                result.details[name] = [
                    asdict(each) | {"output": each.output[-160:].rpartition("[main]")[2]}
                    for each in seen
                ]
                say(f"trinity: {result.rows[-1]}")
            result.problems += [f"daemon: {text}" for text in failures(daemon)]
    with contextlib.suppress(OSError):
        WORK.rmdir()
    result.notes.append(
        "Calls are counted where trinity came to its end; a sandbox is removed, or trinity is ended "
        "by one of its own calls, before that. After every row the host was compared with before: "
        f"{SAME}. Others worked on the machine at the same time."
    )
    return [result]


def _row(seen: list[Seen]) -> list[str]:
    counts = [tuple(map(int, found)) for each in seen for found in COUNT.findall(each.output)]
    ends = dict.fromkeys(sorted(_end(each) for each in seen), 0)
    for each in seen:
        ends[_end(each)] += 1
    return [
        str(len(seen)), str(sum(each[0] for each in counts)), str(sum(each[1] for each in counts)),
        ", ".join(f"{number}x {name}" for name, number in ends.items()), *figures(seen),
    ]  # fmt: skip


def _end(seen: Seen) -> str:
    if not seen.reason:
        return "its removal"
    return f"exit code {seen.code}" if seen.reason == "exited" else seen.reason

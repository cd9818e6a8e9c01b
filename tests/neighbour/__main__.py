"""A victim's cells and file writes, quiet and beside each bomb: `python -m tests.neighbour`.

Quiet, bomb, quiet, for each bomb; ratios are to the quiet phases around it. Afterwards the host is
compared with what it was. Reports, and ends with 1 when something was left; an answer of the daemon's
that fails ends it at once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandboxkernel.models import ExitInfo, KernelCreate
from tests.conformance.session import Session, session
from tests.neighbour.bombs import AGAIN, BOMBS, SWAPPING
from tests.support import (
    RunningDaemon,
    host_state,
    leaks,
    remove_cgroups,
    running_daemon,
    wait_until,
    warm_up,
)

PROCESSORS = os.cpu_count() or 1
# Victim and bomb have half of the host's processors each.
LIMITS = {"memory": "512M", "cpus": PROCESSORS / 2, "pids": 128}
PROFILES = {
    "default": {"limits": LIMITS},
    "bomb": {"limits": LIMITS, "ephemeral": True},
    "swapping-bomb": {"limits": {**LIMITS, "swap": "256M"}, "ephemeral": True},
}
CONFIG = f"c.SandboxKernelDaemon.profiles = {PROFILES}\n"
WRITES = """
import os, time
def timed(sync):
    began = time.perf_counter()
    fd = os.open("/home/sandbox/.victim", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.write(fd, bytes(16384))
    if sync: os.fsync(fd)
    os.close(fd)
    return time.perf_counter() - began
print([timed(False) for _ in range({count})], [timed(True) for _ in range({count} // 4)])
"""
BOMB_STARTS_S = 1.0
BEGIN, END = "<!-- make neighbour -->\n", "<!-- end of make neighbour -->\n"
HEAD = """\
| bomb | cell | write | synced write | daemon | ends as |
|---|---|---|---|---|---|
"""
KINDS = ("cell", "write", "synced write", "daemon")


@dataclass
class Phase:
    """Seconds of each kind."""

    samples: dict[str, list[float]]

    def quantile(self, kind: str, share: float) -> float:
        values = sorted(self.samples[kind])
        return values[min(len(values) - 1, int(share * len(values)))]


def main() -> int:
    """Run; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=200, help="round trips a phase (200)")
    parser.add_argument("--only", choices=BOMBS, action="append")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="write the table of the record into a page")
    options = parser.parse_args()
    work = Path("/srv/sandboxkernel-neighbour")
    work.mkdir(exist_ok=True)
    rows: dict[str, Any] = {}
    with running_daemon(CONFIG) as daemon:
        os.environ["SANDBOXKERNEL_HOST"] = f"unix://{daemon.socket_path}"
        warm_up(daemon)
        with session(work) as victim:
            before = host_state()
            measure(daemon, victim, options.cells)  # warms up
            for name in options.only or BOMBS:
                rows[name] = beside(daemon, victim, name, options.cells)
                left = leaks(before)
                rows[name]["left"] = {kind: items[:3] for kind, items in left.items()}
                print(line(name, rows[name]), flush=True)
    remove_cgroups()
    work.rmdir()
    if options.json:
        keep(options.json, rows)
    if options.json and options.page:
        record = json.loads(options.json.read_text())
        options.page.write_text(put_into(options.page.read_text(), record))
    return 1 if any(row["left"] for row in rows.values()) else 0


def keep(path: Path, rows: dict[str, Any]) -> None:
    """Write the record. Bombs that were not asked for keep what the same machine had measured."""
    machine = {"linux": platform.release(), "processors": PROCESSORS}
    known = json.loads(path.read_text()) if path.exists() else {}
    if any(known.get(key) != value for key, value in machine.items()):
        known = {}
    bombs = {**known.get("bombs", {}), **rows}
    document = {
        **machine,
        "swap MiB": _swap_mib(),
        "bombs": {name: bombs[name] for name in BOMBS if name in bombs},
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def _swap_mib() -> int:
    """What the host has (proc_meminfo(5))."""
    line = next(x for x in Path("/proc/meminfo").read_text().splitlines() if "SwapTotal" in x)
    return int(line.split()[1]) >> 10


def beside(daemon: RunningDaemon, victim: Session, name: str, cells: int) -> dict[str, Any]:
    """The ratios of one bomb, and what became of it."""
    quiet = [measure(daemon, victim, cells // 2)]
    with exploding(daemon, name) as ended:
        loud = measure(daemon, victim, cells)
        fate = ended()
    quiet.append(measure(daemon, victim, cells // 2))
    both = Phase({kind: [s for one in quiet for s in one.samples[kind]] for kind in KINDS})
    row: dict[str, Any] = {"fate": fate}
    for kind in KINDS:
        row[kind] = {
            f"p{round(share * 100)}": round(loud.quantile(kind, share) / both.quantile(kind, share), 2)
            for share in (0.5, 0.99)
        } | {"quiet p50 ms": round(both.quantile(kind, 0.5) * 1000, 2)}  # fmt: skip
    return row


@contextmanager
def exploding(daemon: RunningDaemon, name: str) -> Iterator[Callable[[], str]]:
    """A sandbox with the bomb in it; yields a function that tells how it fares."""
    if name in AGAIN:
        with again_and_again(daemon, name) as ends:
            time.sleep(BOMB_STARTS_S)
            yield lambda: fate_of(ends)
        return
    client = daemon.client()
    kernel = client.create(_request(name))
    time.sleep(BOMB_STARTS_S)
    try:
        yield lambda: getattr(client.inspect(kernel.id).exit, "reason", None) or "runs"
    finally:
        client.remove(kernel.id)
        wait_until(lambda: kernel.id not in {k.id for k in client.kernels()})


def _request(name: str) -> KernelCreate:
    return KernelCreate(
        kernel_id=f"bomb-{time.monotonic_ns()}",
        argv=["python3", "-c", BOMBS[name]],
        profile="swapping-bomb" if name == SWAPPING else "bomb",
    )


@contextmanager
def again_and_again(daemon: RunningDaemon, name: str) -> Iterator[Sequence[ExitInfo]]:
    """The bomb's sandbox, and the next one as soon as it has ended; yields how each ended so far."""
    ends: list[ExitInfo] = []
    stop = threading.Event()

    def explode() -> None:
        client = daemon.client()
        while not stop.is_set():
            kernel = client.create(_request(name))
            watch = client.watch_exit(kernel.id, kernel.generation)
            while not stop.is_set():
                if (end := watch.wait(0.5)) is not None:
                    ends.append(end)
                    break
            client.remove(kernel.id)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(explode)
        try:
            yield ends
        finally:
            stop.set()
            running.result()


def put_into(text: str, record: Mapping[str, Any]) -> str:
    """A page with its table of bombs replaced. Pure."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = "".join(f"{line(name, row)}\n" for name, row in record["bombs"].items())
    return f"{before}{BEGIN}{HEAD}{rows}{END}{after}"


def fate_of(ends: Sequence[ExitInfo]) -> str:
    """How sandboxes ended that were started again each time, and with how much memory. Pure."""
    reasons = sorted({end.reason for end in ends})
    peaks = [end.memory_peak_bytes or 0 for end in ends]
    if not ends:
        return "runs"
    times = "once" if len(ends) == 1 else f"{len(ends)} times"
    return f"{', '.join(reasons)}, {times}, at {min(peaks) >> 20} MiB or more"


def measure(daemon: RunningDaemon, victim: Session, cells: int) -> Phase:
    """Cells, writes inside, and answers of the daemon."""
    samples: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(cells):
        began = time.perf_counter()
        assert victim.run("1").status == "ok"
        samples["cell"].append(time.perf_counter() - began)
    text = victim.run(WRITES.format(count=cells)).text
    plain, synced = json.loads("[" + text.replace("] [", "], [") + "]")
    samples["write"] += plain
    samples["synced write"] += synced
    for _ in range(max(20, cells // 4)):
        began = time.perf_counter()
        daemon.client().ping()
        samples["daemon"].append(time.perf_counter() - began)
    return Phase(samples)


def line(name: str, row: dict[str, Any]) -> str:
    """As a row of a Markdown table."""
    ratios = [f"{row[kind]['p50']:.2f} / {row[kind]['p99']:.2f}" for kind in KINDS]
    return f"| {name} | {' | '.join(ratios)} | {row['fate']} |"


__all__ = ["CONFIG", "again_and_again", "fate_of", "keep", "main", "put_into"]

if __name__ == "__main__":
    sys.exit(main())

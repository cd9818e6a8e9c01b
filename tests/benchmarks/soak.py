"""Thousands of starts and ends with one daemon: does anything stay, does anything slow down?

    python -m tests.benchmarks.soak [--cycles 10000] [--json FILE]
    python -m tests.benchmarks.soak --kernels 20 --minutes 30 [--json FILE]

A cycle is a start, a cell with a checked result, and a removal. Every tenth of the run is a row:
first replies, memory of daemon and launcher, and everything countable that a kernel has on the
host. The second form has so many kernels live, each with a cell a second, and measures cells and
requests. Ends with 1 if something has failed or something countable has become more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

from tests.benchmarks.bench import SCRATCH, first_reply, say, talking_to
from tests.benchmarks.client import RawClient, milliseconds_since
from tests.benchmarks.direct import DirectSandboxPeer
from tests.benchmarks.peers import CGROUPS
from tests.support import CGROUP_PARENT, RunningDaemon, remove_cgroups, running_daemon

CONFIG = 'c.SandboxKernelDaemon.profiles = {"default": {"spares": 2}}\n'
ROWS, WARM_UP, SETTLE_S = 10, 50, 3.0
Row = dict[str, float]


def main() -> int:
    """Run with a daemon of its own; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=10_000)
    parser.add_argument("--kernels", type=int, default=0, help="live at once, instead of cycles")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with running_daemon(CONFIG) as daemon, talking_to(daemon):
        for _ in daemon.client().prepare_image("host"):
            pass
        if options.kernels:
            rows, failures = live(daemon, options.kernels, options.minutes)
            what: dict[str, object] = {"kernels": options.kernels, "minutes": options.minutes}
        else:
            rows, failures, paths = soak(daemon, options.cycles)
            what = {"cycles": options.cycles, "paths": dict(paths)}
    remove_cgroups()
    if options.json:
        found = {**what, "failures": failures, "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    more = grown(rows[0], rows[-1])
    print(f"{what}, failed: {failures or 'none'}, more than before: {more or 'nothing'}")
    return 1 if failures or more else 0


def soak(daemon: RunningDaemon, cycles: int) -> tuple[list[Row], dict[str, int], Counter[str]]:
    """One row before and one after each tenth; reasons of failures; how kernels were started."""
    (work := SCRATCH / "work").mkdir(parents=True, exist_ok=True)
    peer = DirectSandboxPeer(
        work, daemon.client(), "spare", profile="default", run_dir=daemon.run_dir
    )
    failures: Counter[str] = Counter()
    paths: Counter[str] = Counter()
    _cycles(peer, WARM_UP, failures, Counter())
    rows = [_row(daemon, [])]
    for part in range(ROWS):
        rows.append(_row(daemon, _cycles(peer, cycles // ROWS, failures, paths)))
        say(f"{(part + 1) * cycles // ROWS} of {cycles}: " + "  ".join(
            f"{name} {value:.4g}" for name, value in rows[-1].items()))  # fmt: skip
    return rows, dict(failures), paths


def _cycles(
    peer: DirectSandboxPeer, count: int, failures: Counter[str], paths: Counter[str]
) -> list[float]:
    taken = []
    for _ in range(count):
        try:
            taken.append(first_reply(peer))
            paths[peer.kernel().start_path] += 1
        except Exception as exc:  # counted, and the run goes on
            failures[f"{type(exc).__name__}: {exc}"[:160]] += 1
        finally:
            peer.stop()
    return taken


def live(daemon: RunningDaemon, count: int, minutes: float) -> tuple[list[Row], dict[str, int]]:
    """One row with no kernel before and after, and one a tenth of the time while they live."""
    (work := SCRATCH / "work").mkdir(parents=True, exist_ok=True)
    peers = [
        DirectSandboxPeer(work, daemon.client(), "spare", profile="default", run_dir=daemon.run_dir)
        for _ in range(count)
    ]
    failures: Counter[str] = Counter()
    _cycles(peers[0], WARM_UP, failures, Counter())
    rows = [_row(daemon, [])]
    clients = [RawClient(peer.start()) for peer in peers]
    try:
        for part in range(ROWS):
            cells, requests = _minute(daemon, clients, minutes * 60 / ROWS, failures)
            row = _row(daemon, cells) | {"request_p50_ms": statistics.median(requests)}
            say(f"part {part + 1} of {ROWS}: " + "  ".join(
                f"{name} {value:.4g}" for name, value in row.items()))  # fmt: skip
            rows.append(row)
    finally:
        for client in clients:
            client.close()
        for peer in peers:
            peer.stop()
    rows.append(_row(daemon, []))
    return rows, dict(failures)


def _minute(
    daemon: RunningDaemon, clients: list[RawClient], seconds: float, failures: Counter[str]
) -> tuple[list[float], list[float]]:
    """Milliseconds of cells, one a second in every kernel, and of a request a second."""
    cells, requests, deadline = [], [], time.monotonic() + seconds
    while time.monotonic() < deadline:
        round_began = time.monotonic()
        for client in clients:
            began = time.monotonic()
            try:
                client.run_cell()
                cells.append(milliseconds_since(began))
            except Exception as exc:  # counted, and the run goes on
                failures[f"{type(exc).__name__}: {exc}"[:160]] += 1
        began = time.monotonic()
        list(daemon.client().kernels())
        requests.append(milliseconds_since(began))
        time.sleep(max(0.0, 1 - (time.monotonic() - round_began)))
    return cells, requests


def _row(daemon: RunningDaemon, taken: list[float]) -> Row:
    time.sleep(SETTLE_S)  # what is released and made ahead behind the requests
    pid = daemon.process.pid
    launcher = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    latencies = {
        "p50_ms": statistics.median(taken),
        "p99_ms": sorted(taken)[int(len(taken) * 0.99)],
    } if taken else {}  # fmt: skip
    return {
        **latencies,
        "daemon_mib": _rss_mib(pid),
        "launcher_mib": _rss_mib(launcher),
        "daemon_fds": len(os.listdir(f"/proc/{pid}/fd")),
        "launcher_fds": len(os.listdir(f"/proc/{launcher}/fd")),
        "launcher_mounts": len(Path(f"/proc/{launcher}/mountinfo").read_text().splitlines()),
        "cgroups": sum(1 for _ in CGROUPS.glob(f"*/{CGROUP_PARENT}/**/")),
        "processes": len(
            {
                line
                for file in CGROUPS.glob(f"*/{CGROUP_PARENT}/**/cgroup.procs")
                for line in file.read_text().split()
            }
        ),
        "run_files": sum(len(files) for _, _, files in os.walk(daemon.run_dir)),
        "net_namespaces": _net_namespaces(),
    }


def _rss_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def _net_namespaces() -> int:
    """Of processes: one that nobody is in any more, Linux frees by itself."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found.add(os.stat(f"/proc/{name}/ns/net").st_ino)
            except OSError:
                continue  # it has just ended
    return len(found)


def grown(first: Row, last: Row) -> dict[str, tuple[float, float]]:
    """What can be counted and is more than at first. Pure."""
    counted = [name for name in first if not name.endswith(("_ms", "_mib"))]
    return {name: (first[name], last[name]) for name in counted if last[name] > first[name]}


if __name__ == "__main__":
    sys.exit(main())

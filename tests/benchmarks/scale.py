"""Group `scale`: the first reply among many kernels, what they cost idle, how many there can be."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

from tests.benchmarks.bench import Bench, attempt, first_reply, say
from tests.benchmarks.client import RawClient, milliseconds_since
from tests.benchmarks.facts import memory_available_mib
from tests.benchmarks.peers import SandboxPeer
from tests.benchmarks.starts import start_and_stop

__all__ = ["measure_scale"]

STAGES, STAGES_QUICK = (1, 10, 50, 100, 200, 350, 500), (1, 5, 20)
STARTS, STARTS_QUICK = 20, 5
ALIVE, ALIVE_QUICK = 1000, 30
IDLE_S, IDLE_S_QUICK = 60, 5
# A start has the daemon look at the host's packages 1 to 10 s later, which is no idle work.
SETTLE_S = 15
BUDGET_MIB = 24 * 1024
# Below this Linux would soon end something, and it may be what measures.
AVAILABLE_MIN_MIB = 512
FAILURES_MAX = 5  # in a row: it will not go any further


def measure_scale(bench: Bench) -> None:
    """Kernels are added up to each stage, and others are started and stopped on top of them."""
    stages = STAGES_QUICK if bench.size.quick else STAGES
    first = bench.series("scale", "First reply among kernels that are alive, forked", "ms")
    warm = bench.ours("warm")
    bench.warm_up([warm])
    alive: list[SandboxPeer] = []
    before = memory_available_mib()
    try:
        for stage in stages:
            if not _grow(bench, alive, stage):
                break
            time.sleep(SETTLE_S)
            for _ in range(bench.size.of(STARTS, STARTS_QUICK)):
                attempt(f"{stage} kernels", [first], lambda: start_and_stop(warm)[:1])
            say(f"scale: {stage} kernels")
            if stage == stages[-1]:
                _measure_idle(bench, stage)
        _measure_alive(bench, alive, before)
    finally:
        for peer in alive:
            _stop(peer)


def _grow(bench: Bench, alive: list[SandboxPeer], count: int) -> bool:
    """Start kernels until there are `count`; whether that went well. Says what stopped it."""
    notes, failures = bench.series("alive", "Kernels that answer", "kernels").notes, 0
    while len(alive) < count:
        peer = bench.ours("warm")
        reason = ""
        if (available := memory_available_mib()) < AVAILABLE_MIN_MIB:
            notes.append(f"stopped at {len(alive)}: {available:.0f} MiB of memory are available")
            return False
        try:
            first_reply(peer)
        except Exception as exc:  # whatever it is, it is what the run is about
            reason = f"{type(exc).__name__}: {exc}"
        if not reason:
            alive.append(peer)
            failures = 0
            continue
        _stop(peer)
        failures += 1
        if failures == FAILURES_MAX:
            notes.append(f"stopped at {len(alive)}: {reason}")
            return False
    return True


def _measure_idle(bench: Bench, count: int) -> None:
    """Processor time of the daemon and of its launcher, as a share of one core."""
    pids = _with_children(bench.daemon.process.pid)
    series = bench.series("idle_cpu", f"Daemon and launcher with {count} idle kernels",
                          "% of a core")  # fmt: skip
    time.sleep(SETTLE_S)
    idle_s = bench.size.of(IDLE_S, IDLE_S_QUICK)
    before = sum(map(_cpu_s, pids))
    time.sleep(idle_s)
    series.add("warm", 100 * (sum(map(_cpu_s, pids)) - before) / idle_s)


def _with_children(pid: int) -> list[int]:
    """The daemon and the processes it has started: its launcher. Not theirs: those are kernels."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    return [pid, *(int(text) for path in children for text in path.read_text().split())]


def _cpu_s(pid: int) -> float:
    """utime and stime (proc_pid_stat(5)) in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _measure_alive(bench: Bench, alive: list[SandboxPeer], before_mib: float) -> None:
    """As many as there can be, each of which answers one more cell."""
    _grow(bench, alive, bench.size.of(ALIVE, ALIVE_QUICK))
    count = bench.series("alive", "Kernels that answer", "kernels")
    answers = bench.series("alive_reply", f"A cell of each of {len(alive)} kernels", "ms")
    for peer in alive:
        attempt("warm", [answers], lambda peer=peer: [_answer(peer)])  # type: ignore[misc]
    replies = answers.values.get("warm", [])
    used = before_mib - memory_available_mib()
    answering = sum(map(math.isfinite, replies))
    # Where they take more than the budget, as many count as would fit into it.
    count.add("warm", math.floor(answering * min(1.0, BUDGET_MIB / max(used, 1.0))))
    count.notes.append(f"{answering} kernels take {used:.0f} MiB of MemAvailable")


def _answer(peer: SandboxPeer) -> float:
    began = time.perf_counter()
    client = RawClient(dict(peer.manager.get_connection_info()))
    try:
        client.run_cell()
        return milliseconds_since(began)
    finally:
        client.close()


def _stop(peer: SandboxPeer) -> None:
    try:
        peer.stop()
    except Exception as exc:  # the others must be stopped still
        say(f"not stopped: {exc}")

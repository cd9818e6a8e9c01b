"""Group `memory`: what an idle kernel takes, by its own account and by the machine's."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.benchmarks.bench import Bench, attempt, say
from tests.benchmarks.client import RawClient
from tests.benchmarks.facts import memory_available_mib
from tests.benchmarks.peers import ManagedPeer
from tests.benchmarks.summary import slope

__all__ = ["measure_memory"]

COUNT, COUNT_QUICK, STEPS = 50, 10, 5
SETTLE_S, SETTLE_S_QUICK = 5, 1


def measure_memory(bench: Bench) -> None:
    """PSS of each of the kernels that have run one cell, and the slope of MemAvailable on them.

    The zygote is there before the first kernel: it is reported beside, not divided among them.
    """
    count = bench.size.of(COUNT, COUNT_QUICK)
    pss = bench.series("pss", f"Proportional set size of each of {count} idle kernels", "MiB")
    available = bench.series("available", f"MemAvailable that each of {count} kernels takes", "MiB")
    pss.notes.append("pid 1 of the sandbox is included")
    makers: dict[str, Callable[[], ManagedPeer]] = {
        "warm": lambda: bench.ours("warm"), "plain": bench.plain
    }  # fmt: skip
    bench.warm_up([make() for make in makers.values()])
    for block in range(bench.size.blocks):
        for name, make in makers.items():
            peers = [make() for _ in range(count)]
            try:
                attempt(name, [available], lambda peers=peers: [_slope(bench, peers)])  # type: ignore[misc]
                for peer in peers:
                    attempt(name, [pss], lambda peer=peer: [peer.memory_mib()])  # type: ignore[misc]
            finally:
                for peer in peers:
                    peer.stop()
        say(f"\rmemory: {block + 1} of {bench.size.blocks}", end="")
    say("")


def _slope(bench: Bench, peers: list[ManagedPeer]) -> float:
    """MiB by which MemAvailable sinks with each kernel."""
    settle_s = bench.size.of(SETTLE_S, SETTLE_S_QUICK)
    step = max(1, len(peers) // STEPS)
    peers[0].prepare()
    time.sleep(settle_s)
    points = [(0.0, memory_available_mib())]
    for number, peer in enumerate(peers, 1):
        client = RawClient(peer.start())
        try:
            client.run_cell()
        finally:
            client.close()
        if number % step == 0:
            time.sleep(settle_s)
            points.append((float(number), memory_available_mib()))
    return -slope(points)

"""Groups `bell` and `cpu-start`: many starts at once, and the processor time of one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from tests.benchmarks.bench import CONFIG, Bench, attempt, first_reply, in_blocks, talking_to
from tests.benchmarks.facts import CpuTimes
from tests.benchmarks.peers import ManagedPeer
from tests.support import running_daemon

__all__ = ["measure_bells", "measure_cpu_of_starts"]

CLASS_SIZE, CLASS_SIZE_QUICK = 30, 8
BATCH, BATCH_QUICK = 10, 5
IDLE_S, SETTLE_S = 1.0, 0.5


def measure_bells(bench: Bench) -> None:
    """A class that opens its notebooks at once: until all have their reply.

    Twice of ours: a profile that has as many wait as the class is large, and the default one. They
    are another daemon's, for the waiting ones are not to be part of any other figure.
    """
    count = bench.size.of(CLASS_SIZE, CLASS_SIZE_QUICK)
    waiting = (
        f'c.SandboxKernelDaemon.profiles["class"] = {{"spares": {count}, "min_spares": {count}}}'
    )
    with running_daemon(f"{CONFIG}{waiting}\n") as daemon, talking_to(daemon):
        _measure_bells(replace(bench, daemon=daemon, client=daemon.client()), count)


def _measure_bells(bench: Bench, count: int) -> None:
    series = bench.series("bell", f"{count} starts at once, until all have replied", "ms")
    last = bench.series("bell_each", f"Each of {count} starts at once", "ms")
    makers: dict[str, Callable[[], ManagedPeer]] = {
        "class": lambda: bench.ours("spare", profile="class"),
        "spare": lambda: bench.ours("spare"),
        "plain": bench.plain,
    }
    bench.warm_up([make() for make in makers.values()])

    def sample(name: str) -> None:
        peers = [makers[name]() for _ in range(count)]

        def ring() -> list[float]:
            peers[0].prepare()
            with ThreadPoolExecutor(count) as pool:
                began = time.perf_counter()
                each = list(pool.map(lambda peer: first_reply(peer, began=began), peers))
            if name == "class":
                for peer in peers:
                    peer.check()
            for taken in each:
                last.add(name, taken)
            return [max(each)]

        try:
            attempt(name, [series], ring)
        finally:
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(_stop, peers))

    in_blocks("bell", bench.size.blocks, list(makers), sample)


def _stop(peer: ManagedPeer) -> None:
    # One that does not end is counted where it was measured; the others must still be stopped.
    with contextlib.suppress(Exception):
        peer.stop()


def measure_cpu_of_starts(bench: Bench) -> None:
    """Processor time that the whole machine spends on one start, shutdown left out.

    From /proc/stat, so that no process is forgotten, the client and the daemon included; less
    what the machine spends while idle, measured before each batch.
    """
    count = bench.size.of(BATCH, BATCH_QUICK)
    series = bench.series("cpu_start", f"Processor time of a start, in batches of {count}", "ms")
    makers: dict[str, Callable[[], ManagedPeer]] = {
        "warm": lambda: bench.ours("warm"), "plain": bench.plain
    }  # fmt: skip
    bench.warm_up([make() for make in makers.values()])

    def sample(name: str) -> None:
        peers = [makers[name]() for _ in range(count)]

        def spend() -> list[float]:
            peers[0].prepare()
            idle = _busy_during(lambda: time.sleep(IDLE_S)) / IDLE_S
            began = time.perf_counter()
            busy = _busy_during(lambda: _start_all(peers))
            elapsed = time.perf_counter() - began
            for peer in peers:
                peer.check()
            return [max(0.0, busy - idle * elapsed) / count * 1000]

        try:
            attempt(name, [series], spend)
        finally:
            for peer in peers:
                _stop(peer)

    in_blocks("processor time of starts", bench.size.blocks, list(makers), sample)


def _busy_during(work: Callable[[], None]) -> float:
    before = CpuTimes.now()
    work()
    return CpuTimes.now().since(before).busy_s


def _start_all(peers: list[ManagedPeer]) -> None:
    for peer in peers:
        first_reply(peer)
    time.sleep(SETTLE_S)  # what a start leaves to be done later is part of its price

"""Groups `cell` and `output`: kernels that run; round trips, messages, a gigabyte of stdout.

Two kernels of the same kind differ by 2 % in their round trips, for as long as they live: so there
are several of each.

The plain kernel is there twice: over unix sockets, which leaves the sandbox alone as the difference,
and over TCP, which is what users have without us.
"""

from __future__ import annotations

import contextlib
import time

from tests.benchmarks.bench import Bench, attempt, connected, in_blocks
from tests.benchmarks.client import Output, RawClient, milliseconds_since
from tests.benchmarks.peers import ManagedPeer
from tests.benchmarks.results import Series

__all__ = ["measure_output", "measure_round_trips"]

BATCH, BATCHES = 50, 5
ROUNDS, ROUNDS_QUICK = 20, 2
WARM_UP = 50
LINES, LINES_QUICK = 20_000, 2_000
CHUNK_BYTES = 1_000_000
STDOUT_MB, STDOUT_MB_QUICK = 1000, 100
OUTPUT_TIMEOUT_MS = 120_000


def measure_round_trips(bench: Bench) -> None:
    """Round trips of a small cell on resident kernels, in alternating batches."""
    series = bench.series("cell", "Cell round trip", "ms")
    peers: list[ManagedPeer] = [bench.ours("warm"), bench.plain(), bench.plain_over_tcp()]
    bench.warm_up(peers)
    rounds = bench.size.of(ROUNDS, ROUNDS_QUICK)
    for number in range(rounds):
        _measure_one_of_each(f"round trips, kernels {number + 1} of {rounds}", peers, series)


def _measure_one_of_each(title: str, peers: list[ManagedPeer], series: Series) -> None:
    with contextlib.ExitStack() as stack:
        clients = {peer.name: stack.enter_context(connected(peer)) for peer in peers}
        for client in clients.values():
            for _ in range(WARM_UP):
                client.run_cell()

        def sample(name: str) -> None:
            for _ in range(BATCH):
                attempt(name, [series], lambda: [_round_trip(clients[name])])

        in_blocks(title, BATCHES, list(clients), sample)


def _round_trip(client: RawClient) -> float:
    began = time.perf_counter()
    client.run_cell()
    return milliseconds_since(began)


def measure_output(bench: Bench) -> None:
    """Messages a second of a cell that flushes every line, and MB a second of plain writing.

    What does not arrive is a failure: the client receives without a limit. ipykernel keeps what it
    has not sent yet in memory, several times over, so ours gets a profile with as much as that.
    """
    lines = bench.size.of(LINES, LINES_QUICK)
    size_mb = bench.size.of(STDOUT_MB, STDOUT_MB_QUICK)
    iopub = bench.series("iopub", f"{lines} lines, each flushed", "messages/s")
    stdout = bench.series("stdout", f"{size_mb} MB of stdout", "MB/s")
    ours = bench.ours("warm", profile="roomy")
    peers: list[ManagedPeer] = [ours, bench.plain(), bench.plain_over_tcp()]
    bench.warm_up(peers)
    print_lines = f"for i in range({lines}): print(i, flush=True)"
    chunks = size_mb * 1_000_000 // CHUNK_BYTES
    write = f"import sys; chunk = 'x' * {CHUNK_BYTES}\nfor i in range({chunks}): sys.stdout.write(chunk)"

    def sample(peer: ManagedPeer) -> None:
        with connected(peer) as client:
            attempt(peer.name, [iopub], lambda: [_rate_of_lines(client, print_lines, lines)])
            attempt(peer.name, [stdout], lambda: [_rate_of_bytes(client, write, size_mb)])

    in_blocks("output", bench.size.blocks, peers, sample)


def _rate_of_lines(client: RawClient, code: str, lines: int) -> float:
    output, began = Output(), time.perf_counter()
    client.evaluate(code, output=output, timeout_ms=OUTPUT_TIMEOUT_MS)
    taken = time.perf_counter() - began
    if output.messages < lines * 0.9:  # two flushes that meet make one message
        raise RuntimeError(f"{output.messages} messages of {lines} lines arrived")
    return output.messages / taken


def _rate_of_bytes(client: RawClient, code: str, size_mb: int) -> float:
    output, began = Output(), time.perf_counter()
    client.evaluate(code, output=output, timeout_ms=OUTPUT_TIMEOUT_MS)
    taken = time.perf_counter() - began
    if output.size_bytes < size_mb * 1_000_000:
        raise RuntimeError(f"{output.size_bytes / 1e6:.0f} MB of {size_mb} MB arrived")
    return size_mb / taken

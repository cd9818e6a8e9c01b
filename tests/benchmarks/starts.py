"""Group `starts`: first reply, shutdown and what it leaves; and the same beside other sandboxes.

The clock starts at the caller's start call and stops when the client holds `execute_reply` and
`idle` of a cell whose result is checked; the request is queued at once.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.bench import PRELOADED, Bench, attempt, first_reply, in_blocks, say
from tests.benchmarks.client import RawClient, milliseconds_since
from tests.benchmarks.containers import (
    BwrapPeer,
    DockerPeer,
    RuncPeer,
    RunscPeer,
    dockerd,
    runsc_platform,
)
from tests.benchmarks.control import BarePeer, bare_zygote
from tests.benchmarks.peers import ManagedPeer, Peer

__all__ = ["measure_imports", "measure_peers", "measure_restarts", "measure_starts"]

RUNTIME = Path(__file__).resolve().parents[2] / "runtime"
GONE_S = 10.0  # what has not gone by then is a failure
GONE_POLL_S = 0.0005


def start_and_stop(peer: Peer, code: str = "6*7") -> list[float]:
    """Milliseconds to the first reply, and of the shutdown."""
    try:
        peer.prepare()
        taken = first_reply(peer, code)
        peer.check()
    except BaseException:
        peer.stop()
        raise
    began = time.perf_counter()
    peer.stop()
    return [taken, milliseconds_since(began)]


def start_stop_and_look(peer: ManagedPeer) -> list[float]:
    """As start_and_stop(), and milliseconds from its return until nothing is left."""
    try:
        peer.prepare()
        taken = first_reply(peer)
        peer.check()
        traces = peer.traces()
    except BaseException:
        peer.stop()
        raise
    began = time.perf_counter()
    peer.stop()
    stopping, returned = milliseconds_since(began), time.perf_counter()
    while left := traces.left():
        if time.perf_counter() - returned > GONE_S:
            raise RuntimeError(f"left after {GONE_S:g} s: {', '.join(left)}")
        time.sleep(GONE_POLL_S)
    return [taken, stopping, milliseconds_since(returned)]


def measure_starts(bench: Bench) -> None:
    """Ours on each path, the plain kernel, and a zygote without a sandbox."""
    start = bench.series("start", "First reply", "ms")
    through = bench.series("managed", "First reply through jupyter_client's KernelManager", "ms")
    stop = bench.series("stop", "Shutdown returns", "ms")
    gone = bench.series("gone", "From then until nothing is left", "ms")
    managed: list[ManagedPeer] = [*map(bench.ours, ("spare", "warm", "cold")), bench.plain()]
    with contextlib.ExitStack() as stack:
        peers: list[Peer] = [
            *managed, *map(bench.direct, ("spare", "warm", "cold")), bench.process()
        ]  # fmt: skip
        try:
            control = stack.enter_context(bare_zygote(RUNTIME, bench.scratch))
            peers.append(BarePeer(control))
        except (OSError, RuntimeError) as exc:
            start.notes.append(f"no zygote without a sandbox: {exc}")
        bench.warm_up(peers)

        def sample(peer: Peer) -> None:
            if isinstance(peer, ManagedPeer) and peer in managed:
                attempt(peer.name, [through, stop, gone], lambda: start_stop_and_look(peer))
            else:
                attempt(peer.name, [start], lambda: start_and_stop(peer)[:1])

        in_blocks("starts", bench.size.blocks, peers, sample)


def measure_imports(bench: Bench) -> None:
    """A first cell that imports what the profile's zygote has imported ahead."""
    code = "import " + ", ".join(PRELOADED)
    series = bench.series("imports", f"First reply of `{code}`", "ms")
    warm = bench.ours("warm", profile="science")
    spare = bench.ours("spare", profile="science_spares")
    peers: list[Peer] = [spare, warm, bench.plain()]
    bench.warm_up(peers)

    def sample(peer: Peer) -> None:
        attempt(peer.name, [series], lambda: start_and_stop(peer, code)[:1])

    in_blocks("imports", bench.size.blocks, peers, sample)


def measure_restarts(bench: Bench) -> None:
    """From the restart call to the first reply of the new process."""
    series = bench.series("restart", "Restart to the first reply", "ms")
    peers: list[ManagedPeer] = [bench.ours("spare"), bench.ours("warm"), bench.plain()]
    bench.warm_up(peers)

    def restart(peer: ManagedPeer) -> list[float]:
        peer.prepare()
        try:
            first_reply(peer)
            peer.check()
            peer.prepare()  # nobody restarts in the moment in which it has started
            began = time.perf_counter()
            client = RawClient(peer.restart())
            try:
                client.run_cell()
                taken = milliseconds_since(began)
            finally:
                client.close()
            peer.check()
        finally:
            peer.stop()
        return [taken]

    def sample(peer: ManagedPeer) -> None:
        attempt(peer.name, [series], lambda: restart(peer))

    in_blocks("restarts", bench.size.blocks, peers, sample)


def measure_peers(bench: Bench) -> None:
    """The first reply beside other sandboxes: those whose programs are installed."""
    series = bench.series("peers", "First reply beside other sandboxes", "ms")
    with contextlib.ExitStack() as stack:
        state = Path(tempfile.mkdtemp(prefix="sk-runsc-", dir="/run"))
        stack.callback(shutil.rmtree, state, ignore_errors=True)
        peers: list[Peer] = [bench.direct("spare"), bench.direct("warm"), bench.process()]
        peers += _others(bench, series.notes, stack, state)
        bench.warm_up(peers)

        def sample(peer: Peer) -> None:
            attempt(peer.name, [series], lambda: start_and_stop(peer)[:1])

        in_blocks("other sandboxes", bench.size.blocks, peers, sample)


def _others(
    bench: Bench, notes: list[str], stack: contextlib.ExitStack, state: Path
) -> Sequence[Peer]:
    found: list[Peer] = []
    python, rootfs = bench.python, bench.rootfs
    if shutil.which("bwrap"):
        found.append(BwrapPeer(python, rootfs))
    if shutil.which("runc"):
        found.append(RuncPeer(python, rootfs))
    if shutil.which("runc") and shutil.which("runsc"):
        platform = runsc_platform()
        found.append(RunscPeer(python, rootfs, state=state, platform=platform))
        notes.append(f"runsc runs on its platform {platform}, without control groups")
    if shutil.which("dockerd"):
        try:
            host, image = stack.enter_context(dockerd(rootfs))
            found.append(DockerPeer(python, image, host))
        except (OSError, RuntimeError) as exc:
            notes.append(f"no docker: {exc}")
            say(notes[-1])
    return found

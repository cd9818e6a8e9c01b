"""Starts and round trips side by side: ours on each path, a plain kernel, docker run, runc.

    python tests/benchmarks/starts.py [--blocks 25] [--json FILE]

One process drives all peers in interleaved blocks with one raw client. The clock starts at the
caller's start call and stops when the client holds `execute_reply` and `idle` of a cell whose
result is checked; the request is queued at once. Reports; asserts nothing about time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "runtime")]

import zmq  # noqa: E402
from jupyter_client.session import Session  # noqa: E402

from sandboxkernel.images.store import ImageStore  # noqa: E402
from tests.benchmarks.peers import (  # noqa: E402
    DockerPeer,
    LocalPeer,
    Peer,
    RuncPeer,
    SandboxPeer,
    dockerd,
    merged_rootfs,
    precompile,
)
from tests.support import (  # noqa: E402
    RunningDaemon,
    remove_cgroups,
    running_daemon,
    warm_up,
)

TIMEOUT_MS, LATE_MS = 30_000, 50
CLASS_SIZE = 30
PRESSURE_MAX, QUIET_WAIT_S = 5.0, 60.0  # percent, averaged over 10 s; seconds
# libzmq retries a socket that does not exist yet every 100 ms by default; peers that bind late
# would be measured by that and not by their start.
RECONNECT_MS = 5


class RawClient:
    """DEALER on shell and SUB on iopub, nothing else."""

    def __init__(self, info: dict[str, Any]) -> None:
        self._session = Session(key=info["key"], signature_scheme=info["signature_scheme"])
        self._context = zmq.Context()
        self.shell = self._socket(zmq.DEALER, info, "shell_port")
        self.shell.setsockopt(zmq.IDENTITY, self._session.bsession)
        self.iopub = self._socket(zmq.SUB, info, "iopub_port")
        self.iopub.setsockopt(zmq.SUBSCRIBE, b"")
        for sock, port in ((self.shell, "shell_port"), (self.iopub, "iopub_port")):
            sock.connect(f"ipc://{info['ip']}-{info[port]}")

    def _socket(self, kind: int, info: dict[str, Any], port: str) -> Any:
        sock = self._context.socket(kind)
        sock.linger = 0
        sock.reconnect_ivl = RECONNECT_MS
        return sock

    def run_cell(self) -> None:
        """Execute one cell and check its result. Raises RuntimeError when it fails."""
        content = {"code": "6*7", "silent": False, "store_history": False,
                   "user_expressions": {"x": "6*7"}, "allow_stdin": False, "stop_on_error": True}  # fmt: skip
        message = self._session.send(self.shell, "execute_request", content)
        wanted = message["header"]["msg_id"]
        replied = idle = heard = False
        poller = zmq.Poller()
        poller.register(self.shell, zmq.POLLIN)
        poller.register(self.iopub, zmq.POLLIN)
        while not (replied and idle):
            # Where iopub has subscribed after the kernel spoke, only its welcome comes there, and
            # the reply is enough.
            late = replied and not heard
            ready = dict(poller.poll(LATE_MS if late else TIMEOUT_MS))
            if not ready and not late:
                raise RuntimeError("no answer")
            idle = idle or not ready
            if self.shell in ready:
                _, reply = self._session.recv(self.shell)
                if reply["parent_header"]["msg_id"] == wanted:
                    data = reply["content"]["user_expressions"]["x"]["data"]["text/plain"]
                    if data != "42":
                        raise RuntimeError(f"wrong result {data!r}")
                    replied = True
            if self.iopub in ready:
                _, status = self._session.recv(self.iopub)
                mine = status["parent_header"].get("msg_id") == wanted
                heard = heard or mine
                idle = idle or (mine and status["content"].get("execution_state") == "idle")

    def close(self) -> None:
        self._context.destroy(linger=0)


def start_once(peer: Peer) -> tuple[float, float]:
    """Seconds to first reply, and seconds that stopping took."""
    peer.prepare()
    began = time.perf_counter()
    try:
        client = RawClient(peer.start())
        try:
            client.run_cell()
            taken = time.perf_counter() - began
        finally:
            client.close()
        peer.check()
    finally:
        stopping = time.perf_counter()
        peer.stop()
    return taken, time.perf_counter() - stopping


def bootstrap_ratio(
    ours: list[float], theirs: list[float], rounds: int = 2000
) -> tuple[float, float]:
    """95 % interval of the ratio of medians, resampling blocks."""
    chooser = random.Random(1)
    ratios = []
    for _ in range(rounds):
        picks = [chooser.randrange(len(ours)) for _ in ours]
        ratios.append(
            statistics.median(ours[i] for i in picks) / statistics.median(theirs[i] for i in picks)
        )
    ratios.sort()
    return ratios[int(rounds * 0.025)], ratios[int(rounds * 0.975)]


def measure_starts(
    peers: list[Peer], blocks: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Interleaved blocks; each does every peer once, in an order that alternates.

    Milliseconds to the first reply, and of the shutdown.
    """
    for peer in peers:
        start_once(peer)  # page cache and daemons are warm for everybody
    starts: dict[str, list[float]] = {peer.name: [] for peer in peers}
    stops: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for block in range(blocks):
        for peer in peers if block % 2 else reversed(peers):
            taken, stopping = start_once(peer)
            starts[peer.name].append(taken * 1000)
            stops[peer.name].append(stopping * 1000)
        print(f"\rblock {block + 1}/{blocks}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return starts, stops


def measure_bells(
    makers: dict[str, Callable[[], Peer]], class_size: int, rounds: int
) -> dict[str, list[float]]:
    """A class that opens its notebooks at once: milliseconds until all have their reply."""
    results: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(rounds):
        for name, make in makers.items():
            peers = [make() for _ in range(class_size)]
            peers[0].prepare()

            def serve(peer: Peer) -> RawClient:
                client = RawClient(peer.start())
                client.run_cell()
                return client

            with ThreadPoolExecutor(class_size) as pool:
                began = time.perf_counter()
                clients = list(pool.map(serve, peers))
                results[name].append((time.perf_counter() - began) * 1000)
                for client in clients:
                    client.close()
                list(pool.map(lambda peer: peer.stop(), peers))
    return results


def measure_memory(makers: dict[str, Callable[[], Peer]], count: int) -> dict[str, list[float]]:
    """Proportional set size of each of `count` kernels that have run one cell, in MiB."""
    results: dict[str, list[float]] = {}
    for name, make in makers.items():
        peers = [make() for _ in range(count)]
        for peer in peers:
            client = RawClient(peer.start())
            client.run_cell()
            client.close()
        time.sleep(2)
        results[name] = [peer.memory_mib() for peer in peers]
        for peer in peers:
            peer.stop()
    return results


def measure_round_trips(peers: list[Peer], rounds: int) -> dict[str, list[float]]:
    """Cell round trips on resident kernels, in alternating batches."""
    clients = {peer.name: RawClient(peer.start()) for peer in peers}
    results: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for client in clients.values():
        for _ in range(50):
            client.run_cell()
    for _ in range(rounds // 50):
        for name, client in clients.items():
            for _ in range(50):
                began = time.perf_counter()
                client.run_cell()
                results[name].append((time.perf_counter() - began) * 1000)
    for client in clients.values():
        client.close()
    for peer in peers:
        peer.stop()
    return results


def report(title: str, results: dict[str, list[float]], ours: str) -> list[dict[str, Any]]:
    """Print a Markdown table of medians and of their ratio to `ours`; returns its rows."""
    print(f"\n{title}\n\n| peer | n | median | p90 | p99 | min | {ours} / peer (95 % interval) |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for name, values in results.items():
        ordered = sorted(values)
        low, high = bootstrap_ratio(results[ours], values)
        row = {
            "peer": name, "n": len(values), "median": statistics.median(values),
            "p90": ordered[int(len(ordered) * 0.9)], "p99": ordered[int(len(ordered) * 0.99)],
            "min": ordered[0],
            "ratio": statistics.median(results[ours]) / statistics.median(values),
            "low": low, "high": high,
        }  # fmt: skip
        rows.append(row)
        print(
            f"| {name} | {row['n']} | {row['median']:.1f} | {row['p90']:.1f} | {row['p99']:.1f} "
            f"| {row['min']:.1f} | {row['ratio']:.3f} ({low:.3f} to {high:.3f}) |"
        )
    return rows


def busy() -> str:
    """Why this machine is too busy for a verdict; empty if it is not."""
    with open("/proc/pressure/cpu", encoding="ascii") as stream:
        some = float(stream.readline().split("avg10=")[1].split()[0])
    return f"others wait for the processor {some:.0f} % of the time" if some > PRESSURE_MAX else ""


CONFIG = """
c.SandboxKernelDaemon.profiles = {
    "default": {"spares": 4},
    "warm": {"spares": 0},
    "cold": {"zygote": "off"},
}
c.SandboxKernelDaemon.grants = [{"user": "*", "max_kernels": 200}]
"""


def run(options: argparse.Namespace, daemon: RunningDaemon) -> None:
    """Measure everything and print the tables."""
    client = daemon.client()
    os.environ["SANDBOXKERNEL_HOST"] = f"unix://{daemon.socket_path}"
    image = list(client.prepare_image("host"))[-1]
    python = image.labels["org.sandboxkernel.python"]
    layers = ImageStore(daemon.data_dir / "images").resolve("host").layer_dirs
    scratch = Path("/var/tmp/sandboxkernel-bench") / image.digest.split(":")[1][:12]
    rootfs = merged_rootfs(layers, scratch)
    work = scratch / "work"
    work.mkdir(exist_ok=True)
    warm_up(daemon)
    print(f"Linux {platform.release()}, cgroups {client.version().cgroup_mode}, "
          f"Python {platform.python_version()}, load {os.getloadavg()[0]:.2f}, "
          f"image {image.digest[:19]}")  # fmt: skip

    def ours(path: str) -> SandboxPeer:
        return SandboxPeer(work, client, path)

    local = partial(LocalPeer, work)
    spare, warm, cold = ours("spare"), ours("warm"), ours("cold")
    trips = measure_round_trips([ours("spare"), local()], options.round_trips)
    peers: list[Peer] = [spare, warm, cold, local(), RuncPeer(python, rootfs)]
    if options.without_docker:
        starts, stops = measure_starts(peers, options.blocks)
    else:
        with dockerd(rootfs) as (host, name):
            starts, stops = measure_starts([*peers, DockerPeer(python, name, host)], options.blocks)
    makers = {spare.name: partial(ours, "spare"), local().name: local}
    bells = measure_bells(makers, CLASS_SIZE, options.bells)
    memory = measure_memory(makers, CLASS_SIZE)
    tables = {
        "start, spare": report("First reply, ms: a spare", starts, spare.name),
        "start, warm": report("First reply, ms: a fork on demand", starts, warm.name),
        "start, cold": report("First reply, ms: cold", starts, cold.name),
        "stop": report("Shutdown returns, ms", stops, spare.name),
        "bell": report(f"{CLASS_SIZE} at once, ms", bells, spare.name),
        "memory": report(f"PSS of each of {CLASS_SIZE} idle kernels, MiB", memory, spare.name),
        "round_trip": report("Cell round trip, ms", trips, spare.name),
    }
    if options.json:
        options.json.write_text(json.dumps(tables, indent=1))


def main() -> None:
    """Run with a daemon of our own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=25)
    parser.add_argument("--bells", type=int, default=5)
    parser.add_argument("--round-trips", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--without-docker", action="store_true")
    options = parser.parse_args()
    precompile()
    deadline = time.monotonic() + QUIET_WAIT_S
    while warning := busy():
        if time.monotonic() > deadline:
            sys.exit(f"no verdict: {warning}")
        time.sleep(1)
    with running_daemon(CONFIG) as daemon:
        run(options, daemon)
    remove_cgroups()


if __name__ == "__main__":
    main()

"""Cold start and round trip, side by side: ours, the plain local kernel, docker run, runc.

    python tests/benchmarks/cold_start.py [--blocks 25] [--json FILE]

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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "runtime")]

import zmq  # noqa: E402
from jupyter_client.session import Session  # noqa: E402

from sandboxkernel.launch_daemon import ensure_daemon  # noqa: E402
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

TIMEOUT_MS = 30_000
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
        replied = idle = False
        poller = zmq.Poller()
        poller.register(self.shell, zmq.POLLIN)
        poller.register(self.iopub, zmq.POLLIN)
        deadline = time.monotonic() + TIMEOUT_MS / 1000
        while not (replied and idle):
            ready = dict(poller.poll(max(0, (deadline - time.monotonic()) * 1000)))
            if not ready:
                raise RuntimeError("no answer")
            if self.shell in ready:
                _, reply = self._session.recv(self.shell)
                if reply["parent_header"]["msg_id"] == wanted:
                    data = reply["content"]["user_expressions"]["x"]["data"]["text/plain"]
                    if data != "42":
                        raise RuntimeError(f"wrong result {data!r}")
                    replied = True
                    # iopub may have subscribed after the kernel spoke: the reply is enough then.
                    idle = idle or not self.iopub.poll(50)
            if self.iopub in ready:
                _, status = self._session.recv(self.iopub)
                mine = status["parent_header"].get("msg_id") == wanted
                idle = idle or (mine and status["content"].get("execution_state") == "idle")

    def close(self) -> None:
        self._context.destroy(linger=0)


def start_once(peer: Peer) -> tuple[float, float]:
    """Seconds to first reply, and seconds that stopping took."""
    began = time.perf_counter()
    try:
        client = RawClient(peer.start())
        try:
            client.run_cell()
            taken = time.perf_counter() - began
        finally:
            client.close()
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


def measure_starts(peers: list[Peer], blocks: int) -> dict[str, list[float]]:
    """Interleaved blocks; each does every peer once, in an order that alternates."""
    for peer in peers:
        start_once(peer)  # page cache and daemons are warm for everybody
    results: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for block in range(blocks):
        for peer in peers if block % 2 else reversed(peers):
            results[peer.name].append(start_once(peer)[0] * 1000)
        print(f"\rblock {block + 1}/{blocks}", end="", file=sys.stderr)
    print(file=sys.stderr)
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


def report(title: str, results: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Print a Markdown table; returns its rows."""
    ours = results["sandboxkernel"]
    print(f"\n{title}\n\n| peer | n | median ms | p90 | p99 | min | ours / peer (95 % interval) |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for name, values in results.items():
        ordered = sorted(values)
        low, high = bootstrap_ratio(ours, values)
        row = {
            "peer": name, "n": len(values), "median": statistics.median(values),
            "p90": ordered[int(len(ordered) * 0.9)], "p99": ordered[int(len(ordered) * 0.99)],
            "min": ordered[0], "ratio": statistics.median(ours) / statistics.median(values),
            "low": low, "high": high,
        }  # fmt: skip
        rows.append(row)
        print(
            f"| {name} | {row['n']} | {row['median']:.1f} | {row['p90']:.1f} | {row['p99']:.1f} "
            f"| {row['min']:.1f} | {row['ratio']:.2f} ({low:.2f} to {high:.2f}) |"
        )
    return rows


def main() -> None:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=25)
    parser.add_argument("--round-trips", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--without-docker", action="store_true")
    options = parser.parse_args()
    precompile()
    client = ensure_daemon()
    image = list(client.prepare_image("host"))[-1]
    labels = image.labels
    python = labels["org.sandboxkernel.python"]
    from sandboxkernel.images.store import ImageStore
    from sandboxkernel.paths import Paths

    layers = ImageStore(Paths.from_environment().images_dir).resolve("host").layer_dirs
    scratch = Path("/var/tmp/sandboxkernel-bench") / image.digest.split(":")[1][:12]
    rootfs = merged_rootfs(layers, scratch)
    work = scratch / "work"
    work.mkdir(exist_ok=True)
    os.environ["SANDBOXKERNEL_BENCH"] = "1"
    print(f"Linux {platform.release()}, Python {platform.python_version()}, "
          f"load {os.getloadavg()[0]:.2f}, image {image.digest[:19]}")  # fmt: skip
    peers: list[Peer] = [SandboxPeer(work), LocalPeer(work), RuncPeer(python, rootfs)]
    trips = measure_round_trips([SandboxPeer(work), LocalPeer(work)], options.round_trips)
    if options.without_docker:
        starts = measure_starts(peers, options.blocks)
    else:
        with dockerd(rootfs) as (host, name):
            starts = measure_starts([*peers, DockerPeer(python, name, host)], options.blocks)
    tables = {
        "start": report("Cold start to first reply", starts),
        "round_trip": report("Cell round trip", trips),
    }
    if options.json:
        options.json.write_text(json.dumps({"tables": tables, "starts": starts, "trips": trips}))


if __name__ == "__main__":
    main()

"""Groups `ready` and `server`: a start as jupyter_client's and jupyter_server's users see it."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import websocket  # websocket-client, which jupyter_server depends on
from jupyter_client.blocking.client import BlockingKernelClient

from tests.benchmarks.bench import Bench, attempt, in_blocks
from tests.benchmarks.client import milliseconds_since
from tests.benchmarks.peers import ManagedPeer, SandboxPeer
from tests.conformance.server import Server, running_server

__all__ = ["measure_ready", "measure_server"]

TIMEOUT_S = 60.0
KERNEL_NAMES = {"sandboxed": "sandboxed-python", "plain": "python3"}


def measure_ready(bench: Bench) -> None:
    """start_kernel() and wait_for_ready() with the client that jupyter_client comes with."""
    series = bench.series("ready", "start_kernel and wait_for_ready, stock client", "ms")
    peers: list[ManagedPeer] = [bench.ours("spare"), bench.ours("warm"), bench.plain()]
    bench.warm_up(peers)

    def ready(peer: ManagedPeer) -> list[float]:
        peer.prepare()
        try:
            began = time.perf_counter()
            peer.start()
            client: BlockingKernelClient = peer.manager.client()
            client.start_channels()
            try:
                client.wait_for_ready(timeout=TIMEOUT_S)
                taken = milliseconds_since(began)
            finally:
                client.stop_channels()
            peer.check()
        finally:
            peer.stop()
        return [taken]

    def sample(peer: ManagedPeer) -> None:
        attempt(peer.name, [series], lambda: ready(peer))

    in_blocks("wait_for_ready", bench.size.blocks, peers, sample)


def measure_server(bench: Bench) -> None:
    """Through one jupyter_server that offers both kernels, as a front end talks to it."""
    title = "jupyter_server: POST /api/kernels to the first reply on the websocket"
    series = bench.series("server", title, "ms")
    spare = bench.ours("spare")
    bench.warm_up([spare])
    with running_server(bench.work, bench.scratch / "server.log") as server:
        for peer in KERNEL_NAMES:
            _through_server(server, peer, spare)

        def sample(peer: str) -> None:
            attempt(peer, [series], lambda: [_through_server(server, peer, spare)])

        in_blocks("jupyter_server", bench.size.blocks, list(KERNEL_NAMES), sample)


def _through_server(server: Server, peer: str, spare: SandboxPeer) -> float:
    """Milliseconds; the kernel is deleted afterwards. Raises RuntimeError when a cell fails."""
    if peer == "sandboxed":
        spare.prepare()
    began = time.perf_counter()
    kernel = server.call("POST", "kernels", {"name": KERNEL_NAMES[peer]})
    try:
        url = f"ws{server.url.removeprefix('http')}/api/kernels/{kernel['id']}/channels"
        connection = websocket.create_connection(
            url, header=[f"Authorization: token {server.token}"], timeout=TIMEOUT_S
        )
        try:
            _execute(connection)
            return milliseconds_since(began)
        finally:
            connection.close()
    finally:
        server.call("DELETE", f"kernels/{kernel['id']}")


def _execute(connection: Any) -> None:
    """One cell over the websocket (jupyter_server, "WebSocket kernel wire protocols")."""
    wanted = uuid.uuid4().hex
    header = {"msg_id": wanted, "msg_type": "execute_request", "username": "", "version": "5.3",
              "session": uuid.uuid4().hex, "date": ""}  # fmt: skip
    content = {"code": "6*7", "silent": False, "store_history": False, "allow_stdin": False,
               "user_expressions": {"x": "6*7"}, "stop_on_error": True}  # fmt: skip
    connection.send(json.dumps({"header": header, "parent_header": {}, "metadata": {},
                                "content": content, "channel": "shell"}))  # fmt: skip
    replied = idle = False
    while not (replied and idle):
        message = json.loads(connection.recv())
        if message["parent_header"].get("msg_id") != wanted:
            continue
        if message["msg_type"] == "execute_reply":
            shown = message["content"]["user_expressions"]["x"]["data"]["text/plain"]
            if shown != "42":
                raise RuntimeError(f"wrong result {shown!r}")
            replied = True
        idle = idle or message["content"].get("execution_state") == "idle"

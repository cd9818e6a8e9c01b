"""The raw client of every measurement: two sockets and no thread, or the stock client's own."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import zmq
from jupyter_client.session import Session

__all__ = ["Output", "RawClient", "milliseconds_since"]

TIMEOUT_MS, LATE_MS = 30_000, 50
# libzmq retries a socket that does not exist yet every 100 ms by default; peers that bind late
# would be measured by that and not by their start.
RECONNECT_MS = 5


@dataclass
class Output:
    """What a cell has published: messages of its streams, and the bytes of their JSON."""

    messages: int = 0
    size_bytes: int = 0


class RawClient:
    """DEALER on shell and SUB on iopub, nothing else. Receives without a high-water mark."""

    def __init__(self, info: dict[str, Any]) -> None:
        separator = "-" if info["transport"] == "ipc" else ":"  # fails before a socket is open
        self._session: Any = Session(key=info["key"], signature_scheme=info["signature_scheme"])
        self._context: Any = zmq.Context()
        self.shell = self._socket(zmq.DEALER)
        self.shell.setsockopt(zmq.IDENTITY, self._session.bsession)
        self.iopub = self._socket(zmq.SUB)
        self.iopub.setsockopt(zmq.SUBSCRIBE, b"")
        for sock, port in ((self.shell, "shell_port"), (self.iopub, "iopub_port")):
            sock.connect(f"{info['transport']}://{info['ip']}{separator}{info[port]}")

    def _socket(self, kind: int) -> Any:
        sock = self._context.socket(kind)
        sock.linger = 0
        sock.reconnect_ivl = RECONNECT_MS
        sock.rcvhwm = 0
        return sock

    def run_cell(self) -> None:
        """Execute one cell and check its result. Raises RuntimeError when it fails."""
        result = self.evaluate("6*7", "6*7")
        if result != "42":
            raise RuntimeError(f"wrong result {result!r}")

    def evaluate(
        self,
        code: str,
        expression: str = "None",
        *,
        output: Output | None = None,
        timeout_ms: int = TIMEOUT_MS,
    ) -> str:
        """Execute a cell to its reply and idle; the repr of `expression` after it.

        With `output`, the streams' messages are counted and their content is not parsed.
        Raises RuntimeError when the cell fails, or when the kernel is silent for `timeout_ms`.
        """
        content = {"code": code, "silent": False, "store_history": False,
                   "user_expressions": {"x": expression}, "allow_stdin": False,
                   "stop_on_error": True}  # fmt: skip
        message = self._session.send(self.shell, "execute_request", content)
        wanted: str = message["header"]["msg_id"]
        reply: dict[str, Any] | None = None
        idle = heard = False
        poller = zmq.Poller()
        poller.register(self.shell, zmq.POLLIN)
        poller.register(self.iopub, zmq.POLLIN)
        while reply is None or not idle:
            # Where iopub has subscribed after the kernel spoke, only its welcome comes there, and
            # the reply is enough.
            late = reply is not None and not heard
            ready = dict(poller.poll(LATE_MS if late else timeout_ms))
            if not ready and not late:
                raise RuntimeError("no answer")
            idle = idle or not ready
            if self.shell in ready:
                reply = self._reply_to(wanted) or reply
            if self.iopub in ready:
                mine, now_idle = self._published(wanted, output)
                heard, idle = heard or mine, idle or now_idle
        return _result(reply)

    def _reply_to(self, wanted: str) -> dict[str, Any] | None:
        _, reply = self._session.recv(self.shell)
        if reply["parent_header"].get("msg_id") != wanted:
            return None
        content: dict[str, Any] = reply["content"]
        return content

    def _published(self, wanted: str, output: Output | None) -> tuple[bool, bool]:
        """Read one message: whether it is of our cell, and whether it says that it is over."""
        frames = self.iopub.recv_multipart()
        _, rest = self._session.feed_identities(frames)
        # signature, header, parent header, metadata, content (messaging.rst, The Wire Protocol)
        if output is not None and b'"stream"' in bytes(rest[1]):
            output.messages += 1
            output.size_bytes += len(rest[4])
            return True, False
        status = self._session.deserialize(rest)
        mine = status["parent_header"].get("msg_id") == wanted
        return mine, mine and status["content"].get("execution_state") == "idle"

    def evaluate_json(self, code: str, expression: str, *, timeout_ms: int = TIMEOUT_MS) -> Any:
        """As evaluate(), for an expression that is a str of JSON."""
        text = self.evaluate(code, expression, timeout_ms=timeout_ms)
        return json.loads(text.strip("'\""))

    def close(self) -> None:
        """Drop the connections."""
        self._context.destroy(linger=0)


def _result(reply: dict[str, Any] | None) -> str:
    if reply is None or reply["status"] != "ok":
        raise RuntimeError(f"the cell failed: {reply and reply.get('evalue')}")
    shown = reply["user_expressions"]["x"]
    if shown["status"] != "ok":
        raise RuntimeError(f"the expression failed: {shown.get('evalue')}")
    return str(shown["data"]["text/plain"])


def milliseconds_since(began: float) -> float:
    """Milliseconds on the monotonic clock since `began`, a time.perf_counter()."""
    return (time.perf_counter() - began) * 1000

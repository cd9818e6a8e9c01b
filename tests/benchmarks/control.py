"""The control "a zygote without a sandbox", as a peer."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.containers import PORTS, connection
from tests.benchmarks.peers import Peer, Traces

__all__ = ["BarePeer", "bare_zygote"]

PROGRAM = Path(__file__).with_name("bare_zygote.py")
BACKLOG = 128
READY_S, END_S = 120.0, 10.0


@contextlib.contextmanager
def bare_zygote(runtime: Path, scratch: Path) -> Iterator[socket.socket]:
    """Its control socket. Raises RuntimeError when it cannot be made."""
    home = scratch / "home"
    home.mkdir(exist_ok=True)
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(runtime), str(its.fileno())],
        pass_fds=[its.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # ipykernel's advice on how to connect
        env={"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"},
        cwd="/",
    )
    its.close()
    try:
        ours.settimeout(READY_S)
        if not ours.recv(4096):
            raise RuntimeError("the zygote without a sandbox has ended")
        yield ours
    finally:
        ours.close()
        process.wait(END_S)


class BarePeer(Peer):
    """A kernel forked by the bare zygote. It binds its sockets as our daemon does."""

    name = "bare"

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._directory: Path | None = None
        self._pid = 0

    def start(self) -> dict[str, Any]:
        self._directory = Path(tempfile.mkdtemp(prefix="sk-bench-", dir="/run"))
        info = connection(str(self._directory / "s"), uuid.uuid4().hex)
        path = self._directory / "connection.json"
        path.write_text(json.dumps(info))
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in PORTS]
            for number, sock in enumerate(sockets, 1):
                sock.bind(f"{info['ip']}-{number}")
                sock.listen(BACKLOG)
            socket.send_fds(self._control, [str(path).encode()], [s.fileno() for s in sockets])
        answer = json.loads(self._control.recv(4096))
        self._pid = answer["pid"]
        if answer["error"]:
            raise RuntimeError(f"it was not forked: {answer['error']}")
        return {**info, "key": info["key"].encode()}

    def stop(self) -> None:
        if self._pid:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(self._pid, signal.SIGKILL)
            traces, deadline = Traces((self._pid,), ()), time.monotonic() + END_S
            while traces.left():
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{traces.left()} does not end")
                time.sleep(0.001)
            self._pid = 0
        if self._directory is not None:
            shutil.rmtree(self._directory)
            self._directory = None

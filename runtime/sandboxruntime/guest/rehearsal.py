"""A start of the kernel on trial, in throw-away children of a zygote that is being made.

It teaches what a start imports and which memory it touches, and proves that this image's
ipykernel can be started at all. The client is a process of its own, or its traces would be
taken for the kernel's.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from typing import Any

__all__ = ["FIRST", "SOON", "rehearse"]

LIMIT_S = 60
_PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
Script = tuple[tuple[str, dict[str, Any]], ...]


def _cell(code: str) -> tuple[str, dict[str, Any]]:
    content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
    return "execute_request", content


# What every front end does at once, and what people do soon.
FIRST: Script = (("kernel_info_request", {}), _cell("6*7"))
SOON: Script = (
    *FIRST,
    *(_cell(code) for code in ("print(1)", "1/0", "import os; os.getpid()")),
    ("complete_request", {"code": "os.getp", "cursor_pos": 7}),
    ("inspect_request", {"code": "print", "cursor_pos": 3, "detail_level": 0}),
)


def rehearse(
    start: Callable[[str], None], app: Any, script: Script, learn: Callable[[], list[Any]]
) -> list[Any]:
    """Start a kernel, play a client's requests, and return what `learn` then finds in the kernel.

    `start` takes a connection file. Raises ChildProcessError when the kernel ends before that.
    """
    folder = tempfile.mkdtemp()
    report_read, report_write = os.pipe()
    done_read, done_write = os.pipe()

    def report(*_: object) -> None:
        with open(report_write, "w", encoding="utf-8") as stream:
            json.dump(learn(), stream)
        os._exit(0)

    try:
        info = _connection(folder)
        kernel = os.fork()
        if kernel == 0:
            os.close(done_write)
            _in_child(lambda: _be_kernel(start, app, folder, done_read, report))
        client = os.fork()
        if client == 0:
            os.close(report_write)
            _in_child(lambda: _be_client(info, script))
        os.close(report_write)
        os.close(done_write)
        os.close(done_read)
        with open(report_read, encoding="utf-8") as stream:
            text = stream.read()
        _, status = os.waitpid(kernel, 0)
        os.kill(client, signal.SIGKILL)  # where the kernel has failed, it still waits
        os.waitpid(client, 0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not text:
        raise ChildProcessError(f"the rehearsal of a start failed with wait status {status}")
    return list(json.loads(text))


def _connection(folder: str) -> dict[str, Any]:
    info = {
        "transport": "ipc",
        "ip": os.path.join(folder, "s"),
        "key": "rehearsal",
        "signature_scheme": "hmac-sha256",
        **{name: number for number, name in enumerate(_PORTS, start=1)},
    }
    with open(os.path.join(folder, "connection.json"), "w", encoding="utf-8") as stream:
        json.dump(info, stream)
    return info


def _in_child(work: Callable[[], None]) -> None:
    signal.alarm(LIMIT_S)
    try:
        work()
    finally:
        os._exit(1)


def _be_kernel(
    start: Callable[[str], None], app: Any, folder: str, done_fd: int, report: Callable[..., None]
) -> None:
    from tornado.ioloop import IOLoop

    start(os.path.join(folder, "connection.json"))
    IOLoop.current().add_handler(done_fd, report, IOLoop.READ)  # readable when the client ends
    app.start()


def _be_client(info: dict[str, Any], script: Script) -> None:
    import zmq
    from jupyter_client.session import Session

    session = Session(key=info["key"].encode())
    shell: Any = zmq.Context.instance().socket(zmq.DEALER)
    shell.connect(f"ipc://{info['ip']}-{info['shell_port']}")
    for kind, content in script:
        session.send(shell, kind, content)
        session.recv(shell, mode=0)
    os._exit(0)

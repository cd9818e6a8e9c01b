"""A zygote without a sandbox: prepares ipykernel as ours does, and only forks. A program.

    python bare_zygote.py RUNTIME_DIRECTORY CONTROL_FD

The control, SOCK_SEQPACKET, carries a connection file's path with five listening descriptors; the
answer is the kernel's pid, once it has taken over. Nothing here confines, verifies or limits: what
is left of the time to the first reply is what preparing and forking alone would give.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

FIRST_FD = 100  # clear of what the interpreter and its libraries have open
PORTS = 5


def main() -> None:
    """Prepare, say so, fork for every request; ends when the control is closed."""
    runtime, control_fd = sys.argv[1:]
    sys.path[0] = runtime
    from sandboxruntime.guest import immortal, warm

    control = socket.socket(fileno=int(control_fd))
    gc.disable()
    prepared = warm.prepare([])
    immortal.freeze()
    populate = warm.learn_pages(prepared, lambda: None)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Linux reaps the children
    control.send(json.dumps({"ready": os.getpid()}).encode())
    program = str(Path(runtime) / "sandboxruntime" / "guest" / "kernel.py")
    while True:
        request, fds, _, _ = socket.recv_fds(control, 4096, PORTS)
        if not request:
            return
        watch, handover = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            watch.close()
            control.close()
            populate()
            argv = [sys.executable, program, request.decode(), str(FIRST_FD)]
            _become_kernel(warm.finish, prepared, handover, argv, list(fds))
        handover.close()
        for fd in fds:
            os.close(fd)
        # The kernel closes its end once it has taken over, and says so if it executes instead.
        objection = watch.recv(4096)
        watch.close()
        control.send(json.dumps({"pid": pid, "error": objection.decode()}).encode())


def _become_kernel(
    finish: Any, prepared: Any, handover: socket.socket, argv: list[str], fds: list[int]
) -> None:
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, fd in enumerate(fds, FIRST_FD):
            os.dup2(fd, number)
            os.close(fd)
        finish(prepared, handover, argv, dict(prepared.environment))
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()

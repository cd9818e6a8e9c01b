"""Runs inside: binds ZMQ sockets on the descriptors that the daemon listens on, then ipykernel.

Executed as a file by the image's Python, which need not have this package: it may import the
standard library, pyzmq and ipykernel only. Arguments: the connection file, the number of the
first listening descriptor, then ipykernel's own arguments.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import Any

FIRST_PORT = 1
PORTS = 5


def use_listening_descriptors(prefix: str, first_fd: int) -> None:
    """Make bind() of `ipc://PREFIX-N` take the descriptor the daemon has bound to that path.

    The path lies outside this file system, so nothing here could bind, replace or unlink it
    (zmq_setsockopt(3), ZMQ_USE_FD).
    """
    import zmq
    from zmq.sugar.socket import Socket

    descriptors = {
        f"ipc://{prefix}-{FIRST_PORT + index}": first_fd + index for index in range(PORTS)
    }
    plain_bind = Socket.bind

    def bind(self: Any, addr: Any) -> Any:
        fd = descriptors.get(addr.decode() if isinstance(addr, bytes) else addr)
        if fd is not None:
            # libzmq closes what it is given; a duplicate lets a socket be bound again.
            self.setsockopt(zmq.USE_FD, os.dup(fd))
        return plain_bind(self, addr)

    Socket.bind = bind  # type: ignore[method-assign]  # the seam is pyzmq's own method


def main() -> None:
    """Start ipykernel as ipykernel_launcher does."""
    connection_file, first_fd, *arguments = sys.argv[1:]
    with open(connection_file, encoding="utf-8") as stream:
        prefix = json.load(stream)["ip"]
    # As ipykernel_launcher: the folder of this file must not be importable.
    del sys.path[0]
    for fd in range(int(first_fd), int(first_fd) + PORTS):
        os.set_inheritable(fd, False)
    use_listening_descriptors(prefix, int(first_fd))
    sys.argv = ["ipykernel_launcher", "-f", connection_file, *arguments]
    # A twentieth of the start goes into collections that find nothing: what an import makes,
    # stays. Frozen, it does not weigh on the collections of the user's code either.
    gc.disable()
    from ipykernel import kernelapp

    gc.freeze()
    gc.enable()
    kernelapp.launch_new_instance()


if __name__ == "__main__":
    main()

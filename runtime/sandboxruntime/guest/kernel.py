"""Runs inside: binds ZMQ sockets on the descriptors that the daemon listens on, then ipykernel.

Executed as a file by the image's Python, which need not have this package: it may import the
standard library, pyzmq and ipykernel only. Arguments: the connection file, the number of the
first listening descriptor, then ipykernel's own arguments; or first the module of another kernel,
whose sockets must be pyzmq's.
"""

from __future__ import annotations

import gc
import json
import os
import site
import sys
from typing import Any

MODULE_OPTION = "--sandboxkernel-module="
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
            plain_bind(self, addr)
            self.setsockopt(zmq.USE_FD, -1)
            # ipykernel's debugger connects to its own shell socket's last endpoint; the path
            # cannot be reached from here, so the last endpoint is one within the process.
            addr = f"inproc://sandboxkernel-{fd}"
        return plain_bind(self, addr)

    Socket.bind = bind  # type: ignore[method-assign]  # the seam is pyzmq's own method


def add_user_site() -> None:
    """Let what the first `pip install` of a fresh layer installs be importable at once.

    site.py adds the user's site-packages only if they exist when the interpreter starts.
    """
    if not site.ENABLE_USER_SITE:
        return
    folder = site.getusersitepackages()
    if folder in sys.path:
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return  # a home that cannot be written: nothing will be installed there either
    shared = site.getsitepackages()
    place = next((i for i, path in enumerate(sys.path) if path in shared), len(sys.path))
    sys.path.insert(place, folder)


def run_module(module: str, connection_file: str, arguments: list[str]) -> None:
    """As `python -m MODULE -f FILE ARGUMENTS`, with the working folder importable."""
    import runpy

    sys.argv = [module, "-f", connection_file, *arguments]
    sys.path.insert(0, os.getcwd())
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> None:
    """Start ipykernel as ipykernel_launcher does."""
    connection_file, first_fd, *arguments = sys.argv[1:]
    with open(connection_file, encoding="utf-8") as stream:
        prefix = json.load(stream)["ip"]
    # As ipykernel_launcher: the folder of this file must not be importable.
    del sys.path[0]
    add_user_site()
    for fd in range(int(first_fd), int(first_fd) + PORTS):
        os.set_inheritable(fd, False)
    use_listening_descriptors(prefix, int(first_fd))
    if arguments and arguments[0].startswith(MODULE_OPTION):
        run_module(arguments[0].removeprefix(MODULE_OPTION), connection_file, arguments[1:])
        return
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

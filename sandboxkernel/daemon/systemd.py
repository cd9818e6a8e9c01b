"""What a service manager gives and wants: sd_listen_fds(3) and sd_notify(3). Effectful."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from pathlib import Path

from sandboxkernel.errors import SandboxError

__all__ = ["notify", "take_listening_socket"]

FIRST_FD = 3  # SD_LISTEN_FDS_START
_PROTOCOL = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def take_listening_socket(
    path: Path, environ: MutableMapping[str, str] = os.environ
) -> socket.socket | None:
    """The API socket that the service manager listens on for us, or None.

    Its variables are taken out of the environment, so that no child believes them to be its own.
    The caller owns the socket, but not its name: that is the service manager's to remove.
    Raises SandboxError if what is passed is not one socket that listens on `path`.
    """
    pid, count, _ = (environ.pop(name, "") for name in _PROTOCOL)
    if not count or pid != str(os.getpid()):
        return None
    if count != "1":
        raise SandboxError(
            f"the service manager passes {count} sockets; the daemon takes one",
            hint="Keep one ListenStream= in sandboxkernel.socket.",
        )
    os.set_inheritable(FIRST_FD, False)
    sock = socket.socket(fileno=FIRST_FD)
    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM) or not listens:
        raise SandboxError("the service manager's socket is not a listening unix stream socket")
    # Elsewhere no client would look for it, and another daemon could hold this one's directory.
    if sock.getsockname() != str(path):
        raise SandboxError(
            f"the service manager listens on {sock.getsockname()}, not on {path}",
            hint="Make ListenStream= and SANDBOXKERNEL_RUN_DIR agree.",
        )
    sock.setblocking(False)
    return sock


def notify(state: str, environ: MutableMapping[str, str] = os.environ) -> None:
    """Tell the service manager, e.g. "READY=1"; nothing where there is none.

    The variable stays: a daemon speaks more than once, and only its main process is heard.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace (unix(7))
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), address)
        except (FileNotFoundError, ConnectionRefusedError):
            pass  # the manager has gone: there is nobody to tell, and we go on serving

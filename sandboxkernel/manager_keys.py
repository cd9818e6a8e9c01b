"""The keys that a KernelManager and its kernel share, as a provisioner needs them."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from jupyter_client.connect import KernelConnectionInfo

from sandboxkernel.models import Kernel, KernelConnection

__all__ = ["connection_info", "take_keys"]


def connection_info(kernel: Kernel, manager: Any) -> KernelConnectionInfo:
    """What a manager is told of a kernel: the daemon's sockets, the manager's keys."""
    assert kernel.connection is not None
    connection = kernel.connection
    info: KernelConnectionInfo = {
        "transport": connection.transport,
        "ip": connection.ip,
        "shell_port": connection.shell_port,
        "iopub_port": connection.iopub_port,
        "stdin_port": connection.stdin_port,
        "control_port": connection.control_port,
        "hb_port": connection.hb_port,
        "key": manager.session.key,
        "signature_scheme": manager.session.signature_scheme,
        "kernel_name": manager.kernel_name or "",
    }
    if getattr(manager, "curve_publickey", None) is not None:
        # str, not bytes: the manager compares with what its connection file says.
        info["curve_publickey"] = manager.curve_publickey.decode()
        info["curve_secretkey"] = manager.curve_secretkey.decode()
    return info


def take_keys(manager: Any, found: KernelConnection) -> None:
    """Give a manager the keys of a kernel that runs already."""
    manager.session.key = found.key.encode()
    manager.session.signature_scheme = found.signature_scheme
    # A manager does not load what a file says already; this one is the dead server's.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(manager.connection_file)
    for kind in ("public", "secret"):
        if (key := getattr(found, f"curve_{kind}key")) is not None:
            setattr(manager, f"curve_{kind}key", key.encode())

"""Jupyter's connection file, as clients that start kernels by `argv` write it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from sandboxkernel.errors import RequestError
from sandboxkernel.models import CONNECTION_PORTS

__all__ = ["ConnectionFile", "read_connection_file"]

SIZE_MAX = 64 * 1024  # bytes; a real one has 500

Port = Annotated[int, Meta(ge=1, le=65535)]


class ConnectionFile(Struct, kw_only=True, frozen=True):
    """Where a client will look for its kernel, and the keys of both. Unknown members are ignored.

    jupyter_client, "Connection files"; a kernel binds exactly these five endpoints.
    """

    transport: Literal["tcp", "ipc"] = "tcp"
    ip: Annotated[str, Meta(min_length=1)]
    shell_port: Port
    iopub_port: Port
    stdin_port: Port
    control_port: Port
    hb_port: Port
    key: str = ""
    signature_scheme: str = "hmac-sha256"
    kernel_name: str = ""
    curve_publickey: str | None = None
    curve_secretkey: str | None = None

    def ports(self) -> dict[str, int]:
        """The ports by name, shell first."""
        return {name: getattr(self, name) for name in CONNECTION_PORTS}


def read_connection_file(path: Path) -> ConnectionFile:
    """Read and check a connection file. Raises RequestError, which names file and member."""
    try:
        with path.open("rb") as stream:
            data = stream.read(SIZE_MAX + 1)
    except OSError as exc:
        raise RequestError(f"cannot read the connection file {path}: {exc.strerror}") from exc
    if len(data) > SIZE_MAX:
        raise RequestError(f"the connection file {path} has more than {SIZE_MAX} bytes")
    try:
        found = msgspec.json.decode(data, type=ConnectionFile)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise RequestError(
            f"{path} is not a connection file that a client could use: {exc}",
            hint="It needs transport, ip, five ports and key, as jupyter_client writes them.",
        ) from exc
    if len(set(found.ports().values())) < len(CONNECTION_PORTS):
        raise RequestError(f"{path} names one port twice: {found.ports()}")
    return found

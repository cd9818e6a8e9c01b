"""Where things live, with the environment variables that move them. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["API_SOCKET_NAME", "HOST_VARIABLE", "Paths", "api_socket_path"]

HOST_VARIABLE = "SANDBOXKERNEL_HOST"  # unix:///run/sandboxkernel/api.sock
RUN_DIR_VARIABLE = "SANDBOXKERNEL_RUN_DIR"
DATA_DIR_VARIABLE = "SANDBOXKERNEL_DATA_DIR"
API_SOCKET_NAME = "api.sock"


@dataclass(frozen=True, slots=True)
class Paths:
    """Directories of one daemon. `run_dir` must be short: socket paths end at 107 bytes."""

    run_dir: Path
    data_dir: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Paths:
        """The system's directories, unless the environment moves them."""
        return cls(
            run_dir=Path(environ.get(RUN_DIR_VARIABLE) or "/run/sandboxkernel"),
            data_dir=Path(environ.get(DATA_DIR_VARIABLE) or "/var/lib/sandboxkernel"),
        )

    @property
    def api_socket(self) -> Path:
        """The REST socket."""
        return self.run_dir / API_SOCKET_NAME

    @property
    def kernels_dir(self) -> Path:
        """One directory of five sockets per kernel: `k/<12 hex>/s-1` to `s-5`."""
        return self.run_dir / "k"

    @property
    def leases_dir(self) -> Path:
        """One journal per sandbox, written before anything is acquired."""
        return self.run_dir / "leases"

    @property
    def images_dir(self) -> Path:
        """The image store."""
        return self.data_dir / "images"

    @property
    def users_dir(self) -> Path:
        """User layers: `users/<uid>/<lineage>/{upper,work}`. Root's, mode 0700."""
        return self.data_dir / "users"

    @property
    def scratch_dir(self) -> Path:
        """Layers of ephemeral sandboxes, deleted with them."""
        return self.data_dir / "scratch"


def api_socket_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The socket that a client talks to: SANDBOXKERNEL_HOST, or the default."""
    host = environ.get(HOST_VARIABLE, "")
    if host.startswith("unix://"):
        return Path(host.removeprefix("unix://"))
    if host:
        return Path(host)
    return Paths.from_environment(environ).api_socket

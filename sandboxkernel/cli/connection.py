"""Which daemon a command talks to, and whether one may be started for it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import click

from sandboxkernel.client import REQUEST_TIMEOUT_S, SandboxClient
from sandboxkernel.errors import DaemonUnavailable
from sandboxkernel.launch_daemon import ensure_daemon
from sandboxkernel.paths import HOST_VARIABLE, api_socket_path

__all__ = ["connect", "connect_or_none", "connect_or_start", "daemon_address", "starter"]


def _environment() -> dict[str, str]:
    host = click.get_current_context().find_root().params.get("host")
    return {**os.environ, HOST_VARIABLE: host} if host else dict(os.environ)


def daemon_address() -> Path:
    """The socket that `--host` or the environment chose."""
    return api_socket_path(_environment())


def connect(*, timeout_s: float = REQUEST_TIMEOUT_S) -> SandboxClient:
    """A client; nothing is started. For commands about sandboxes, which need a daemon to exist."""
    return SandboxClient(daemon_address(), timeout_s=timeout_s)


def connect_or_start() -> SandboxClient:
    """A client of a daemon that answers, started where that is allowed.

    For `run`, and for what is on disk (images, layers), which only a daemon may touch.
    """
    return ensure_daemon(environ=_environment())


def starter() -> Callable[[], SandboxClient]:
    """`connect_or_start`, for any thread and any number of times."""
    return functools.partial(ensure_daemon, environ=_environment())


def connect_or_none() -> SandboxClient | None:
    """A client, or None where no daemon was named and none runs: then there are no sandboxes.

    A daemon that was named and is gone, or that refuses us, is an error: DaemonUnavailable.
    """
    client = connect()
    try:
        client.ping()
    except DaemonUnavailable as exc:
        absent = isinstance(exc.__cause__, FileNotFoundError | ConnectionRefusedError)
        if absent and not _environment().get(HOST_VARIABLE):
            return None
        raise
    return client

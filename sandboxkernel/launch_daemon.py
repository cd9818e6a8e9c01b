"""The embedded default: where no daemon listens and the caller is root, one is started."""

from __future__ import annotations

import fcntl
import logging
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from sandboxkernel.client import SandboxClient
from sandboxkernel.errors import DaemonUnavailable
from sandboxkernel.paths import HOST_VARIABLE, Paths, api_socket_path

__all__ = ["ensure_daemon"]

START_TIMEOUT_S = 30.0
LOG_TAIL_LINES = 10
LOG_BYTES_MAX = 1 << 20


def ensure_daemon(
    *, environ: Mapping[str, str] = os.environ, log: logging.Logger | None = None
) -> SandboxClient:
    """A client of a daemon that answers, started now if need be.

    Never starts one when SANDBOXKERNEL_HOST names a daemon, or when the caller is not root.
    Raises DaemonUnavailable, which then says what to do.
    """
    client = SandboxClient(api_socket_path(environ))
    try:
        client.ping()
        return client
    except DaemonUnavailable:
        if environ.get(HOST_VARIABLE) or os.geteuid() != 0:
            raise
    paths = Paths.from_environment(environ)
    paths.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock_fd = os.open(paths.run_dir / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        try:
            client.ping()  # another caller was faster
        except DaemonUnavailable:
            if log is not None:
                log.info("starting an embedded sandboxkernel daemon in %s", paths.run_dir)
            _start(paths, environ)
    finally:
        os.close(lock_fd)
    return client


def _start(paths: Paths, environ: Mapping[str, str]) -> None:
    log_path = paths.run_dir / "daemon.log"
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    mode = "ab" if log_path.exists() and log_path.stat().st_size < LOG_BYTES_MAX else "wb"
    with open(ready_read, "rb", buffering=0) as ready, log_path.open(mode) as log_file:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "sandboxkernel.daemon", "--embedded",
                 f"--ready-fd={ready_write}"],
                pass_fds=[ready_write],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log_file,
                env=_daemon_environment(environ),
                cwd="/",
                start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(ready_write)
        poll = select.poll()  # select(2) knows no descriptor above 1023
        poll.register(ready, select.POLLIN)
        readable = poll.poll(START_TIMEOUT_S * 1000)
        if readable and ready.read(1):
            # It outlives us on purpose; init reaps it.
            process.returncode = 0
            return
    process.kill()
    process.wait()
    raise DaemonUnavailable(
        f"the sandboxkernel daemon did not start: {_tail(log_path)}",
        hint="Run `sandboxkernel doctor`, or `sandboxkerneld` in a terminal.",
    )


def _daemon_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Only what moves directories: the daemon must not hold the server's secrets either."""
    kept = ("PATH", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    return {
        name: value
        for name, value in environ.items()
        if name in kept or name.startswith("SANDBOXKERNEL_") or name == "JUPYTER_CONFIG_PATH"
    }


def _tail(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return " | ".join(lines) or "it wrote nothing"

"""A Jupyter server extension: kernels of a server that was killed are the next one's.

A sandboxed kernel lives on when its Jupyter server is killed, until its lease ends. When a server
starts, it attaches to those of its user whose folder lies in its own, under their old ids, and
gives them their sessions back: a notebook that is still open in a browser goes on where it was.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from sandboxkernel.client import SandboxClient
from sandboxkernel.errors import SandboxError
from sandboxkernel.models import Kernel

__all__ = ["reattach"]


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    """Called by jupyter_server: which modules are extensions."""
    return [{"module": "sandboxkernel.serverextension"}]


def _load_jupyter_server_extension(serverapp: Any) -> None:
    """Called by jupyter_server before it serves."""
    serverapp.io_loop.add_callback(reattach, serverapp)


async def reattach(serverapp: Any) -> list[str]:
    """Attach the server to its user's kernels that nobody is attached to; their ids.

    What cannot be attached is left alone, with a line in the log: a server must start without.
    """
    try:
        client = SandboxClient()
        kernels = await asyncio.to_thread(lambda: list(client.kernels()))
    except SandboxError as exc:
        serverapp.log.debug("no sandboxed kernels to attach to: %s", exc)
        return []
    root = Path(serverapp.root_dir).resolve()
    attached = []
    for kernel in kernels:
        if _is_ours(kernel, root):
            try:
                await _attach(serverapp, client, kernel, root)
                attached.append(kernel.kernel_id)
            except Exception:
                serverapp.log.exception("cannot attach to kernel %s", kernel.kernel_id)
    return attached


def _is_ours(kernel: Kernel, root: Path) -> bool:
    return (
        kernel.owner_uid == os.geteuid()
        and kernel.connection is not None
        and kernel.state == "running"
        and not kernel.attached
        and kernel.cwd is not None
        and Path(kernel.cwd).is_relative_to(root)
    )


async def _attach(serverapp: Any, client: SandboxClient, kernel: Kernel, root: Path) -> None:
    found = await asyncio.to_thread(client.connection, kernel.kernel_id)
    name = found.session_name or ""
    # The provisioner finds it running, and takes it over instead of starting one.
    await serverapp.kernel_manager.start_kernel(
        kernel_id=kernel.kernel_id,
        kernel_name=kernel.kernel_name,
        cwd=kernel.cwd,
        env={**os.environ, **({"JPY_SESSION_NAME": name} if name else {})},
    )
    path = _session_path(name, root)
    if path is not None:
        sessions = serverapp.session_manager
        is_notebook = path.endswith(".ipynb")
        await sessions.save_session(
            sessions.new_session_id(),
            path=path,
            name=os.path.basename(path) if is_notebook else "",
            type="notebook" if is_notebook else "console",
            kernel_id=kernel.kernel_id,
        )
    serverapp.log.info("attached to kernel %s of %s", kernel.kernel_id, path or kernel.cwd)


def _session_path(name: str, root: Path) -> str | None:
    """The path of a session as the API has it: relative to the server's folder."""
    if not name:
        return None
    path = Path(name)
    if not path.is_absolute():
        return name
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else None

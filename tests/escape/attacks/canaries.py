"""What attacks aim at: each is made on the host for one attack, and harmless to reach."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import struct
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.harness import ID_BASE

IPC_CREAT, IPC_RMID, IPC_KEY = 0o1000, 0, 0x5AFE


@contextlib.contextmanager
def abstract_socket(layer: Path | None) -> Iterator[Mapping[str, Any]]:
    """A listener of the host's, with a name in no file system."""
    name = f"\0sandboxkernel-canary-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(name)
        listener.listen()
        client.connect(name)  # it is there
        yield {"name": name}


@contextlib.contextmanager
def loopback_port(layer: Path | None) -> Iterator[Mapping[str, Any]]:
    """A listener on the host's loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        socket.create_connection(address).close()
        yield {"port": address[1]}


@contextlib.contextmanager
def shared_memory(layer: Path | None) -> Iterator[Mapping[str, Any]]:
    """System V shared memory of the host's that everybody may open."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = libc.shmget(IPC_KEY, 4096, IPC_CREAT | 0o666)
    assert found >= 0, os.strerror(ctypes.get_errno())
    try:
        yield {"key": IPC_KEY}
    finally:
        libc.shmctl(found, IPC_RMID, None)


@contextlib.contextmanager
def canary_directory(layer: Path | None) -> Iterator[Mapping[str, Any]]:
    """A directory of the host's that everybody may read."""
    folder = Path(tempfile.mkdtemp(prefix="sandboxkernel-canary-", dir="/srv"))
    folder.chmod(0o755)
    (folder / "file").write_text("canary")
    try:
        yield {"path": str(folder / "file")}
    finally:
        shutil.rmtree(folder)


def device(major: int, minor: int) -> Any:
    """A device node in the layer, which everybody may open."""

    @contextlib.contextmanager
    def arrange(layer: Path | None) -> Iterator[Mapping[str, Any]]:
        assert layer is not None
        node = layer / "home/sandbox/node"
        os.mknod(node, 0o020666, os.makedev(major, minor))
        node.chmod(0o666)
        os.chown(node, ID_BASE + 1000, ID_BASE + 1000)
        yield {}

    return arrange


@contextlib.contextmanager
def set_user_id_program(layer: Path | None) -> Iterator[Mapping[str, Any]]:
    """A program that belongs to inside root, with the set-user-id bit."""
    assert layer is not None
    program = layer / "home/sandbox/id"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    os.chown(program, ID_BASE, ID_BASE)
    program.chmod(0o4755)
    yield {}


@contextlib.contextmanager
def program_with_capability(layer: Path | None) -> Iterator[Mapping[str, Any]]:
    """A program with CAP_NET_RAW in its file, given by the root of the sandbox's user namespace."""
    assert layer is not None
    program = layer / "home/sandbox/cat"
    program.write_bytes(Path("/usr/bin/cat").read_bytes())
    os.chown(program, ID_BASE, ID_BASE)
    program.chmod(0o755)
    os.setxattr(program, "security.capability", file_capability(ID_BASE))
    yield {}


def file_capability(root_uid: int | None) -> bytes:
    """CAP_NET_RAW, permitted and effective, as linux/capability.h has it: struct vfs_ns_cap_data.

    Given by the root of the user namespace whose root is `root_uid`; by the host's with None.
    """
    revision_2, revision_3, effective, net_raw = 0x02000000, 0x03000000, 1, 1 << 13
    if root_uid is None:
        return struct.pack("<5I", revision_2 | effective, net_raw, 0, 0, 0)
    return struct.pack("<6I", revision_3 | effective, net_raw, 0, 0, 0, root_uid)

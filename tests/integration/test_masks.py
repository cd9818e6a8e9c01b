"""What /proc says of the host as a whole, and of others' files, is covered; with its control."""

from __future__ import annotations

import fcntl
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxruntime.spec import MASKED_PATHS
from tests.harness import Harness, harness, make_spec

F_OFD_SETLK = 37  # fcntl(2)
LOOK = """
import json, os
def entries(path):
    return os.listdir(path) if os.path.isdir(path) else []
def trigger():
    try:
        fd = os.open("/proc/pressure/memory", os.O_RDWR)
        return os.write(fd, b"some 150000 2000000\\0")
    except OSError as exc:
        return exc.errno
print(json.dumps({"locks": open("/proc/locks").read(), "trigger": trigger(),
    "pressure": len(open("/proc/pressure/memory").read()),
    **{path: entries(path) for path in ("/proc/bus", "/proc/fs", "/proc/irq")}}))
"""


@pytest.fixture(scope="module")
def launcher() -> Iterator[Harness]:
    with harness() as running:
        yield running


def look(running: Harness, **changes: Any) -> dict[str, Any]:
    with make_spec(**changes) as spec, running.container(spec) as attempt:
        _, output = attempt.run("python3", "-c", LOOK)
    found: dict[str, Any] = json.loads(output)
    return found


def test_neither_locks_nor_hardware_nor_file_systems_of_the_host_are_shown(
    launcher: Harness, tmp_path: Path
) -> None:
    """A lock of an open file description has no owner that a PID namespace could hide."""
    masks = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/locks"}
    with (tmp_path / "locked").open("w") as file:
        fcntl.fcntl(file.fileno(), F_OFD_SETLK, struct.pack("hhlli4x", fcntl.F_WRLCK, 0, 0, 0, 0))
        inode = f":{os.fstat(file.fileno()).st_ino} "
        covered = look(launcher)
        shown = look(launcher, masked_paths=tuple(p for p in MASKED_PATHS if p not in masks))
    assert covered["locks"] == "" and inode in shown["locks"]
    assert not covered["/proc/bus"] and not covered["/proc/irq"] and not covered["/proc/fs"]
    assert shown["/proc/irq"]

"""Targets of the outside verification: what it lets pass is confined, by another reading of the text.

What it reads is Linux's word, so text that Linux never writes may be refused by any error at all;
the names in it are others': of a process, and of folders that are mounted. It has no
function that takes text alone, so its reader of /proc is given the text.
"""

from __future__ import annotations

import re
from unittest import mock

from sandboxruntime import verify
from sandboxruntime.errors import ContainerError
from sandboxruntime.mounts import DEVICES
from sandboxruntime.rlimits import DEFAULTS
from sandboxruntime.spec import Spec, from_json
from tests.fuzz.runtime import SPEC

__all__ = ["MOUNTS", "STATUS", "TARGETS", "passes_mounts", "passes_status"]

CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
NOT_LINUX = (ContainerError, KeyError, ValueError, IndexError)
HELD = from_json(Spec, {
    **SPEC, "masked_paths": ["/proc/kcore", "/proc/keys"], "read_only_paths": ["/proc/sys"],
})  # fmt: skip
HOST = dict.fromkeys(verify.NAMESPACES, 1)
STATUS = "".join(
    f"{name}:\t{value}\n"
    for name, value in {
        "Name": "python3", "Pid": "7", "Uid": "\t".join(["66536"] * 4),
        "Gid": "\t".join(["66536"] * 4), "Groups": " ",
        **dict.fromkeys(CAPABILITIES, "0000000000000000"),
        "NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": "1",
    }.items()
)  # fmt: skip
POINTS = ("/proc", "/dev", *(f"/dev/{name}" for name in (*DEVICES, "pts", "shm", "mqueue")), "/tmp",
          "/run", "/home/a")  # fmt: skip
MOUNTS = "\n".join((
    "30 1 0:40 / / rw,nosuid,nodev - overlay overlay rw",
    *(f"31 30 0:41 / {point} rw,nosuid,nodev,noexec - tmpfs x rw" for point in POINTS),
    *(f"32 30 0:5 /null {point} rw,nosuid,noexec - devtmpfs x rw"
      for point in ("/proc/kcore", "/proc/keys", "/home/a/.ssh")),
    "33 30 0:42 /sys /proc/sys ro,nosuid,nodev,noexec - proc proc rw",
))  # fmt: skip


def passes_status(text: str) -> bool:
    """Whether the outside verification lets a pid 1 pass that has this status."""
    try:
        with (
            mock.patch.object(verify, "_read", lambda *_: text),
            mock.patch("signal.pidfd_send_signal"),
        ):
            verify.verify_init(0, -1, HELD, filters=1)
    except NOT_LINUX:
        return False
    return True


def passes_mounts(text: str) -> bool:
    """Whether it lets a process pass that has this mountinfo, and is else as it should be."""
    facts = verify.Facts(
        pid=2,
        namespaces=dict.fromkeys(verify.NAMESPACES, 2),
        status=dict(line.split(":\t", 1) for line in STATUS.splitlines()),
        uid_map="0 65536 65536", gid_map="0 65536 65536", cgroup="", mountinfo=text,
        descriptors={0: "/dev/null"}, cwd="/", limits=DEFAULTS, setgroups="deny",
    )  # fmt: skip
    try:
        verify.check(facts, HELD, HOST, filters=1)
    except NOT_LINUX:
        return False
    return True


def init_status(data: bytes) -> None:
    """/proc/PID/status: whoever passes has one uid, no capability, and its filter."""
    text = data.decode("utf-8", "surrogateescape")
    if not passes_status(text):
        return
    for name in CAPABILITIES:
        assert int(_last(text, name), 16) == 0, name
    assert [_last(text, name) for name in ("Groups", "NoNewPrivs", "Seccomp")] == ["", "1", "2"]
    assert [_last(text, name).split() for name in ("Uid", "Gid")] == [["66536"] * 4] * 2


def _last(text: str, name: str) -> str:
    return re.findall(rf"(?:^|\n){name}:\t([^\n]*)", text)[-1].strip()


def own_mounts(data: bytes) -> None:
    """/proc/PID/mountinfo: whatever passes lies on the overlay, and no mount honours a set-user-id."""
    text = data.decode("utf-8", "surrogateescape")
    if not passes_mounts(text):
        return
    lines = [line for line in text.split("\n") if line]
    assert lines[0].split(" ")[4] == "/" and " - overlay" in lines[0]
    for line in lines:
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        assert "nosuid" in fields[5].split(","), line
        assert not re.search(r"(^| )(shared|master):", " ".join(fields[6:])), line
        if fields[4] in ("/proc/kcore", "/proc/keys", "/home/a/.ssh"):
            assert fields[3] == "/null" or right.startswith("tmpfs"), line
        if fields[4] == "/proc/sys":
            assert "ro" in fields[5].split(","), line


TARGETS = {
    init_status: [STATUS.encode()],
    own_mounts: [MOUNTS.encode()],
}

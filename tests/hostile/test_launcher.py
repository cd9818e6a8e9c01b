"""Made-up messages to a live launcher, and made-up words of a guest's to the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from sandboxkernel.daemon import handover
from sandboxkernel.daemon.handover import HandOver
from sandboxkernel.errors import KernelStartFailed, SandboxError
from sandboxruntime.channel import MAX_MESSAGE
from sandboxruntime.handover import MAX_RESULT, Payload
from sandboxruntime.launcher import _OPERATIONS
from sandboxruntime.spec import to_json
from tests.harness import Harness, harness, make_spec
from tests.support import wait_until

SEED, MESSAGES = 1, 400
PAYLOAD = Payload(argv=["true"], env={}, cwd="/")


@contextlib.contextmanager
def odd_descriptors() -> Iterator[list[int]]:
    """A directory, a socket, a memfd, a pipe's end, a file, an eventfd."""
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    fds = [
        os.open("/", os.O_RDONLY | os.O_DIRECTORY), ours.detach(), theirs.detach(),
        os.memfd_create("x"), reading, writing, os.open("/dev/null", os.O_RDWR), os.eventfd(0),
    ]  # fmt: skip
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def open_in(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def made_up(chance: random.Random, spec: Any) -> dict[str, Any]:
    """Members of any kind; now and then a spec that is almost right."""
    words: list[Any] = [None, True, -1, 1 << 70, 1.5, "", "x", "../..", [], {}, [1], {"a": 1}]
    names = ["container_id", "cgroups_path", "upper", "zygote", "spare", "limits", "pid"]
    message = {name: chance.choice(words) for name in chance.sample(names, chance.randrange(8))}
    op = chance.choice([*_OPERATIONS, *words])
    if chance.random() < 0.4:
        broken = dict(spec)
        broken[chance.choice(list(broken))] = chance.choice(words)
        message["spec"] = broken
    return {"op": op, **message}


def raw(running: Harness, data: bytes, fds: list[int]) -> None:
    socket.send_fds(running._sock, [data], fds)


def test_no_message_ends_the_launcher_or_leaves_a_descriptor() -> None:
    chance = random.Random(SEED)
    refused = 0
    with harness() as running, make_spec() as spec, odd_descriptors() as fds:
        with running.container(spec) as attempt:
            attempt.run("true")
        before = open_in(running.pid)
        for _ in range(MESSAGES):
            message = made_up(chance, to_json(spec))
            sent = chance.choices(fds, k=chance.choice([0, 1, 2, 3, 12]))
            try:
                running.request(fds=sent, **message)
            except SandboxError:
                refused += 1
        noise = [
            b"[",
            b"[]",
            b"null",
            b"\xff\xfe",
            b"[" * 60000,
            b"1" * 5000,
            b"{" + b"x" * MAX_MESSAGE,
        ]
        for data in noise:
            raw(running, data, fds[:2])
            raw(running, data, fds * 5)  # more than it has room for
        raw(running, b'{"serial": 1}', fds[:2])
        assert "unknown operation None" in running.next_event()["error"]["message"]
        wait_until(lambda: open_in(running.pid) == before, what="the launcher's descriptors")
        with running.container(spec) as attempt:
            attempt.verify()
            assert attempt.run("echo", "alive") == (0, "alive\n")
    assert refused > MESSAGES // 2


GUEST = """
import os, socket, sys, time
sock = socket.socket(fileno=int(sys.argv[1]))
how = sys.argv[2]
def rights(data):
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
    socket.send_fds(sock, [data], fds)
try:
    if how == "silence": time.sleep(60)
    if how == "noise": sock.sendall(b"noise that is no greeting" * 100)
    if how == "end": sys.exit()
    if how == "half": sock.sendall(b"loc"); time.sleep(60)
    if how == "descriptors": rights(b"locked\\n")
    else: sock.sendall(b"locked\\n")
    if how == "dies": sys.exit()
    sock.recv(65536)
    if how == "descriptors": rights(b"{}\\n")
    if how == "lies": sock.sendall(b'{"errno": "x"}\\n')
    if how == "nonsense": sock.sendall(b"\\xff" * 100)
    if how == "deep": sock.sendall(b"[" * 60000)
    if how == "hangs": time.sleep(60)
    while how == "flood": sock.sendall(b"x" * 65536)
except OSError:
    pass
"""


async def meet(guest: str, judged: list[int]) -> None:
    """One start with a guest that misbehaves."""
    meeting = HandOver()
    process = subprocess.Popen(
        [sys.executable, "-c", GUEST, str(meeting.theirs.fileno()), guest],
        pass_fds=[meeting.theirs.fileno()],
    )
    meeting.theirs.close()
    try:
        peer, _, _ = await meeting.run(lambda facts: judged.append(1), PAYLOAD, [])
        peer.close()
    finally:
        meeting.close()
        process.kill()
        process.wait()
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "guest",
    [
        "silence",
        "noise",
        "end",
        "half",
        "descriptors",
        "lies",
        "nonsense",
        "deep",
        "hangs",
        "flood",
        "dies",
    ],
)
def test_no_guest_holds_up_or_fills_the_daemon(guest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "TIMEOUT_S", 2.0)
    judged: list[int] = []
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(KernelStartFailed) as caught:
        asyncio.run(meet(guest, judged))
    if guest == "flood":
        assert str(MAX_RESULT) in caught.value.message  # not: until the time was over
    assert sorted(os.listdir("/proc/self/fd")) == before
    if guest != "dies":  # which may be looked at before, or after, it has ended
        assert bool(judged) == (guest not in ("silence", "noise", "end", "half"))

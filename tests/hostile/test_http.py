"""Abuse of HTTP over the socket, by a user: nobody else notices, and nothing of it stays."""

from __future__ import annotations

import array
import contextlib
import os
import random
import socket
from collections.abc import Iterator

import msgspec
import pytest

from sandboxkernel.errors import ResourcesExhausted
from tests.hostile.support import (
    ALICE,
    MALLORY,
    PING,
    acting_as,
    answers,
    connect,
    descriptors,
    exchange,
    read_all,
    read_reply,
    unharmed,
)
from tests.support import RANDOM, RunningDaemon, decode, running_daemon, wait_until

FOLLOW = b"GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n"
MIB = 1 << 20
LIMIT, CROWD = 32, 3000
LOW_DESCRIPTORS = 512
# What a daemon finds in a shell that allows few open files.
FEW_FILES = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, {LOW_DESCRIPTORS}))
from sandboxkernel.daemon.app import main
main()
"""


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.fixture(scope="module")
def narrow() -> Iterator[RunningDaemon]:
    """A daemon that gives each user few connections, and has few descriptors."""
    config = f"c.SandboxKernelDaemon.max_connections = {LIMIT}\n"
    with running_daemon(config, program=("-c", FEW_FILES)) as running:
        yield running


def test_a_request_in_single_bytes_is_answered(daemon: RunningDaemon) -> None:
    with unharmed(daemon), connect(daemon) as sock:
        for byte in PING:
            sock.send(bytes([byte]))
        assert read_reply(sock) == (200, b"OK")


def test_pipelined_requests_are_answered_in_order(daemon: RunningDaemon) -> None:
    request = b"GET /v1/kernels/no-%d HTTP/1.1\r\nHost: x\r\n\r\n"
    with unharmed(daemon), connect(daemon) as sock:
        sock.sendall(b"".join(request % i for i in range(200)))
        for i in range(200):
            status, body = read_reply(sock)
            assert status == 404 and f"no-{i}'" in decode(body)["detail"]


def test_slow_and_silent_clients_hold_up_nobody(daemon: RunningDaemon) -> None:
    with unharmed(daemon), contextlib.ExitStack() as stack:
        for begun in (b"", b"GET /_p", PING[:-2], post("/v1/kernels", b"x" * 9)[:-1]):
            for _ in range(50):
                sock = stack.enter_context(connect(daemon))
                sock.sendall(begun)
        assert answers(daemon) and answers(daemon, MALLORY)


def test_clients_that_never_read_hold_up_nobody(daemon: RunningDaemon) -> None:
    request = b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    with unharmed(daemon), contextlib.ExitStack() as stack:
        for _ in range(50):
            sock = stack.enter_context(connect(daemon))
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(1000):
                    sock.send(request * 10)
        assert answers(daemon) and answers(daemon, MALLORY)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * (40 * 1024),
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"GET /" + b"a" * (40 * 1024) + b" HTTP/1.1\r\n\r\n",
        b"POST /v1/kernels HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/kernels HTTP/1.1\r\nContent-Length: +5\r\n\r\nhello",
        b"POST /v1/kernels HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /v1/kernels HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST /v1/kernels HTTP/1.1\r\nContent-Length: 1\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/kernels HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/kernels HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"ffffffffffffffff\r\n",
        b"POST /v1/kernels HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        + (b"100000\r\n" + b"x" * MIB + b"\r\n") * 5,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",  # TLS
        b"\0" * 100_000,
    ],
    ids=lambda data: repr(data[:40]),
)
def test_what_is_not_http_is_refused_and_forgotten(daemon: RunningDaemon, data: bytes) -> None:
    with unharmed(daemon), connect(daemon) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        reply = read_all(sock)
        assert not reply or reply.startswith(b"HTTP/1.1 4")


def test_a_body_over_the_limit_is_refused_before_it_is_read(daemon: RunningDaemon) -> None:
    head = b"POST /v1/kernels HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    with unharmed(daemon):
        status, body = exchange(daemon, head % (5 * MIB))
        assert status == 413 and decode(body)["code"] == "payload_too_large"


def test_half_closed_connections_go(daemon: RunningDaemon) -> None:
    with unharmed(daemon), contextlib.ExitStack() as stack:
        for data in (b"", PING[:9], PING, FOLLOW, post("/v1/kernels", b"{}")[:-1]):
            for how in (socket.SHUT_WR, socket.SHUT_RD, socket.SHUT_RDWR):
                sock = stack.enter_context(connect(daemon))
                sock.sendall(data)
                sock.shutdown(how)
        assert answers(daemon, MALLORY)


def test_descriptors_that_are_sent_along_are_not_kept(daemon: RunningDaemon) -> None:
    read_fd, write_fd = os.pipe()
    rights = array.array("i", [write_fd] * 250).tobytes()
    with unharmed(daemon), connect(daemon) as sock:
        for byte in PING:
            sock.sendmsg([bytes([byte])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        assert read_reply(sock) == (200, b"OK")
        os.close(write_fd)
        assert os.read(read_fd, 1) == b""  # nobody holds the other end: also not in a queue
    os.close(read_fd)


def test_noise_is_survived(daemon: RunningDaemon) -> None:
    """Requests with bytes changed, lost, repeated; the seed is in the failure."""
    seed = random.randrange(1 << 32) if RANDOM else 1
    chance = random.Random(seed)
    bodies = [PING, post("/v1/kernels", b'{"kernel_id": "x", "argv": []}')]
    with unharmed(daemon):
        for _ in range(300):
            data = bytearray(chance.choice(bodies) * chance.randrange(1, 3))
            for _ in range(chance.randrange(1, 8)):
                at = chance.randrange(len(data))
                data[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
            with connect(daemon) as sock:
                with contextlib.suppress(BrokenPipeError):
                    sock.sendall(data)
                    sock.shutdown(socket.SHUT_WR)
                reply = read_all(sock)
            assert not reply.startswith(b"HTTP/1.1 5"), f"seed {seed}: {bytes(data)!r}: {reply!r}"


def test_a_crowd_of_one_users_connections_keeps_nobody_out(narrow: RunningDaemon) -> None:
    with unharmed(narrow), contextlib.ExitStack() as stack:
        for _ in range(LIMIT):
            sock = stack.enter_context(connect(narrow))
            sock.sendall(FOLLOW)
            assert sock.recv(12) == b"HTTP/1.1 200"
        refusals = [exchange(narrow, PING) for _ in range(CROWD)]
        assert {status for status, _ in refusals} == {503}
        problem = decode(refusals[0][1])
        assert problem["code"] == "resources_exhausted" and f"limit is {LIMIT}" in problem["detail"]
        assert answers(narrow) and answers(narrow, 0)
        with acting_as(MALLORY), pytest.raises(ResourcesExhausted, match=f"limit is {LIMIT}"):
            narrow.client().version()


def test_all_users_together_do_not_keep_root_out(narrow: RunningDaemon) -> None:
    """More connections than there are descriptors, and root still comes in."""
    with unharmed(narrow), contextlib.ExitStack() as stack:
        codes = []
        for i in range(LOW_DESCRIPTORS):
            sock = stack.enter_context(connect(narrow, 62000 + i // (LIMIT - 1)))
            with contextlib.suppress(BrokenPipeError):  # it has been turned away already
                sock.sendall(PING)
            codes.append(read_reply(sock)[0])
        assert codes.count(200) == LOW_DESCRIPTORS // 2 and set(codes) == {200, 503}
        assert answers(narrow, 0)


def test_requests_that_outlive_their_connections_are_counted(narrow: RunningDaemon) -> None:
    """Or a user could pile them up: these take as long as their caller says."""
    stop = (
        b"POST /v1/kernels/pile/stop?timeout=3600 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    )
    program = "trap '' TERM; echo deaf; while :; do sleep 1; done"
    body = {"kernel_id": "pile", "argv": ["sh", "-c", program]}
    logs = b"GET /v1/kernels/pile/logs HTTP/1.1\r\nHost: x\r\n\r\n"
    with unharmed(narrow):
        status, text = exchange(narrow, post("/v1/kernels", msgspec.json.encode(body)))
        assert status == 201, text
        try:
            wait_until(lambda: b"deaf" in exchange(narrow, logs)[1], what="a deaf program")
            for _ in range(2 * LIMIT):
                with connect(narrow) as sock:
                    sock.sendall(stop)
                    assert answers(narrow, 0)  # so it has been read
            status, text = exchange(narrow, PING)
            assert status == 503 and "requests in progress" in decode(text)["detail"]
            assert answers(narrow)
        finally:
            narrow.client().remove("pile")
        wait_until(lambda: answers(narrow, MALLORY), what="requests given back")


def test_bodies_of_one_user_are_bounded_together(daemon: RunningDaemon) -> None:
    head = b"POST /v1/kernels HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (4 * MIB)
    with unharmed(daemon), contextlib.ExitStack() as stack:
        status = 0
        while not status:  # each that is not refused is held
            sock = stack.enter_context(connect(daemon))
            sock.sendall(head)
            sock.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                status, _ = read_reply(sock)
        assert status == 503
        assert answers(daemon, ALICE) and answers(daemon, MALLORY)
        assert exchange(daemon, post("/v1/kernels", b"[]"), ALICE)[0] == 400


def test_a_form_is_not_parsed(daemon: RunningDaemon) -> None:
    form = post("/v1/kernels", b"limit=1&" * 8, "Content-Type: application/x-www-form-urlencoded")
    with unharmed(daemon):
        status, body = exchange(daemon, form)
        assert status == 400 and "JSON" in decode(body)["detail"]


def test_the_counter_sees_descriptors(daemon: RunningDaemon) -> None:
    """A control of `unharmed`."""
    before = descriptors(daemon)["socket"]
    with connect(daemon):
        wait_until(lambda: descriptors(daemon)["socket"] > before, what="a socket more")

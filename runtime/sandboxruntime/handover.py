"""The hand-over: what a confined process receives before its exec, and both ends of it.

Frame: 4 bytes big-endian length, then JSON; descriptors travel with the first byte. The
receiving end runs inside the container after every confinement is on; it holds nothing of the
daemon's but this socket, which closes at exec: end of file without a message is success.
"""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import signal
import socket
import struct
from dataclasses import dataclass, field
from typing import Any, NoReturn

from sandboxruntime import syscalls
from sandboxruntime.channel import MAX_FDS, close_fds, recv_exact

__all__ = [
    "FIRST_FD",
    "MAX_RESULT",
    "Payload",
    "Result",
    "become_program",
    "encode_payload",
    "execute",
    "read_result",
    "take_over",
]

FIRST_FD = 3  # where the descriptors of a payload start in the program
MAX_PAYLOAD = 8 * 1024 * 1024  # bytes; the environment is limited to 2 MiB by the API
MAX_RESULT = 64 * 1024  # bytes
HELLO = b"locked\n"
_COPY_FD_MIN, _SOCKET_FD_MIN = 100, 200
SIGNALS_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


@dataclass(frozen=True, slots=True)
class Payload:
    """Program, arguments, environment and files. `files` maps path to content, mode 0600.

    `argv[0]` is looked up on the PATH of `env` inside the container.
    """

    argv: list[str]
    env: dict[str, str]
    cwd: str
    files: dict[str, str] = field(default_factory=dict)
    output_fds: bool = False  # the first three descriptors become 0, 1 and 2


def encode_payload(payload: Payload) -> bytes:
    """The frame to send. Raises ValueError when it is too large."""
    data = json.dumps(
        {
            "argv": payload.argv,
            "env": payload.env,
            "cwd": payload.cwd,
            "files": payload.files,
            "output_fds": payload.output_fds,
        }
    ).encode("utf-8", "surrogateescape")
    if len(data) > MAX_PAYLOAD:
        raise ValueError(f"payload of {len(data)} bytes exceeds {MAX_PAYLOAD}")
    return struct.pack(">I", len(data)) + data


@dataclass(frozen=True, slots=True)
class Result:
    """What a process said before it closed the socket. Nothing said is success.

    `executed` is why a zygote's child executed an interpreter of its own.
    """

    failure: tuple[int, str] | None = None  # errno, message
    executed: str = ""


def read_result(data: bytes) -> Result:
    """Decode the lines that the process wrote. Raises ValueError for anything else."""
    failure, executed = None, ""
    try:
        for line in data.splitlines():
            record = json.loads(line)
            if "errno" in record:
                failure = int(record["errno"]), str(record["message"])
            else:
                executed = str(record["executes"])
    except (LookupError, TypeError, OverflowError, RecursionError) as exc:
        raise ValueError(f"not a word of the hand-over: {exc!r}") from exc
    return Result(failure, executed)


def become_program(handover_fd: int, *others: int) -> NoReturn:
    """Greet, receive the payload, exec. Never returns; ends with 126 or 127 as a shell would.

    `others` are descriptors of whoever made this process; they are closed first.
    """
    execute(*take_over(handover_fd, *others))


def execute(
    sock: socket.socket, argv: list[str], env: dict[str, str], *, reason: str = ""
) -> NoReturn:
    """Execute what take_over() returned; a failure, or a `reason` to do so, is told the daemon."""
    try:
        if reason:
            _tell(sock, {"executes": reason})
        for signum in SIGNALS_IGNORED_BY_PYTHON:
            signal.signal(signum, signal.SIG_DFL)
        os.execvpe(argv[0], argv, env)
    except BaseException as exc:  # nothing above us could report it
        _refuse(sock, exc)


def take_over(handover_fd: int, *others: int) -> tuple[socket.socket, list[str], dict[str, str]]:
    """Close `others`, greet, receive the payload, put its files and descriptors in place.

    Returns the socket, argv and environment. Closing the socket, as an exec does, tells the
    daemon that the hand-over has succeeded. On failure the daemon is told and the process ends.
    """
    close_fds([*others])
    # Out of the way of the numbers that the payload's descriptors will take.
    sock = socket.socket(fileno=fcntl.fcntl(handover_fd, fcntl.F_DUPFD_CLOEXEC, _SOCKET_FD_MIN))
    os.close(handover_fd)
    try:
        os.setsid()
    except PermissionError:
        pass  # already a session leader: a process that joined by exec
    try:
        sock.sendall(HELLO)
        record, fds = _receive(sock)
        _place_files(record["files"])
        _place_fds(sock, fds, output_fds=record["output_fds"])
        os.chdir(record["cwd"])
        if not os.getcwd().startswith("/"):
            raise OSError(errno.EXDEV, f"working directory {os.getcwd()} is outside the root")
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        return sock, record["argv"], record["env"]
    except EOFError:
        os._exit(125)  # the daemon gave up on this container
    except BaseException as exc:  # nothing above us could report it
        _refuse(sock, exc)


def _tell(sock: socket.socket, record: dict[str, Any]) -> None:
    sock.sendall(json.dumps(record).encode() + b"\n")


def _refuse(sock: socket.socket, exc: BaseException) -> NoReturn:
    code = exc.errno if isinstance(exc, OSError) and exc.errno else 0
    try:
        _tell(sock, {"errno": code, "message": str(exc)})
    finally:
        os._exit(127 if code == errno.ENOENT else 126)


def _receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    space = socket.CMSG_SPACE(MAX_FDS * struct.calcsize("i"))
    first, ancillary, _, _ = sock.recvmsg(1, space, socket.MSG_CMSG_CLOEXEC)
    if not first:
        raise EOFError("closed before the payload")
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data)
    (size,) = struct.unpack(">I", first + recv_exact(sock, 3))
    record = json.loads(recv_exact(sock, size).decode("utf-8", "surrogateescape"))
    return record, list(fds)


def _place_files(files: dict[str, str]) -> None:
    for path, content in files.items():
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        data = content.encode()
        while data:
            data = data[os.write(fd, data) :]
        os.close(fd)


def _place_fds(sock: socket.socket, fds: list[int], *, output_fds: bool) -> None:
    """Put the descriptors at FIRST_FD and up (or at 0 and up) and close everything else."""
    first = 0 if output_fds else FIRST_FD
    # High copies first: a target number may be the source of a later one.
    for index, fd in enumerate([_dup_high(fd) for fd in fds]):
        os.dup2(fd, first + index)
    syscalls.close_range(max(FIRST_FD, first + len(fds)), sock.fileno() - 1)
    syscalls.close_range(sock.fileno() + 1)


def _dup_high(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _COPY_FD_MIN)

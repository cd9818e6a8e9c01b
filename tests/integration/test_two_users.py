"""Two real uids on one host: neither reaches anything of the other's. Each attempt has a control.

The control is the owner doing the same thing: it works, so the attempt tests the border.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxkernel.errors import SandboxError
from sandboxkernel.models import Kernel, KernelCreate, KernelRestart, PythonEnvironment
from sandboxruntime import syscalls
from sandboxruntime.syscalls import CloneFlag
from tests.support import DEADLINE_S, RunningDaemon, connect_unix, wait_until

ALICE, BOB = 61001, 61002
SECRET = "alice's own result"


def as_user(uid: int, function: Callable[[], Any]) -> Any:
    """Run a function in a child with this uid and no groups; its result or its exception."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            result: tuple[bool, Any] = (True, function())
        except SandboxError as exc:
            result = (False, exc.code)
        except OSError as exc:
            result = (False, type(exc).__name__)
        except BaseException:
            result = (False, traceback.format_exc())
        os.write(write_fd, pickle.dumps(result))
        os._exit(0)
    os.close(write_fd)
    with open(read_fd, "rb") as stream:
        ok, value = pickle.loads(stream.read())
    os.waitpid(pid, 0)
    return value if ok else Refused(value)


class Refused:
    def __init__(self, why: str) -> None:
        self.why = why

    def __repr__(self) -> str:
        return f"refused: {self.why}"


@pytest.fixture
def kernels(daemon: RunningDaemon) -> Iterator[tuple[Kernel, Kernel]]:
    """One sandbox of each user; alice's holds a secret in its layer and shows it in its log."""

    def start(uid: int, text: str) -> Kernel:
        code = (
            f"import os; open('/home/sandbox/secret', 'w').write({text!r}); print({text!r}, flush=True);"
            "import time; time.sleep(600)"
        )
        client = daemon.client()
        request = KernelCreate(kernel_id="same-name-for-both", argv=["python3", "-c", code])
        kernel = as_user(uid, lambda: client.create(request))
        assert isinstance(kernel, Kernel), kernel
        return kernel

    alice, bob = start(ALICE, SECRET), start(BOB, "bob")
    wait_until(lambda: SECRET.encode() in b"".join(daemon.client().logs(alice.id)))
    yield alice, bob
    for kernel in (alice, bob):
        try:
            daemon.client().remove(kernel.id)
        except SandboxError:
            pass
    for uid in (ALICE, BOB):
        for layer in daemon.client().layers(str(uid)):
            daemon.client().reset_layer(layer.lineage, user=str(uid))


def api_attempts(daemon: RunningDaemon, kernel: Kernel) -> dict[str, Callable[[], Any]]:
    client = daemon.client()
    return {
        "inspect": lambda: client.inspect(kernel.id).id,
        "read its log": lambda: b"".join(client.logs(kernel.id)),
        "read its statistics": lambda: client.stats(kernel.id).pids,
        "execute in it": lambda: [
            str(i) for i in client.exec(kernel.id, ["cat", "/home/sandbox/secret"])
        ],
        "interrupt it": lambda: client.signal(kernel.id, signal.SIGWINCH),
        "pause it": lambda: client.pause(kernel.id),
        "unpause it": lambda: client.unpause(kernel.id),
        "kill it": lambda: client.kill(kernel.id),
        "restart it": lambda: client.restart(kernel.id, KernelRestart()).generation,
        "remove it": lambda: client.remove(kernel.id),
    }


def test_over_the_api_the_others_kernel_does_not_exist(
    daemon: RunningDaemon, kernels: tuple[Kernel, Kernel]
) -> None:
    alice, _ = kernels
    for name, attempt in api_attempts(daemon, alice).items():
        outcome = as_user(BOB, attempt)
        assert isinstance(outcome, Refused), f"bob could {name}: {outcome!r}"
        assert outcome.why == "kernel_not_found", f"{name}: {outcome!r}"
    assert daemon.client().inspect(alice.id).state == "running"
    for name, attempt in api_attempts(daemon, alice).items():
        outcome = as_user(ALICE, attempt)
        assert not isinstance(outcome, Refused), f"alice could not {name}: {outcome!r}"


def test_lists_events_and_layers_show_only_ones_own(
    daemon: RunningDaemon, kernels: tuple[Kernel, Kernel]
) -> None:
    alice, bob = kernels
    client = daemon.client()
    assert as_user(BOB, lambda: [k.id for k in client.kernels()]) == [bob.id]
    assert as_user(ALICE, lambda: [k.id for k in client.kernels()]) == [alice.id]
    assert {e.owner_uid for e in as_user(BOB, lambda: list(client.events()))} == {BOB}
    assert {layer.owner_uid for layer in as_user(BOB, client.layers)} == {BOB}
    lineage = as_user(ALICE, client.layers)[0].lineage
    for attempt in (
        lambda: client.layers(str(ALICE)),
        lambda: client.layers("all"),
        lambda: client.layer_diff(lineage, user=str(ALICE)),
        lambda: client.reset_layer(lineage, user=str(ALICE)),
        client.disk_usage,
        client.prune,
        lambda: client.remove_image("host"),
    ):
        outcome = as_user(BOB, attempt)
        assert isinstance(outcome, Refused)
        assert outcome.why == "not_permitted"
    paths = [c.path for c in as_user(ALICE, lambda: client.layer_diff(lineage)).changes]
    assert "/home/sandbox/secret" in paths
    assert {k.id for k in client.kernels()} >= {alice.id, bob.id}, "root sees all"


def in_a_user_namespace(function: Callable[[], Any], *, mapped: bool) -> Any:
    """By bob, who is root in a user namespace of his own; unmapped, he is nobody there."""

    def enter() -> Any:
        uid, gid = os.getuid(), os.getgid()
        syscalls.prctl(4, 1)  # PR_SET_DUMPABLE: or our own /proc files are root's
        syscalls.unshare(CloneFlag.NEWUSER)
        if mapped:
            for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"),
                               ("gid_map", f"0 {gid} 1")):  # fmt: skip
                with open(f"/proc/self/{file}", "w", buffering=1) as stream:
                    stream.write(text + "\n")
        assert os.getuid() == (0 if mapped else 65534)
        return function()

    return as_user(BOB, enter)


@pytest.mark.parametrize("mapped", [True, False])
def test_a_user_namespace_of_ones_own_makes_nobody_root(
    daemon: RunningDaemon, kernels: tuple[Kernel, Kernel], mapped: bool
) -> None:
    alice, bob = kernels
    client = daemon.client()
    listed = in_a_user_namespace(lambda: [k.id for k in client.kernels()], mapped=mapped)
    assert listed == [bob.id]
    for name, attempt in api_attempts(daemon, alice).items():
        outcome = in_a_user_namespace(attempt, mapped=mapped)
        assert isinstance(outcome, Refused) and outcome.why == "kernel_not_found", (name, outcome)
    outcome = in_a_user_namespace(lambda: client.layers("all"), mapped=mapped)
    assert isinstance(outcome, Refused) and outcome.why == "not_permitted"
    assert {k.id for k in client.kernels()} >= {alice.id, bob.id}, "root of the host sees all"


def status_of(sock: socket.socket, target: str) -> int:
    """The HTTP status that a request on an open connection gets."""
    sock.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    with sock.makefile("rb") as reply:
        return int(reply.readline().split()[1])


def test_a_connection_that_is_handed_on_stays_its_makers(daemon: RunningDaemon) -> None:
    """Root gains nothing for bob by speaking on his connection; the control is root's own."""
    ours, theirs = socket.socketpair()

    def connect_and_hand_on() -> None:
        with connect_unix(daemon.socket_path) as connection:
            socket.send_fds(theirs, [b"x"], [connection.fileno()])

    with ours, theirs:
        for uid, status in ((BOB, 403), (0, 200)):
            assert as_user(uid, connect_and_hand_on) is None
            _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
            with socket.socket(fileno=fd) as connection:
                connection.settimeout(DEADLINE_S)
                assert status_of(connection, "/v1/users/all/layers") == status


def host_attempts(daemon: RunningDaemon, kernel: Kernel) -> dict[str, Callable[[], Any]]:
    pid = kernel.pid
    assert pid is not None
    upper = daemon.data_dir / "users" / str(kernel.owner_uid)
    return {
        "signal its process": lambda: os.kill(pid, 0),
        "read its environment": lambda: Path(f"/proc/{pid}/environ").read_bytes(),
        "read its memory": lambda: open(f"/proc/{pid}/mem", "rb").close(),
        "list its root": lambda: os.listdir(f"/proc/{pid}/root"),
        "list its descriptors": lambda: os.listdir(f"/proc/{pid}/fd"),
        "list its layer": lambda: os.listdir(upper),
        "read a file of its layer": lambda: [
            p.read_text() for p in upper.glob("*/upper/home/sandbox/secret")
        ] or os.stat(upper / "x"),
        "list the kernels' socket directories": lambda: os.listdir(daemon.run_dir / "k"),
        "list the lease journals": lambda: os.listdir(daemon.run_dir / "leases"),
    }  # fmt: skip


def test_on_the_host_the_others_processes_and_files_are_out_of_reach(
    daemon: RunningDaemon, kernels: tuple[Kernel, Kernel]
) -> None:
    alice, _ = kernels
    for name, attempt in host_attempts(daemon, alice).items():
        outcome = as_user(BOB, attempt)
        assert isinstance(outcome, Refused), f"bob could {name}: {outcome!r}"
        assert outcome.why in ("PermissionError", "FileNotFoundError"), f"{name}: {outcome!r}"
        attempt()  # the control: root can, so it is there


def test_the_sockets_of_a_kernel_let_only_their_owner_connect(daemon: RunningDaemon) -> None:
    client = daemon.client()
    kernel = as_user(ALICE, lambda: client.create(KernelCreate(kernel_id="sockets", key="k")))
    try:
        assert kernel.connection is not None
        path = f"{kernel.connection.ip}-1"

        def connect() -> str:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)
                return "connected"

        def replace() -> str:
            os.unlink(path)
            return "unlinked"

        assert as_user(BOB, connect).why == "PermissionError"
        assert as_user(ALICE, connect) == "connected"
        assert as_user(ALICE, replace).why == "PermissionError", "the directory is root's"
    finally:
        client.remove(kernel.id)
        for layer in client.layers(str(ALICE)):
            client.reset_layer(layer.lineage, user=str(ALICE))


def test_the_users_ids_do_not_overlap(
    daemon: RunningDaemon, kernels: tuple[Kernel, Kernel]
) -> None:
    maps = []
    for kernel in kernels:
        confinement = daemon.client().inspect(kernel.id).confinement
        assert confinement is not None
        _, base, size = map(int, confinement.uid_map.split())
        maps.append(range(base, base + size))
    assert not set(maps[0]) & set(maps[1])
    assert all(0 not in r and ALICE not in r and BOB not in r for r in maps)


def test_a_user_cannot_mount_what_that_user_cannot_read(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    client = daemon.client()
    for folder in (str(private), "/root", "/etc", str(daemon.data_dir)):
        request = KernelCreate(kernel_id="m", argv=["true"], cwd=folder)
        outcome = as_user(BOB, lambda request=request: client.create(request))
        assert isinstance(outcome, Refused), folder
        assert outcome.why in ("work_folder", "invalid_request")


def test_the_others_environment_cannot_be_mounted(daemon: RunningDaemon, tmp_path: Path) -> None:
    private = tmp_path / "venv"
    private.mkdir(mode=0o700)
    client = daemon.client()
    for folder in (str(private), "/root", "/etc", "/var/lib", "/usr/lib", str(daemon.data_dir)):
        environment = PythonEnvironment(
            python=f"{folder}/bin/python", base=f"{folder}/bin/python", folders=[folder]
        )
        request = KernelCreate(kernel_id="e", key="k", environment=environment)
        outcome = as_user(BOB, lambda request=request: client.create(request))
        assert isinstance(outcome, Refused), folder
        assert outcome.why in ("work_folder", "invalid_request")
    assert not [k for k in client.kernels() if k.kernel_id == "e"]


def test_the_same_user_sees_the_layer_again_and_another_does_not(daemon: RunningDaemon) -> None:
    client = daemon.client()

    def run(uid: int, code: str) -> str:
        def attempt() -> str:
            kernel = client.create(KernelCreate(kernel_id="layer", argv=["python3", "-c", code]))
            info = client.watch_exit(kernel.id, 1).wait(DEADLINE_S)
            text = b"".join(client.logs(kernel.id)).decode()
            client.remove(kernel.id)
            return f"{info.code if info else None} {text}"

        return str(as_user(uid, attempt))

    try:
        assert run(ALICE, "open('/home/sandbox/kept', 'w').write('x')") == "0 "
        assert run(ALICE, "print(open('/home/sandbox/kept').read())") == "0 x\n"
        assert "FileNotFoundError" in run(BOB, "open('/home/sandbox/kept')")
    finally:
        for uid in (ALICE, BOB):
            for layer in client.layers(str(uid)):
                client.reset_layer(layer.lineage, user=str(uid))

"""One daemon and one launcher serve everybody: what one sandbox does, or fails at, is its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from sandboxkernel.errors import ResourcesExhausted, SandboxError
from sandboxkernel.models import ExecRequest, Kernel, KernelCreate, KernelRestart
from sandboxruntime.cgroup import Cgroup, read_layout
from sandboxruntime.channel import close_fds, recv_message, send_message
from sandboxruntime.spec import Spec, to_json
from tests.harness import Harness, harness, make_spec
from tests.support import (
    NO_ZYGOTES,
    ZYGOTES,
    RunningDaemon,
    host_state,
    lasting_leaks,
    run_inside,
    running_daemon,
    sandbox,
    wait_until,
    warm_up,
)

SLEEP = ["sleep", "600"]
SERIAL = 77
# A container with this host name waits, at the first step of its own, for a file.
GATE = """
import os, time
step = next(iter(init.CREATE_STEPS))
do = init.CREATE_STEPS[step]
def wait(context):
    while context.spec.hostname == "slow" and not os.path.exists({gate!r}):
        time.sleep(0.01)
    do(context)
init.CREATE_STEPS[step] = wait
"""


@pytest.fixture
def own() -> Iterator[RunningDaemon]:
    before = host_state()
    with running_daemon(NO_ZYGOTES) as running:
        for _ in running.client().prepare_image("host"):
            pass
        yield running
    assert lasting_leaks(before, timeout_s=10) == {}


@pytest.fixture
def gate() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="skt-gate-", dir="/run"))
    folder.chmod(0o755)
    yield folder / "open"
    shutil.rmtree(folder)


def cgroup_of(own: RunningDaemon, kernel: Kernel) -> Cgroup:
    path = own.client().inspect(kernel.id).confinement.cgroups["unified"]
    return Cgroup(read_layout(), path.lstrip("/"))


def begin(running: Harness, spec: Spec) -> list[int]:
    """Ask for a container without waiting for the answer; our ends of its descriptors."""
    ours, theirs = socket.socketpair()
    log_read, log_write = os.pipe()
    send_message(
        running._sock,
        {"op": "create", "serial": SERIAL, "spec": to_json(spec)},
        [theirs.fileno(), log_write],
    )
    theirs.close()
    os.close(log_write)
    return [ours.detach(), log_read]


def answer(running: Harness) -> dict[str, object]:
    message, fds = recv_message(running._sock)
    close_fds(fds)
    assert message is not None
    return message


def test_a_start_that_takes_long_holds_up_nobody(gate: Path) -> None:
    with harness(patch=GATE.format(gate=str(gate))) as running, ExitStack() as specs:
        slow, quick = (specs.enter_context(make_spec(hostname=name)) for name in ("slow", "quick"))
        fds = begin(running, slow)
        with running.container(quick) as attempt:
            attempt.verify()
            assert attempt.run("true")[0] == 0
        gate.touch()
        assert answer(running).keys() >= {"pid", "timings"}
        running.request("delete", container_id=slow.container_id, cgroups_path=slow.cgroups_path)
        close_fds(fds)


def test_a_start_can_be_given_up_at_any_time(gate: Path) -> None:
    with harness(patch=GATE.format(gate=str(gate))) as running, make_spec(hostname="slow") as slow:
        fds = begin(running, slow)
        named = {"container_id": slow.container_id, "cgroups_path": slow.cgroups_path}
        send_message(running._sock, {"op": "delete", "serial": 1, **named})
        refused, deleted = answer(running), answer(running)
        assert refused["serial"] == SERIAL
        assert "given up" in str(refused["error"])
        assert (deleted["serial"], "error" in deleted) == (1, False)
        assert running.request("forget", upper=slow.rootfs.upper)["released"]
        assert not Cgroup(read_layout(), slow.cgroups_path).pids()
        close_fds(fds)


def test_a_launcher_that_ends_undoes_what_it_had_begun(gate: Path) -> None:
    with make_spec(hostname="slow") as slow:
        before = host_state()
        with harness(patch=GATE.format(gate=str(gate))) as running:
            fds = begin(running, slow)
            running.request("forget", upper="/nowhere")  # so the one before it has been begun
        close_fds(fds)
        assert lasting_leaks(before, timeout_s=5) == {}


def test_an_exec_that_gets_no_answer_holds_up_nobody(own: RunningDaemon) -> None:
    with sandbox(own) as kernel, ThreadPoolExecutor(1) as pool:
        cgroup = cgroup_of(own, kernel)
        quiet = len(cgroup.pids())
        cgroup.freeze()  # behind the daemon's back
        try:
            hanging = pool.submit(run_inside, own, kernel, "true")
            wait_until(lambda: len(cgroup.pids()) > quiet, what="its process is inside")
            with sandbox(own) as other:
                assert run_inside(own, other, "true") == (0, "")
            assert not hanging.done()
        finally:
            cgroup.thaw()
        assert hanging.result(30) == (0, "")


def test_a_process_that_never_came_in_is_collected_when_it_ends(own: RunningDaemon) -> None:
    with sandbox(own) as kernel:
        cgroup = cgroup_of(own, kernel)
        cgroup.freeze()
        try:
            with pytest.raises(SandboxError, match="no answer within 10 s"):
                run_inside(own, kernel, "true")
        finally:
            cgroup.thaw()
        assert run_inside(own, kernel, "true") == (0, "")
        children = Path(f"/proc/{own.launcher}/task/{own.launcher}/children")
        wait_until(lambda: len(children.read_text().split()) == 1, what="pid 1 alone is left")


def test_who_hangs_up_lets_no_sandbox_be_paused_with_a_process_on_its_way_in(
    own: RunningDaemon,
) -> None:
    with sandbox(own) as kernel, ThreadPoolExecutor(1) as pool:
        client, cgroup = own.client(), cgroup_of(own, kernel)
        launcher = own.launcher
        os.kill(launcher, signal.SIGSTOP)  # busy with somebody else
        try:
            body = msgspec.json.encode(ExecRequest(argv=["true"]))
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(own.socket_path))
                sock.sendall(
                    f"POST /v1/kernels/{kernel.id}/exec HTTP/1.1\r\nHost: x\r\n"
                    f"Content-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )
                signal.sigtimedwait([], 0.3)
            signal.sigtimedwait([], 0.3)  # it has hung up
            pausing = pool.submit(client.pause, kernel.id)
            signal.sigtimedwait([], 0.7)
            assert not cgroup.is_frozen()
        finally:
            os.kill(launcher, signal.SIGCONT)
        pausing.result(30)
        assert client.inspect(kernel.id).state == "paused"
        client.unpause(kernel.id)
        assert run_inside(own, kernel, "true") == (0, "")


def test_a_class_that_starts_while_the_launcher_is_busy_is_served() -> None:
    config = NO_ZYGOTES + "c.SandboxKernelDaemon.max_kernels = 100\n"
    config += 'c.SandboxKernelDaemon.grants = [{"user": "*", "max_kernels": 60}]\n'
    with running_daemon(config) as own, ThreadPoolExecutor(60) as pool:
        client = own.client()
        for _ in client.prepare_image("host"):
            pass
        with sandbox(own):
            pass
        launcher = own.launcher
        os.kill(launcher, signal.SIGSTOP)
        try:
            asked = [
                pool.submit(client.create, KernelCreate(kernel_id=f"k{n}", argv=SLEEP))
                for n in range(60)
            ]
            wait_until(lambda: len(list((own.run_dir / "leases").iterdir())) == 60)
        finally:
            os.kill(launcher, signal.SIGCONT)
        assert {each.result(120).state for each in asked} == {"running"}


def test_kernels_that_are_being_started_count_once() -> None:
    config = NO_ZYGOTES + 'c.SandboxKernelDaemon.grants = [{"user": "*", "max_kernels": 2}]\n'
    with running_daemon(config) as own, ThreadPoolExecutor(2) as pool:
        client = own.client()
        with sandbox(own):
            pass
        launcher = own.launcher
        os.kill(launcher, signal.SIGSTOP)
        try:
            asked, leases = [], own.run_dir / "leases"
            for name in ("one", "two"):
                asked.append(pool.submit(client.create, KernelCreate(kernel_id=name, argv=SLEEP)))
                wait_until(lambda: len(list(leases.iterdir())) == len(asked) or asked[-1].done())
        finally:
            os.kill(launcher, signal.SIGCONT)
        assert [each.result(30).state for each in asked] == ["running", "running"]


def test_a_restart_of_what_has_ended_is_held_to_the_quota() -> None:
    config = NO_ZYGOTES + 'c.SandboxKernelDaemon.grants = [{"user": "*", "max_kernels": 1}]\n'
    with running_daemon(config) as own:
        client = own.client()
        ended = client.create(KernelCreate(kernel_id="ended", argv=["true"]))
        wait_until(lambda: client.inspect(ended.id).state == "exited")
        with sandbox(own):
            with pytest.raises(ResourcesExhausted, match="1 of 1 kernels"):
                client.restart(ended.id, KernelRestart())
            assert client.inspect(ended.id).state == "exited"
        client.restart(ended.id, KernelRestart())
        client.remove(ended.id)


@pytest.mark.skipif(not ZYGOTES, reason="needs zygotes")
def test_a_mistake_of_one_user_costs_nobody_a_zygote(tmp_path: Path) -> None:
    with running_daemon() as own:
        zygote = warm_up(own)
        assert zygote is not None
        for folder in (str(tmp_path / "nothing"), "/etc"):
            with pytest.raises(SandboxError), sandbox(own, as_kernel=True, cwd=folder):
                pass
        (after,) = own.client().zygotes().zygotes
        assert (after.id, after.retired) == (zygote.id, False)


STALE = """
from sandboxkernel.daemon.sandbox import Sandbox
launch = Sandbox._launch
async def _launch(self, claim):
    await launch(self, claim)
    await self.on_exit_event(
        {{"pid": 1, "wait_status": 0, "oom_kills": 0, "memory_peak_bytes": 0}}
    )
Sandbox._launch = _launch
from sandboxkernel.daemon.__main__ import main
main()
"""
STUBBORN = """
from sandboxruntime.cgroup import Cgroup
from sandboxruntime.errors import StateError
kill, failed = Cgroup.kill, []
def stubborn(self, *arguments):
    if len(failed) < 2:
        failed.append(self)
        raise StateError("1 processes survive SIGKILL", container_id=self.path, status="killing")
    kill(self, *arguments)
Cgroup.kill = stubborn
from sandboxkernel.daemon.__main__ import main
main()
"""


def test_the_end_of_an_attempt_that_failed_is_not_that_of_the_next() -> None:
    with (
        running_daemon(NO_ZYGOTES, program=("-c", STALE)) as own,
        sandbox(own) as kernel,
    ):
        assert own.client().inspect(kernel.id).state == "running"
        assert run_inside(own, kernel, "true") == (0, "")


def test_a_removal_whose_kill_fails_is_done_later() -> None:
    before = host_state()
    with running_daemon(NO_ZYGOTES, program=("-c", STUBBORN)) as own:
        client = own.client()
        kernel = client.create(KernelCreate(kernel_id="stubborn", argv=SLEEP))
        with pytest.raises(SandboxError, match="cannot be given back yet"):
            client.remove(kernel.id)
        wait_until(lambda: list(client.kernels()) == [], what="the daemon has done it again")
        assert list((own.run_dir / "leases").iterdir()) == []
    assert lasting_leaks(before, timeout_s=5) == {}

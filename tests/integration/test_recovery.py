"""Daemon and launcher may be killed at any moment: what runs, runs on; the rest is given back."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sandboxkernel.daemon.server import answers
from sandboxkernel.errors import KernelNotFound, SandboxError
from sandboxkernel.models import Kernel, KernelCreate, KernelRestart, Limits
from sandboxruntime.cgroup import Cgroup, read_layout
from tests.conformance.session import session
from tests.support import (
    DEADLINE_S,
    NO_ZYGOTES,
    ZYGOTES,
    RunningDaemon,
    connect_unix,
    host_state,
    lasting_leaks,
    make_data_dir,
    python_inside,
    run_inside,
    running_daemon,
    sandbox,
    wait_until,
    warm_up,
)

Crash = Callable[[RunningDaemon], None]


def kill_daemon(daemon: RunningDaemon) -> None:
    daemon.kill()
    daemon.start()


def kill_launcher(daemon: RunningDaemon) -> None:
    os.kill(daemon.launcher, signal.SIGKILL)


def kill_both(daemon: RunningDaemon) -> None:
    os.kill(daemon.launcher, signal.SIGKILL)
    daemon.kill()
    daemon.start()


def stop_daemon(daemon: RunningDaemon) -> None:
    """As `systemctl restart` does."""
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.wait(30)
    daemon.start()


PROFILES = 'c.SandboxKernelDaemon.profiles = {"by-runc": {"executor": "runc"}}\n'
CRASHES = [kill_daemon, kill_launcher, kill_both, stop_daemon]


@pytest.fixture(scope="module")
def own() -> Iterator[RunningDaemon]:
    with running_daemon(PROFILES + ("" if ZYGOTES else NO_ZYGOTES)) as daemon:
        if ZYGOTES:
            warm_up(daemon)
        yield daemon


@pytest.fixture(autouse=True)
def nothing_stays(own: RunningDaemon) -> Iterator[None]:
    before = host_state()
    yield
    assert lasting_leaks(before, timeout_s=10) == {}


def cold(daemon: RunningDaemon) -> contextlib.AbstractContextManager[Kernel]:
    # A variable that CPython reads at its start asks for an interpreter of its own.
    return sandbox(daemon, as_kernel=True, env={"PYTHONHASHSEED": "1"})


def warm(daemon: RunningDaemon) -> contextlib.AbstractContextManager[Kernel]:
    warm_up(daemon)
    return sandbox(daemon, as_kernel=True)


def by_runc(daemon: RunningDaemon) -> contextlib.AbstractContextManager[Kernel]:
    return sandbox(daemon, as_kernel=True, profile="by-runc")


def program(daemon: RunningDaemon) -> contextlib.AbstractContextManager[Kernel]:
    return sandbox(daemon)


@pytest.mark.parametrize("crash", CRASHES)
@pytest.mark.parametrize("make", [cold, warm, by_runc, program])
def test_what_runs_runs_on_and_everything_works(
    own: RunningDaemon, make: Callable[[RunningDaemon], Any], crash: Crash
) -> None:
    with make(own) as kernel:
        before = own.client().inspect(kernel.id)
        watch = own.client().watch_exit(kernel.id, 1, kernel=kernel)
        crash(own)
        assert watch.poll() is None
        after = own.client().inspect(kernel.id)
        assert (after.pid, after.state, after.generation) == (before.pid, "running", 1)
        assert (after.start_path, after.limits) == (before.start_path, before.limits)
        assert after.confinement == before.confinement
        assert run_inside(own, kernel, "echo", "inside") == (0, "inside\n")
        own.client().pause(kernel.id)
        own.client().unpause(kernel.id)
        own.client().signal(kernel.id, signal.SIGKILL)
        ended = watch.wait(10)
        assert ended is not None and (ended.signal, ended.message) == (9, "killed (SIGKILL)")


@pytest.mark.parametrize("crash", CRASHES)
def test_a_restart_after_a_crash_is_good_and_keeps_the_layer(
    own: RunningDaemon, crash: Crash
) -> None:
    with sandbox(own, as_kernel=True) as kernel:
        code = "open('/home/sandbox/kept', 'w').write('here')"
        assert python_inside(own, kernel, code) == (0, "")
        crash(own)
        again = own.client().restart(kernel.id, KernelRestart())
        assert (again.id, again.generation, again.state) == (kernel.id, 2, "running")
        assert run_inside(own, kernel, "cat", "/home/sandbox/kept") == (0, "here")


@pytest.mark.parametrize("crash", [kill_daemon, kill_launcher, kill_both])
def test_the_same_overlay_serves_kernels_from_before_and_after(
    own: RunningDaemon, crash: Crash
) -> None:
    """Two overlays on one upper directory would not see each other's changes at once."""
    with sandbox(own) as older:
        crash(own)
        with sandbox(own) as younger:
            for writer, reader in ((older, younger), (younger, older)):
                name = f"/home/sandbox/from-{writer.id}"
                assert run_inside(own, reader, "test", "-e", name)[0] == 1
                assert run_inside(own, writer, "touch", name) == (0, "")
                assert run_inside(own, reader, "test", "-e", name) == (0, "")


@pytest.mark.parametrize("crash", [kill_daemon, kill_both])
def test_an_end_that_nobody_saw_is_told(own: RunningDaemon, crash: Crash) -> None:
    with sandbox(own, "sh", "-c", "sleep 1; exit 7") as kernel:
        watch = own.client().watch_exit(kernel.id, 1, kernel=kernel)
        if crash is kill_both:
            os.kill(own.launcher, signal.SIGKILL)
        own.kill()
        wait_until(lambda: not is_alive(kernel))
        own.start()
        ended = watch.wait(10)
        assert ended is not None and (ended.reason, ended.code) == ("exited", 7)


def test_running_out_of_memory_unseen_is_told(own: RunningDaemon) -> None:
    code = "import time; time.sleep(1); bytearray(1 << 30)"
    with sandbox(own, "python3", "-c", code, limits=Limits(memory_bytes=100 << 20)) as kernel:
        watch = own.client().watch_exit(kernel.id, 1, kernel=kernel)
        own.kill()
        wait_until(lambda: not is_alive(kernel))
        own.start()
        ended = watch.wait(10)
        assert ended is not None and ended.reason == "oom_killed"


def is_alive(kernel: Kernel) -> bool:
    try:
        return " Z " not in Path(f"/proc/{kernel.pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_output_from_before_and_while_nobody_read_is_not_an_error(own: RunningDaemon) -> None:
    code = "while :; do echo line || exit 9; sleep 0.02; done"
    with sandbox(own, "sh", "-c", code) as kernel:
        kill_both(own)
        wait_until(lambda: b"line" in b"".join(own.client().logs(kernel.id)))
        assert own.client().inspect(kernel.id).state == "running"


def test_a_paused_sandbox_stays_paused(own: RunningDaemon) -> None:
    with sandbox(own) as kernel:
        own.client().pause(kernel.id)
        kill_both(own)
        assert own.client().inspect(kernel.id).state == "paused"
        own.client().unpause(kernel.id)
        assert run_inside(own, kernel, "true") == (0, "")


def test_ends_are_remembered_and_can_be_removed(own: RunningDaemon) -> None:
    with sandbox(own, "sh", "-c", "exit 3") as kernel:
        wait_until(lambda: own.client().inspect(kernel.id).state == "exited")
        kill_both(own)
        ended = own.client().inspect(kernel.id).exit
        assert ended is not None and ended.code == 3


def test_a_start_whose_caller_got_no_answer_is_given_back(own: RunningDaemon) -> None:
    """The daemon is stopped in the middle of it, then killed."""
    request = KernelCreate(kernel_id="half-started", argv=["sleep", "600"])
    for delay_ms in (1, 4, 8, 15, 30):
        sock = connect_unix(own.socket_path)
        body = b'{"kernel_id":"half-started","argv":["sleep","600"]}'
        head = f"POST /v1/kernels HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        signal.sigtimedwait([], delay_ms / 1000)
        kill_both(own)
        with sock, contextlib.suppress(OSError):
            sock.recv(1)
        with contextlib.suppress(KernelNotFound):
            own.client().remove("half-started")  # its start was through, only its answer was not
        created = own.client().create(request)
        own.client().remove(created.id)


def test_requests_that_a_killed_launcher_had_are_repeated(own: RunningDaemon) -> None:
    for _ in range(5):
        with sandbox(own):
            os.kill(own.launcher, signal.SIGKILL)
        os.kill(own.launcher, signal.SIGKILL)
        with sandbox(own) as kernel:
            assert run_inside(own, kernel, "true") == (0, "")


def test_a_command_that_runs_inside_when_the_launcher_is_killed_fails_clearly(
    own: RunningDaemon,
) -> None:
    with sandbox(own) as kernel:
        output = own.client().exec(kernel.id, ["sh", "-c", "echo started; sleep 600"])
        next(output)
        os.kill(own.launcher, signal.SIGKILL)
        with pytest.raises(SandboxError, match="launcher was killed"):
            list(output)


def test_a_kernel_without_a_server_ends_after_its_lease() -> None:
    with running_daemon("c.SandboxKernelDaemon.orphan_timeout_s = 2.0\n") as daemon:
        kept = daemon.client().create(KernelCreate(kernel_id="kept"))
        with sandbox(daemon) as unwatched_program:
            watch = daemon.client().watch_exit(kept.id, 1)
            lost = daemon.client().create(KernelCreate(kernel_id="lost"))
            wait_until(
                lambda: lost.id not in [k.id for k in daemon.client().kernels()], timeout_s=20
            )
            assert watch.poll() is None
            assert daemon.client().inspect(kept.id).attached
            assert daemon.client().inspect(unwatched_program.id).state == "running"
            watch.close()
            wait_until(lambda: kept.id not in [k.id for k in daemon.client().kernels()])


def test_a_launcher_that_is_killed_while_it_is_being_started_again(own: RunningDaemon) -> None:
    with sandbox(own) as kernel:
        for _ in range(8):
            with contextlib.suppress(IndexError, ProcessLookupError):  # there is none right now
                os.kill(own.launcher, signal.SIGKILL)
            signal.sigtimedwait([], 0.015)
        assert run_inside(own, kernel, "true") == (0, "")
        assert own.process.poll() is None


def test_an_embedded_daemon_that_was_killed_is_started_again_by_its_clients(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody supervises it: whoever has a kernel looks for it."""
    run_dir = Path(tempfile.mkdtemp(prefix="skt-", dir="/run"))
    run_dir.chmod(0o755)
    work = Path("/srv/sandboxkernel-tests/embedded")
    work.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("SANDBOXKERNEL_RUN_DIR", str(run_dir))
    monkeypatch.setenv("SANDBOXKERNEL_DATA_DIR", str(make_data_dir(tmp_path / "data")))
    monkeypatch.delenv("SANDBOXKERNEL_HOST", raising=False)
    with session(work) as kernel:
        assert kernel.run("kept = 42").status == "ok"
        first = daemon_of(run_dir)
        os.kill(first, signal.SIGKILL)
        assert kernel.run("kept").status == "ok"
        assert kernel.manager.is_alive()

        def another() -> int:
            assert kernel.manager.is_alive()  # as Jupyter's restarter asks every three seconds
            with contextlib.suppress(OSError):
                found = daemon_of(run_dir)
                return found if found != first else 0  # it takes a moment to die
            return 0

        second = wait_until(another)
        kernel.manager.interrupt_kernel()
        kernel.manager.restart_kernel()
        kernel.client.wait_for_ready(timeout=30)
        assert kernel.run("'kept' in globals()").data()["text/plain"] == "False"
    process = os.pidfd_open(second)
    signal.pidfd_send_signal(process, signal.SIGINT)
    wait_until(lambda: select.select([process], [], [], 0)[0])
    os.close(process)
    shutil.rmtree(run_dir)


def daemon_of(run_dir: Path) -> int:
    """The pid of the daemon that serves a run directory."""
    with connect_unix(run_dir / "api.sock") as sock:
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", data)[0])


def test_a_daemon_that_is_stopped_while_it_makes_spares_stops_at_once(own: RunningDaemon) -> None:
    with sandbox(own, as_kernel=True) as kernel:
        for delay_ms in (0, 250, 255, 260, 270, 300):  # a spare is made a quarter second later
            with sandbox(own, as_kernel=True):
                signal.sigtimedwait([], delay_ms / 1000)
                own.process.send_signal(signal.SIGTERM)
                own.process.wait(15)
                own.start()
        assert own.client().inspect(kernel.id).state == "running"


def test_a_data_directory_is_one_daemons(tmp_path: Path) -> None:
    """Two would give one range of ids to two users, and mount a layer twice."""
    data = make_data_dir(tmp_path / "data")
    with running_daemon(data_dir=data) as first, sandbox(first):
        with (
            pytest.raises(
                AssertionError, match=f"{data} is in use by the daemon of {first.run_dir}"
            ),
            running_daemon(data_dir=data),
        ):
            pass
        first.kill()
        # Nobody holds it; the sandbox of before lives on, and only a daemon of its journal knows.
        with (
            pytest.raises(
                AssertionError, match=f"sandboxes of the daemon of {first.run_dir} .1 rec"
            ),
            running_daemon(data_dir=data),
        ):
            pass
        first.start()
        assert [kernel.state for kernel in first.client().kernels()] == ["running"]
    with running_daemon(data_dir=data) as second, sandbox(second):
        pass


def test_a_daemon_waits_for_one_that_still_stops(tmp_path: Path) -> None:
    """One that has closed its socket does not unlink the next one's, nor share its layers."""
    with (
        running_daemon(data_dir=make_data_dir(tmp_path / "data")) as daemon,
        sandbox(daemon) as kernel,
        ThreadPoolExecutor(1) as pool,
    ):
        stopping = daemon.process
        stopping.send_signal(signal.SIGTERM)
        wait_until(lambda: not answers(daemon.socket_path), every_s=0.001)
        stopping.send_signal(signal.SIGSTOP)  # in the middle of it
        start = pool.submit(daemon.start)
        try:
            wait_until(lambda: "waiting for it to stop" in daemon.log_path.read_text(), timeout_s=5)
            assert stopping.poll() is None
        finally:
            stopping.send_signal(signal.SIGCONT)
        start.result(DEADLINE_S)
        assert stopping.wait(15) == 0
        assert daemon.client().inspect(kernel.id).state == "running"


def test_after_a_reboot_layers_are_there_and_nothing_else_is(tmp_path: Path) -> None:
    """Its processes, mounts and cgroups are gone; what the disk has of them, says which boot."""
    with running_daemon(data_dir=make_data_dir(tmp_path)) as rebooted:
        client = rebooted.client()
        keeps = client.create(KernelCreate(kernel_id="keeps", argv=["sleep", "600"]))
        client.create(KernelCreate(kernel_id="scratch", argv=["sleep", "600"], ephemeral=True))
        assert run_inside(rebooted, keeps, "touch", "/home/sandbox/kept") == (0, "")
        groups = [client.inspect(name).confinement.cgroups for name in ("keeps", "scratch")]
        os.kill(rebooted.launcher, signal.SIGKILL)
        rebooted.kill()
        for group in groups:
            gone = Cgroup(read_layout(), group["unified"].lstrip("/"))
            gone.kill()
            gone.remove()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        other = boot.translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))
        files = [*(tmp_path / "scratch").glob(".boot"), *(rebooted.run_dir / "leases").iterdir()]
        assert len(files) >= 3
        for path in files:
            path.write_text(path.read_text().replace(boot, other))
        rebooted.start()
        assert list(client.kernels()) == []
        assert [p.name for p in (tmp_path / "scratch").iterdir()] == [".boot"]
        wait_until(lambda: not list((rebooted.run_dir / "k").glob("*")), what="no sockets")
        with sandbox(rebooted) as after:
            assert run_inside(rebooted, after, "ls", "/home/sandbox/kept")[0] == 0

"""Kernels whose command is run by clients that know nothing of provisioners."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from jupyter_client.provisioning import LocalProvisioner

from sandboxkernel.client import SandboxClient
from tests.conformance import bridged
from tests.conformance.server import free_port
from tests.conformance.session import TIMEOUT_S, Session
from tests.integration.test_cli import stop_embedded
from tests.support import RunningDaemon, make_data_dir, running_daemon, wait_until

LOOP = "kept = 42\nprint('in the loop', flush=True)\nwhile True: pass"


@pytest.fixture(autouse=True)
def kernelspec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, daemon: RunningDaemon
) -> Iterator[None]:
    bridged.set_up(monkeypatch, tmp_path)
    yield
    bridged.remove_orphans(daemon.client())


@contextlib.contextmanager
def bridged_session(folder: Path, **members: Any) -> Iterator[Session]:
    manager = KernelManager(kernel_name=bridged.KERNEL_NAME, **members)
    manager.start_kernel(cwd=str(folder))
    assert isinstance(manager.provisioner, LocalProvisioner)
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=TIMEOUT_S)
        yield Session(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel()


class Launched:
    """The program, run by hand as VS Code runs it: a file of its own with free TCP ports."""

    def __init__(
        self, folder: Path, *options: str, extra: tuple[str, ...] = (), **members: Any
    ) -> None:
        names = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
        self.info = {
            "transport": "tcp", "ip": "127.0.0.1", "key": secrets.token_hex(16),
            "signature_scheme": "hmac-sha256", "kernel_name": "bridged",
            **{name: free_port() for name in names}, **members,
        }  # fmt: skip
        self.file = folder / f"kernel-{secrets.token_hex(4)}.json"
        self.file.write_text(json.dumps(self.info))
        self.argv = [str(bridged.PROGRAM), "launch", *options, "-f", str(self.file), *extra]
        self.folder = folder
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            self.argv, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        return self.process

    @contextlib.contextmanager
    def client(self) -> Iterator[BlockingKernelClient]:
        client = BlockingKernelClient()
        client.load_connection_file(str(self.file))
        # Without a manager it takes a kernel that starts for more than a second for dead.
        client.hb_channel.time_to_dead = TIMEOUT_S
        client.start_channels()
        try:
            client.wait_for_ready(timeout=TIMEOUT_S)
            yield client
        finally:
            client.stop_channels()

    def ended(self) -> tuple[int, str]:
        """Exit code and stderr."""
        _, errors = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, errors


@contextlib.contextmanager
def launched(folder: Path, *options: str, **members: Any) -> Iterator[Launched]:
    program = Launched(folder, *options, **members)
    try:
        yield program
    finally:
        if program.process.poll() is None:
            program.process.kill()
        program.process.communicate()


def test_life_of_a_kernel(work: Path, daemon: RunningDaemon) -> None:
    with bridged_session(work) as kernel:
        (sandbox,) = daemon.client().kernels()
        assert sandbox.kernel_name == bridged.KERNEL_NAME
        assert kernel.run("import os; print(os.getpid() < 10, os.getcwd())").text == f"True {work}"
        assert kernel.run("print(input('? '))", answers=("typed",)).text == "typed"
        kernel.run("open('made inside', 'w').write('x')")
        info = kernel.manager.get_connection_info()
        assert info["transport"] == "tcp"
    assert (work / "made inside").read_text() == "x"
    assert not kernel.manager.has_kernel
    assert list(daemon.client().kernels()) == []


def test_only_the_address_of_the_file_is_bound(work: Path) -> None:
    with launched(work) as program, program.client():
        for family in ("tcp", "tcp6"):
            lines = Path(f"/proc/{program.process.pid}/net/{family}").read_text().splitlines()
            for line in lines[1:]:
                address, port = line.split()[1].split(":")
                listens = line.split()[3] == "0A"
                if listens and int(port, 16) in program.info.values():
                    assert address == "0100007F"  # 127.0.0.1
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", program.info["shell_port"]))


def test_interrupt(work: Path) -> None:
    with bridged_session(work) as kernel:
        for _ in range(2):
            msg_id = kernel.start(LOOP, until="in the loop")
            kernel.manager.interrupt_kernel()
            assert kernel.finish(msg_id).error.startswith("KeyboardInterrupt")
        assert kernel.run("print(kept)").text == "42"


@pytest.mark.parametrize("now", [True, False], ids=["now", "graceful"])
def test_restart(work: Path, daemon: RunningDaemon, now: bool) -> None:
    """A new process with the same file; it replaces what a killed one has left at once."""
    with bridged_session(work) as kernel:
        kernel.run("state = 'from before'")
        (before,) = daemon.client().kernels()
        kernel.manager.restart_kernel(now=now)
        kernel.client.wait_for_ready(timeout=TIMEOUT_S)
        assert kernel.run("print('state' in globals())").text == "False"
        (after,) = daemon.client().kernels()
        assert after.id != before.id


def test_restart_loop(work: Path, daemon: RunningDaemon) -> None:
    """Five in a row, each before the kernel had time to answer."""
    with bridged_session(work) as kernel:
        for _ in range(5):
            kernel.manager.restart_kernel(now=True)
        kernel.client.wait_for_ready(timeout=TIMEOUT_S)
        assert kernel.run("print(1)").text == "1"
        assert len(list(daemon.client().kernels())) == 1


def test_three_at_once(work: Path, daemon: RunningDaemon) -> None:
    with bridged_session(work) as a, bridged_session(work) as b, bridged_session(work) as c:
        kernels = (a, b, c)
        for number, kernel in enumerate(kernels):
            kernel.run(f"mine = {number}")
        assert [kernel.run("print(mine)").text for kernel in kernels] == ["0", "1", "2"]
        assert len(list(daemon.client().kernels())) == 3
    assert list(daemon.client().kernels()) == []


@pytest.mark.parametrize("policy", ["required", "disabled"])
def test_encryption_is_end_to_end(work: Path, policy: str) -> None:
    with bridged_session(work, transport_encryption=policy) as kernel:
        assert bool(kernel.manager.curve_publickey) == (policy == "required")
        assert kernel.run("print(1)").text == "1"


def test_large_messages_pass_both_ways(work: Path) -> None:
    """64 MiB, which no buffer on the way can hold."""
    with bridged_session(work) as kernel:
        text = kernel.run("print('x' * (64 << 20))").text
        assert len(text) == 64 << 20
        assert kernel.run(f"print(len({'y' * (8 << 20)!r}))").text == str(8 << 20)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os; os._exit(0)", 0),
        ("import os; os._exit(3)", 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_exit_code_is_the_kernels(
    work: Path, daemon: RunningDaemon, code: str, expected: int
) -> None:
    with launched(work) as program:
        with program.client() as client:
            client.execute(code)
            returncode, errors = program.ended()
        assert returncode == expected
        assert ("kernel ended" in errors) == (expected != 0)
        assert list(daemon.client().kernels()) == []


def test_memory_limit_is_told_and_is_an_option(work: Path, daemon: RunningDaemon) -> None:
    options = ("--profile", "small", "--pids", "50", "--cpus=0.25")
    with launched(work, *options) as program, program.client() as client:
        (kernel,) = daemon.client().kernels()
        assert (kernel.profile, kernel.limits.pids, kernel.limits.cpus) == ("small", 50, 0.25)
        client.execute("data = bytearray(1 << 30)")
        returncode, errors = program.ended()
    assert returncode == -signal.SIGKILL
    assert "memory limit" in errors and "small" in errors


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_reach_the_kernel_and_end_the_program_as_they_end_it(
    work: Path, daemon: RunningDaemon, signum: signal.Signals
) -> None:
    with launched(work) as program, program.client():
        program.process.send_signal(signum)
        assert program.ended()[0] == -signum
        assert list(daemon.client().kernels()) == []


def test_a_signal_at_once_is_not_lost(work: Path, daemon: RunningDaemon) -> None:
    """Before there is a sandbox to signal; the ports are bound by then."""
    with launched(work) as program:

        def listens() -> bool:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", program.info["hb_port"])).close()
                return True
            return False

        wait_until(listens)
        program.process.terminate()
        assert program.ended()[0] == -signal.SIGTERM
    assert list(daemon.client().kernels()) == []


def test_shutdown_request_ends_the_program(work: Path, daemon: RunningDaemon) -> None:
    with launched(work) as program:
        with program.client() as client:
            client.shutdown()
            assert client.get_control_msg(timeout=TIMEOUT_S)["content"]["status"] == "ok"
            assert program.ended() == (0, "")
        assert list(daemon.client().kernels()) == []


def test_arguments_after_the_file_are_ipykernels(work: Path) -> None:
    extra = ("--HistoryManager.hist_file=:memory:", "--IPKernelApp.exec_lines=said = 'so'")
    with launched(work, extra=extra) as program, program.client() as client:
        reply = client.execute_interactive(
            "assert said == 'so'", timeout=TIMEOUT_S, output_hook=lambda _: None
        )
        assert reply["content"]["status"] == "ok"


def test_environment_is_the_allow_list(
    work: Path, monkeypatch: pytest.MonkeyPatch, daemon: RunningDaemon
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("COURSE_NAME", "bio101")
    code = "import os; print({k: v for k, v in os.environ.items()}, end='')"
    options = ("--pass-env", "COURSE_*", "-e", "SAID=so")
    with launched(work, *options) as program, program.client() as client:
        output: list[Any] = []
        client.execute_interactive(code, timeout=TIMEOUT_S, output_hook=output.append)
        text = "".join(m["content"].get("text", "") for m in output)
        assert "'COURSE_NAME': 'bio101'" in text and "'SAID': 'so'" in text
        assert "secret" not in text


def test_ipc(work: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "k"
    ports = {f"{n}_port": i for i, n in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)}
    with launched(work, transport="ipc", ip=str(prefix), **ports) as program:
        with program.client() as client:
            client.execute("1")
            sockets = sorted(tmp_path.glob("k-*"))
            assert [oct(s.stat().st_mode & 0o777) for s in sockets] == ["0o600"] * 5
        program.process.kill()
        program.process.communicate()
        program.start()  # the sockets of the killed one are in the way
        with program.client() as client:
            client.shutdown()
            assert program.ended()[0] == 0
    assert list(tmp_path.glob("k-*")) == []


def test_a_port_that_is_taken_is_named_and_costs_no_sandbox(
    work: Path, daemon: RunningDaemon
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with launched(work, stdin_port=port) as program:
            returncode, errors = program.ended()
        assert returncode == 1
        assert f"stdin_port of the connection file, 127.0.0.1:{port}, is taken" in errors
        assert "hint: " in errors
    assert list(daemon.client().kernels()) == []


def test_an_address_that_is_not_ours(work: Path) -> None:
    with launched(work, ip="192.0.2.1") as program:
        returncode, errors = program.ended()
    assert returncode == 1 and "192.0.2.1" in errors


@pytest.mark.parametrize(
    ("members", "said"),
    [({"shell_port": 0}, "shell_port"), ({"key": 5}, "key"), ({"transport": "udp"}, "transport"),
     ({"hb_port": 70000}, "hb_port"), ({"shell_port": 4000, "hb_port": 4000}, "twice")],
)  # fmt: skip
def test_a_file_that_is_no_connection_file(work: Path, members: Any, said: str) -> None:
    with launched(work, **members) as program:
        returncode, errors = program.ended()
    assert returncode == 1 and said in errors and "Traceback" not in errors


def test_a_thousand_connections_that_come_and_go(work: Path) -> None:
    with launched(work) as program, program.client() as client:
        for _ in range(1000):
            socket.create_connection(("127.0.0.1", program.info["shell_port"])).close()
        descriptors = f"/proc/{program.process.pid}/fd"
        wait_until(lambda: len(os.listdir(descriptors)) < 50, what="the relays' end")
        reply = client.execute_interactive("1", timeout=TIMEOUT_S)
        assert reply["content"]["status"] == "ok"


def test_more_connections_than_it_keeps(work: Path, daemon: RunningDaemon) -> None:
    """Strangers can keep clients out, as they can of any kernel; not the program from its end."""
    with launched(work) as program, program.client() as client, contextlib.ExitStack() as stack:
        for _ in range(600):
            stack.enter_context(
                socket.create_connection(("127.0.0.1", program.info["iopub_port"]))
            ).sendall(b"\xff")
        reply = client.execute_interactive("1", timeout=TIMEOUT_S)
        assert reply["content"]["status"] == "ok"
        program.process.terminate()
        assert program.ended()[0] == -signal.SIGTERM
        assert list(daemon.client().kernels()) == []


def test_a_client_that_reads_nothing_holds_up_nobody(work: Path) -> None:
    with launched(work) as program, program.client() as client, contextlib.ExitStack() as stack:
        address = ("127.0.0.1", program.info["iopub_port"])
        deaf = stack.enter_context(socket.create_connection(address))
        deaf.sendall(b"\xff\0\0\0\0\0\0\0\1\x7f")
        reply = client.execute_interactive(
            "print('x' * (4 << 20))", timeout=TIMEOUT_S, output_hook=lambda _: None
        )
        assert reply["content"]["status"] == "ok"
        client.shutdown()
        assert program.ended()[0] == 0


def test_removal_by_somebody_else_ends_the_program(work: Path, daemon: RunningDaemon) -> None:
    with launched(work) as program, program.client():
        (kernel,) = daemon.client().kernels()
        daemon.client().remove(kernel.id)
        assert program.ended()[0] == -signal.SIGKILL


def test_a_daemon_that_stops_ends_the_program(
    work: Path, daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_daemon() as other:
        monkeypatch.setenv("SANDBOXKERNEL_HOST", f"unix://{other.socket_path}")
        with launched(work) as program, program.client():
            other.stop()
            returncode, errors = program.ended()
    assert returncode != 0 and "Traceback" not in errors
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", program.info["shell_port"]))


def test_a_daemon_is_started_where_none_runs(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded default, as for every other client."""
    run_dir = Path(tempfile.mkdtemp(prefix="skt-", dir="/run"))
    monkeypatch.delenv("SANDBOXKERNEL_HOST")
    monkeypatch.setenv("SANDBOXKERNEL_RUN_DIR", str(run_dir))
    monkeypatch.setenv("SANDBOXKERNEL_DATA_DIR", str(make_data_dir(tmp_path / "data")))
    try:
        with launched(work) as program, program.client() as client:
            assert len(list(SandboxClient(run_dir / "api.sock").kernels())) == 1
            client.shutdown()
            assert program.ended()[0] == 0
    finally:
        stop_embedded(run_dir)
        shutil.rmtree(run_dir)


def test_no_daemon_where_one_is_named(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOXKERNEL_HOST", f"unix://{tmp_path}/none.sock")
    with launched(work) as program:
        returncode, errors = program.ended()
    assert returncode == 125 and "no sandboxkernel daemon answers" in errors


def test_what_the_kernel_writes_beside_its_messages_is_passed_on(work: Path) -> None:
    """Why a kernel does not start is on its stderr, and nowhere else."""
    with launched(work, extra=("--log-level=nonsense",)) as program:
        returncode, errors = program.ended()
    assert returncode == 1 and "nonsense" in errors


def test_stderr_that_nobody_reads_does_not_keep_the_program(work: Path) -> None:
    with launched(work) as program, program.client() as client:
        # More than its pipe holds, less than the daemon keeps.
        client.execute("import os; os.write(2, b'x' * 120_000); os._exit(4)")
        assert program.process.wait(TIMEOUT_S) == 4


def test_the_work_folder_shadows_no_module_of_the_program(work: Path) -> None:
    """The program runs on the host: a click.py of the notebook's folder must not run in it."""
    (work / "click.py").write_text("open('/proc/self/cwd/ran', 'w').write('on the host')")
    (work / "socket.py").write_text("open('/proc/self/cwd/ran', 'w').write('on the host')")
    with launched(work, "--no-such-option") as program:
        assert program.ended()[0] == 2
    assert not (work / "ran").exists()

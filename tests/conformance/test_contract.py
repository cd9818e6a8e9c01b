"""The provisioner contract, kept towards jupyter_client's real managers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.utils.monitor
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.ioloop import AsyncIOLoopKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager, KernelManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager, MultiKernelManager
from jupyter_client.provisioning import KernelProvisionerFactory
from jupyter_server.services.kernels.kernelmanager import ServerKernelManager

from sandboxkernel.errors import KernelNotFound, ProfileNotFound, SandboxError, WorkFolderError
from sandboxkernel.provisioner import SandboxProvisioner
from tests.conformance.session import KERNEL_NAME, TIMEOUT_S, Session, profile_config, session
from tests.support import RunningDaemon

GIB = 1 << 30


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


async def wait_until(condition: Callable[[], Any], what: str) -> Any:
    async with asyncio.timeout(TIMEOUT_S):
        while not (value := condition()):
            await asyncio.sleep(0.05)
    assert value, what
    return value


async def say(client: AsyncKernelClient, code: str) -> str:
    """What a cell printed."""
    text = ""

    def collect(message: dict[str, Any]) -> None:
        nonlocal text
        text += message["content"].get("text", "")

    reply = await client.execute_interactive(code, output_hook=collect, timeout=TIMEOUT_S)
    assert reply["content"]["status"] == "ok", reply["content"]
    return text.strip()


@contextlib.asynccontextmanager
async def started(folder: Path, **members: Any) -> AsyncIterator[AsyncKernelManager]:
    manager_class = members.pop("manager_class", AsyncKernelManager)
    manager = manager_class(kernel_name=KERNEL_NAME, **members)
    await manager.start_kernel(cwd=str(folder))
    try:
        yield manager
    finally:
        await manager.shutdown_kernel(now=True)


@contextlib.asynccontextmanager
async def ready_client(manager: AsyncKernelManager) -> AsyncIterator[AsyncKernelClient]:
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=TIMEOUT_S)
        yield client
    finally:
        client.stop_channels()


def test_life_of_a_process(work: Path, daemon: RunningDaemon) -> None:
    async def main() -> None:
        async with started(work) as manager, ready_client(manager):
            provisioner = manager.provisioner
            assert isinstance(provisioner, SandboxProvisioner)
            assert provisioner.has_process
            assert await provisioner.poll() is None
            await provisioner.send_signal(0)
            await provisioner.kill()
            assert await provisioner.wait() == -signal.SIGKILL
            assert not provisioner.has_process
            assert await provisioner.poll() == -signal.SIGKILL
            # Nothing raises for a process that has ended.
            await provisioner.send_signal(signal.SIGINT)
            await provisioner.terminate()
            await provisioner.kill()
            assert daemon.client().inspect(manager.kernel_id).state == "exited"
            await provisioner.cleanup(restart=True)
            assert daemon.client().inspect(manager.kernel_id).state == "exited"
            await provisioner.cleanup(restart=False)
            with pytest.raises(KernelNotFound):
                daemon.client().inspect(manager.kernel_id)
            await provisioner.cleanup(restart=False)

    run(main())


def test_terminate_ends_the_process(work: Path) -> None:
    async def main() -> None:
        async with started(work) as manager, ready_client(manager):
            await manager.provisioner.terminate()
            code = await asyncio.wait_for(manager.provisioner.wait(), TIMEOUT_S)
            assert code is not None
            assert await manager.provisioner.poll() == code

    run(main())


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os; os._exit(0)", 0),
        ("import os; os._exit(3)", 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
    ],
)
def test_exit_code_is_reported(work: Path, code: str, expected: int) -> None:
    async def main() -> None:
        async with started(work) as manager, ready_client(manager) as client:
            client.execute(code)
            assert await asyncio.wait_for(manager.provisioner.wait(), TIMEOUT_S) == expected

    run(main())


def test_shutdown_of_a_kernel_that_has_died_is_no_error(work: Path, daemon: RunningDaemon) -> None:
    async def main() -> None:
        async with started(work) as manager:
            async with ready_client(manager) as client:
                client.execute("import os; os._exit(1)")
                while await manager.is_alive():
                    await asyncio.sleep(0.05)
            await manager.shutdown_kernel()
            assert list(daemon.client().kernels()) == []

    run(main())


LOOP = "kept = 42\nprint('in the loop', flush=True)\nwhile True: pass"
SUBPROCESS = """
import subprocess
kept = 42
script = 'trap "echo interrupted" INT; echo in the child; sleep 600'
child = subprocess.Popen(['sh', '-c', script], stdout=subprocess.PIPE)
print(child.stdout.readline().decode())
child.wait()
"""


def interrupt(kernel: Session, code: str, until: str) -> None:
    msg_id = kernel.start(code, until=until)
    kernel.manager.interrupt_kernel()
    reply = kernel.finish(msg_id)
    assert reply.reply["content"]["ename"] == "KeyboardInterrupt"
    assert any(c["ename"] == "KeyboardInterrupt" for c in reply.contents("error"))
    assert kernel.manager.is_alive()
    assert kernel.run("print(kept)").text == "42"


def test_interrupt_of_a_loop(work: Path) -> None:
    with session(work) as kernel:
        interrupt(kernel, LOOP, "in the loop")
        interrupt(kernel, LOOP, "in the loop")


def test_interrupt_of_sleep(work: Path) -> None:
    with session(work) as kernel:
        code = "import time; kept = 42; print('asleep', flush=True); time.sleep(600)"
        interrupt(kernel, code, "asleep")


def test_interrupt_while_a_subprocess_runs(work: Path) -> None:
    """As in a terminal, the whole process group gets the signal: nobody waits for the child.

    The child tells of it itself: a wait() that is interrupted just after the child has ended
    loses the exit status, in any CPython.
    """
    with session(work) as kernel:
        interrupt(kernel, SUBPROCESS, "in the child")
        assert kernel.run("print(child.stdout.read().decode())").text == "interrupted"


def test_interrupt_of_an_idle_kernel_keeps_it(work: Path) -> None:
    with session(work) as kernel:
        kernel.run("kept = 1")
        kernel.manager.interrupt_kernel()
        assert kernel.run("print(kept)").text == "1"


@pytest.mark.parametrize("now", [True, False], ids=["now", "graceful"])
def test_restart(work: Path, daemon: RunningDaemon, now: bool) -> None:
    with session(work) as kernel:
        kernel.run("state = 'from before'")
        info = kernel.manager.get_connection_info()
        before = daemon.client().inspect(kernel.kernel_id)
        assert kernel.run("open('/tmp/left', 'w').close()").status == "ok"
        kernel.manager.restart_kernel(now=now)
        kernel.client.wait_for_ready(timeout=TIMEOUT_S)  # the same client, by itself
        after = daemon.client().inspect(kernel.kernel_id)
        assert kernel.run("print('state' in globals())").text == "False"
        assert kernel.manager.get_connection_info() == info
        assert (after.id, after.generation) == (before.id, before.generation + 1)
        assert after.connection == before.connection
        assert after.pid != before.pid


def test_restart_of_a_kernel_that_does_not_react(work: Path) -> None:
    """A process that ignores every polite signal, and one that is stopped, restart as well."""
    deaf = """
import signal, time
for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)
print('deaf', flush=True)
while True: time.sleep(600)
"""
    with session(work) as kernel:
        kernel.start(deaf, until="deaf")
        kernel.manager.restart_kernel(now=True)
        kernel.client.wait_for_ready(timeout=TIMEOUT_S)
        kernel.manager.signal_kernel(signal.SIGSTOP)
        kernel.manager.restart_kernel(now=True)
        kernel.client.wait_for_ready(timeout=TIMEOUT_S)
        assert kernel.run("print(1)").text == "1"


def test_restart_after_the_daemon_forgot_the_sandbox(work: Path, daemon: RunningDaemon) -> None:
    with session(work) as kernel:
        daemon.client().remove(kernel.kernel_id)
        kernel.manager.restart_kernel(now=True)
        client = kernel.manager.client()  # a new sandbox has new socket paths
        client.start_channels()
        try:
            client.wait_for_ready(timeout=TIMEOUT_S)
        finally:
            client.stop_channels()


def test_restart_loop(work: Path, daemon: RunningDaemon) -> None:
    """Five in a row, each before the kernel had time to answer."""
    with session(work) as kernel:
        for _ in range(5):
            kernel.manager.restart_kernel(now=True)
        kernel.client.wait_for_ready(timeout=TIMEOUT_S)
        assert kernel.run("print(1)").text == "1"
        assert daemon.client().inspect(kernel.kernel_id).generation == 6


def test_autorestart_after_the_kernel_kills_itself(work: Path, daemon: RunningDaemon) -> None:
    async def main() -> None:
        async with started(
            work, manager_class=AsyncIOLoopKernelManager, autorestart=True
        ) as manager:
            restarts: list[str] = []
            manager.add_restart_callback(lambda: restarts.append("restart"), "restart")
            manager.add_restart_callback(lambda: restarts.append("dead"), "dead")
            async with ready_client(manager) as client:
                client.execute("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
                await wait_until(lambda: restarts, "the restarter noticed")
                # In the daemon, and the manager has its answer: until then it says that it is dead.
                await wait_until(
                    lambda: (
                        daemon.client().inspect(manager.kernel_id).generation == 2
                        and manager.provisioner.has_process
                    ),
                    "again",
                )
                await client.wait_for_ready(timeout=TIMEOUT_S)
                assert await say(client, "print('alive again')") == "alive again"
            assert restarts == ["restart"]

    run(main())


def test_shutdown_leaves_nothing(work: Path, daemon: RunningDaemon) -> None:
    """The leak check after every test looks at the host; this one looks at the client's side."""
    manager = KernelManager(kernel_name=KERNEL_NAME)
    manager.start_kernel(cwd=str(work))
    with_client = manager.client()
    with_client.start_channels()
    with_client.wait_for_ready(timeout=TIMEOUT_S)
    with_client.execute("import subprocess; subprocess.Popen(['sleep', '600'])")
    with_client.stop_channels()
    info = manager.get_connection_info()
    connection_file = Path(manager.connection_file)
    assert connection_file.exists() and Path(f"{info['ip']}-1").is_socket()
    manager.shutdown_kernel()
    assert not connection_file.exists()
    assert not Path(info["ip"]).parent.exists()
    assert list(daemon.client().kernels()) == []
    assert not manager.has_kernel


def test_parent_poller_is_off(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that watches a parent it cannot see would end itself after a second."""
    monkeypatch.setenv("JPY_PARENT_PID", str(os.getpid()))
    with session(work) as kernel:
        assert kernel.run("import os; print(os.environ['JPY_PARENT_PID'])").text == "1"
        assert kernel.run("import time; time.sleep(3); print('here')").text == "here"


def test_environment_of_the_server_stays_outside(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "secret-1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-2")
    monkeypatch.setenv("COURSE_NAME", "bio101")
    with session(work, config=profile_config(pass_env=["COURSE_*"])) as kernel:
        code = "import os, json; print(json.dumps(dict(os.environ)))"
        inside = json.loads(kernel.run(code).text)
        assert inside["COURSE_NAME"] == "bio101"
        assert not [name for name, value in inside.items() if value.startswith("secret-")]


def test_provisioner_info_is_json_and_loads_again(work: Path, daemon: RunningDaemon) -> None:
    async def main() -> None:
        async with started(work) as manager, ready_client(manager) as client:
            await say(client, "kept = 42")
            info = json.loads(json.dumps(await manager.provisioner.get_provisioner_info()))
            # As a server after its own restart: a manager that never launched anything.
            heir = AsyncKernelManager(kernel_name=KERNEL_NAME, kernel_id=manager.kernel_id)
            heir.provisioner = KernelProvisionerFactory.instance().create_provisioner_instance(
                manager.kernel_id, heir.kernel_spec, parent=heir
            )
            await heir.provisioner.load_provisioner_info(info)
            assert heir.provisioner.has_process
            assert await heir.provisioner.poll() is None
            heir.load_connection_info(heir.provisioner.connection_info)
            async with ready_client(heir) as other:
                assert await say(other, "print(kept)") == "42"
            await heir.provisioner.kill()
            assert await heir.provisioner.wait() == -signal.SIGKILL
            assert await manager.provisioner.wait() == -signal.SIGKILL
            await heir.provisioner.cleanup()
            assert list(daemon.client().kernels()) == []

    run(main())


def test_provisioner_info_of_a_sandbox_that_is_gone(work: Path) -> None:
    async def main() -> None:
        async with started(work) as manager:
            info = await manager.provisioner.get_provisioner_info()
            spec = manager.kernel_spec
        heir = AsyncKernelManager(kernel_name=KERNEL_NAME)
        provisioner = KernelProvisionerFactory.instance().create_provisioner_instance(
            "gone", spec, parent=heir
        )
        with pytest.raises(KernelNotFound):
            await provisioner.load_provisioner_info(info)

    run(main())


def test_eight_parallel_starts(work: Path, daemon: RunningDaemon) -> None:
    async def one(number: int) -> str:
        async with started(work) as manager, ready_client(manager) as client:
            return await say(client, f"import os; print({number}, os.uname().nodename)")

    async def main() -> None:
        answers = await asyncio.gather(*(one(number) for number in range(8)))
        assert [answer.split()[0] for answer in answers] == [str(n) for n in range(8)]
        assert len({answer.split()[1] for answer in answers}) == 8

    run(main())
    assert list(daemon.client().kernels()) == []


def test_multi_kernel_manager(work: Path, daemon: RunningDaemon) -> None:
    kernels = MultiKernelManager(default_kernel_name=KERNEL_NAME)
    first = kernels.start_kernel(cwd=str(work))
    second = kernels.start_kernel(cwd=str(work), kernel_id="chosen-by-the-client")
    assert second == "chosen-by-the-client"
    assert sorted(kernels.list_kernel_ids()) == sorted([first, second])
    assert {k.kernel_id for k in daemon.client().kernels()} == {first, second}
    kernels.restart_kernel(first, now=True)
    assert kernels.is_alive(first)
    kernels.interrupt_kernel(first)
    kernels.shutdown_kernel(first, now=True)
    assert kernels.list_kernel_ids() == [second]
    kernels.shutdown_all(now=True)
    assert list(daemon.client().kernels()) == []


def test_async_multi_kernel_manager(work: Path, daemon: RunningDaemon) -> None:
    async def main() -> None:
        kernels = AsyncMultiKernelManager(default_kernel_name=KERNEL_NAME, use_pending_kernels=True)
        ids = await asyncio.gather(*(kernels.start_kernel(cwd=str(work)) for _ in range(3)))
        for kernel_id in ids:
            await kernels.get_kernel(kernel_id).ready
        assert {k.kernel_id for k in daemon.client().kernels()} == set(ids)
        await kernels.shutdown_all(now=True)
        assert list(daemon.client().kernels()) == []

    run(main())


@pytest.mark.skipif(
    not hasattr(KernelManager, "transport_encryption"), reason="jupyter_client without CurveZMQ"
)
class TestEncryption:
    @pytest.mark.parametrize("policy", ["required", "auto"])
    def test_kernel_has_keys_and_keeps_them(self, work: Path, policy: str) -> None:
        with session(work, transport_encryption=policy) as kernel:
            keys = kernel.manager.curve_publickey, kernel.manager.curve_secretkey
            assert all(keys)
            assert kernel.run("print(1)").text == "1"
            assert handshake_fails(kernel)
            kernel.manager.restart_kernel(now=True)
            kernel.client.wait_for_ready(timeout=TIMEOUT_S)
            assert (kernel.manager.curve_publickey, kernel.manager.curve_secretkey) == keys
            assert kernel.run("print(2)").text == "2"

    def test_disabled_is_plain(self, work: Path) -> None:
        with session(work, transport_encryption="disabled") as kernel:
            assert kernel.manager.curve_publickey is None
            assert not handshake_fails(kernel)


def handshake_fails(kernel: Session) -> bool:
    """Connect to the heartbeat without keys: does libzmq refuse the handshake?"""
    info = kernel.manager.get_connection_info()
    failures = (
        zmq.Event.HANDSHAKE_FAILED_PROTOCOL,
        zmq.Event.HANDSHAKE_FAILED_AUTH,
        zmq.Event.HANDSHAKE_FAILED_NO_DETAIL,
    )
    with zmq.Context() as context, context.socket(zmq.REQ) as sock:
        sock.linger = 0
        with sock.get_monitor_socket() as monitor:
            sock.connect(f"ipc://{info['ip']}-{info['hb_port']}")
            try:
                while monitor.poll(int(TIMEOUT_S * 1000)):
                    event = zmq.utils.monitor.recv_monitor_message(monitor)["event"]
                    if event in failures or event == zmq.Event.DISCONNECTED:
                        return True
                    if event == zmq.Event.HANDSHAKE_SUCCEEDED:
                        return False
            finally:
                sock.disable_monitor()
    raise AssertionError("no handshake")


class TestErrorsAtLaunch:
    """Each is a text for the person who opened the notebook, and nothing is left behind."""

    def test_unknown_profile(self, work: Path, daemon: RunningDaemon) -> None:
        manager = KernelManager(kernel_name=KERNEL_NAME, config=profile_config("bio999"))
        with pytest.raises(ProfileNotFound, match="no profile 'bio999'") as caught:
            manager.start_kernel(cwd=str(work))
        assert "small" in str(caught.value), "it says what there is"
        assert list(daemon.client().kernels()) == []

    def test_work_folder_does_not_exist(self, work: Path) -> None:
        gone = work / "gone"
        manager = KernelManager(kernel_name=KERNEL_NAME)
        with pytest.raises(WorkFolderError) as caught:
            manager.start_kernel(cwd=str(gone))
        assert str(gone) in str(caught.value)
        gone.mkdir()  # the same manager starts once the reason is gone
        manager.start_kernel(cwd=str(gone))
        manager.shutdown_kernel(now=True)

    def test_work_folder_vanishes_before_a_restart(self, work: Path) -> None:
        folder = work / "course"
        folder.mkdir()
        with session(folder) as kernel:
            folder.rmdir()
            with pytest.raises(SandboxError) as caught:
                kernel.manager.restart_kernel(now=True)
            assert str(folder) in str(caught.value)
            folder.mkdir()
            kernel.manager.start_kernel(cwd=str(folder))
            kernel.client.wait_for_ready(timeout=TIMEOUT_S)
            assert kernel.run("import os; print(os.getcwd())").text == str(folder)

    def test_work_folder_is_outside_the_profile(self, tmp_path: Path, work: Path) -> None:
        manager = KernelManager(kernel_name=KERNEL_NAME, config=profile_config("rooted"))
        with pytest.raises(WorkFolderError):
            manager.start_kernel(cwd=str(tmp_path))
        manager.start_kernel(cwd=str(work))
        manager.shutdown_kernel(now=True)

    @pytest.mark.parametrize(
        ("traits", "field"),
        [({"memory": "a lot"}, "memory"), ({"pids": 0}, "pids"), ({"cpus": -1.0}, "cpus")],
    )
    def test_senseless_limit(self, work: Path, traits: dict[str, Any], field: str) -> None:
        manager = KernelManager(kernel_name=KERNEL_NAME, config=profile_config(**traits))
        with pytest.raises(SandboxError, match=field):
            manager.start_kernel(cwd=str(work))

    def test_no_daemon_where_one_is_named(
        self, work: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("SANDBOXKERNEL_HOST", f"unix://{tmp_path}/none.sock")
        with pytest.raises(SandboxError, match=r"no .* daemon answers on .*none\.sock"):
            KernelManager(kernel_name=KERNEL_NAME).start_kernel(cwd=str(work))


def test_kernel_that_dies_while_it_starts(work: Path, daemon: RunningDaemon) -> None:
    """The end is told with an exit code, not by a client that waits in vain."""

    async def main() -> None:
        manager = AsyncKernelManager(kernel_name=KERNEL_NAME)
        await manager.start_kernel(
            cwd=str(work), extra_arguments=["--IPKernelApp.no_such=1", "--f"]
        )
        code = await asyncio.wait_for(manager.provisioner.wait(), TIMEOUT_S)
        assert code not in (None, 0)
        await manager.shutdown_kernel(now=True)
        assert list(daemon.client().kernels()) == []

    run(main())


def test_limits_are_wishes(work: Path, daemon: RunningDaemon) -> None:
    config = profile_config(memory="1G", cpus=0.5, pids=100)
    with session(work, config=config) as kernel:
        limits = daemon.client().inspect(kernel.kernel_id).limits
        assert (limits.memory_bytes, limits.cpus, limits.pids) == (GIB, 0.5, 100)
    with session(work, config=profile_config(memory="1000G")) as kernel:
        limits = daemon.client().inspect(kernel.kernel_id).limits
        assert limits.memory_bytes == 4 * GIB, "the profile's maximum"


def test_long_path(daemon: RunningDaemon, work: Path) -> None:
    """Socket paths end at 107 bytes; work folders do not."""
    folder = work
    while len(os.fsencode(folder)) < 200:
        folder = folder / "ä-long folder name 'with' spaces"[: 200 - len(os.fsencode(folder))]
    folder.mkdir(parents=True)
    with session(folder) as kernel:
        assert kernel.run("import os; print(os.getcwd())").text == str(folder)
        kernel.run("open('made inside', 'w').write('x')")
    assert (folder / "made inside").read_text() == "x"


def test_paths_resolve_as_the_kernel_sees_them(work: Path) -> None:
    (work / "module.py").touch()
    with session(work) as kernel:
        provisioner = kernel.manager.provisioner
        assert provisioner.resolve_path("module.py") == str(work / "module.py")
        assert provisioner.resolve_path(str(work / "module.py")) == str(work / "module.py")
        assert provisioner.resolve_path("missing.py") is None
        assert provisioner.resolve_path("/etc/passwd") is None
        assert provisioner.resolve_path("../../../etc/passwd") is None


def test_memory_limit_is_the_reason(work: Path) -> None:
    """jupyter_server serves the trait `reason` at /api/kernels."""

    async def main() -> None:
        async with started(
            work,
            manager_class=ServerKernelManager,
            config=profile_config("small"),
            autorestart=False,
        ) as manager:
            async with ready_client(manager) as client:
                client.execute("data = bytearray(1 << 30)")
                code = await asyncio.wait_for(manager.provisioner.wait(), TIMEOUT_S)
            assert code == -signal.SIGKILL
            assert "memory limit" in manager.reason and "small" in manager.reason, manager.reason
            await manager.restart_kernel(now=True)
            assert manager.reason == "", "a reason ends with the next start"

    run(main())


def test_exit_code_is_the_reason(work: Path) -> None:
    async def main() -> None:
        async with started(work, manager_class=ServerKernelManager, autorestart=False) as manager:
            async with ready_client(manager) as client:
                client.execute("import os; os._exit(7)")
                await asyncio.wait_for(manager.provisioner.wait(), TIMEOUT_S)
            assert "7" in manager.reason, manager.reason

    run(main())


def test_plain_kernelspec_on_this_provisioner(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The administrator's switch: every kernelspec without a provisioner gets a sandbox."""
    folder = tmp_path / "kernels" / "plain"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "Plain", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    factory = KernelProvisionerFactory.instance()
    monkeypatch.setattr(factory, "default_provisioner_name", "sandboxkernel")
    assert "plain" in KernelSpecManager().find_kernel_specs()
    manager = KernelManager(kernel_name="plain")
    manager.start_kernel(cwd=str(work))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=TIMEOUT_S)
        assert Session(manager, client).run("import os; print(os.getpid() < 10)").text == "True"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)

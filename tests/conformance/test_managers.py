"""Every way in which jupyter_client's managers start kernels: pending, many, from threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import AsyncKernelManager, KernelManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager, MultiKernelManager
from jupyter_server.services.kernels.kernelmanager import (
    AsyncMappingKernelManager,
    MappingKernelManager,
)

from sandboxkernel.errors import ProfileNotFound
from sandboxkernel.provisioner import SandboxProvisioner
from tests.conformance.session import KERNEL_NAME, TIMEOUT_S, profile_config, session
from tests.support import RunningDaemon, wait_until

STOCK = "python3"


def ids(daemon: RunningDaemon) -> set[str]:
    return {kernel.kernel_id for kernel in daemon.client().kernels()}


def run(main: Any) -> None:
    asyncio.run(asyncio.wait_for(main, TIMEOUT_S))


async def answer(manager: Any, code: str = "6 * 7") -> str:
    """What a cell answers, through a client of the manager's own kind."""
    client = AsyncKernelManager.client(manager) if manager is None else manager.client()
    client.start_channels()
    try:
        await _awaited(client.wait_for_ready(timeout=TIMEOUT_S))
        reply = await _awaited(
            client.execute_interactive(
                "", user_expressions={"x": code}, timeout=TIMEOUT_S, output_hook=lambda _: None
            )
        )
        return reply["content"]["user_expressions"]["x"]["data"]["text/plain"]
    finally:
        client.stop_channels()


async def _awaited(value: Any) -> Any:
    return await value if asyncio.iscoroutine(value) else value


@pytest.mark.parametrize("manager_class", [AsyncMultiKernelManager, AsyncMappingKernelManager])
def test_pending_kernels(work: Path, daemon: RunningDaemon, manager_class: type) -> None:
    """start_kernel returns before the kernel is there; everything else waits for it."""

    async def main() -> None:
        kernels = manager_class(default_kernel_name=KERNEL_NAME, use_pending_kernels=True)
        kernel_ids = [await kernels.start_kernel(cwd=str(work)) for _ in range(3)]
        assert set(kernels.list_kernel_ids()) == set(kernel_ids)
        for kernel_id in kernel_ids:
            manager = kernels.get_kernel(kernel_id)
            await manager.ready
            assert await answer(manager) == "42"
        assert ids(daemon) == set(kernel_ids)
        await kernels.restart_kernel(kernel_ids[0])
        await kernels.get_kernel(kernel_ids[0]).ready
        assert await answer(kernels.get_kernel(kernel_ids[0])) == "42"
        await kernels.shutdown_all(now=True)
        assert ids(daemon) == set()

    run(main())


def test_pending_kernel_that_is_shut_down_at_once(work: Path, daemon: RunningDaemon) -> None:
    async def main() -> None:
        kernels = AsyncMultiKernelManager(default_kernel_name=KERNEL_NAME, use_pending_kernels=True)
        for _ in range(3):
            kernel_id = await kernels.start_kernel(cwd=str(work))
            manager = kernels.get_kernel(kernel_id)
            await kernels.shutdown_kernel(kernel_id, now=True)
            while kernel_id in kernels.list_kernel_ids():  # its shutdown is pending, too
                await asyncio.sleep(0.02)
            assert not manager.has_kernel
        assert ids(daemon) == set()

    run(main())


def test_pending_kernel_that_cannot_start_tells_the_reason(
    work: Path, daemon: RunningDaemon
) -> None:
    async def main() -> None:
        kernels = AsyncMultiKernelManager(
            default_kernel_name=KERNEL_NAME,
            use_pending_kernels=True,
            config=profile_config("bio999"),
        )
        kernel_id = await kernels.start_kernel(cwd=str(work))
        manager = kernels.get_kernel(kernel_id)
        with pytest.raises(ProfileNotFound, match="no profile 'bio999'"):
            await manager.ready
        assert ids(daemon) == set()

    run(main())


def test_single_async_manager_is_ready_when_started(work: Path, daemon: RunningDaemon) -> None:
    async def main() -> None:
        manager = AsyncKernelManager(kernel_name=KERNEL_NAME)
        start = asyncio.ensure_future(manager.start_kernel(cwd=str(work)))
        await start
        await manager.ready
        assert await answer(manager) == "42"
        await manager.restart_kernel()
        assert await answer(manager) == "42"
        await manager.shutdown_kernel()
        assert ids(daemon) == set()

    run(main())


@pytest.mark.parametrize("manager_class", [MultiKernelManager, MappingKernelManager])
def test_blocking_managers_of_many(work: Path, daemon: RunningDaemon, manager_class: type) -> None:
    kernels = manager_class(default_kernel_name=KERNEL_NAME)
    kernel_ids = [kernels.start_kernel(cwd=str(work)) for _ in range(3)]
    kernel_ids = [asyncio.run(_awaited(kernel_id)) for kernel_id in kernel_ids]
    assert ids(daemon) == set(kernel_ids)
    kernels.shutdown_all(now=True)
    assert ids(daemon) == set()


def test_one_process_has_kernels_of_both_kinds(
    work: Path, daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sandboxed by kernelspec, by default, and not at all: each for itself."""
    with session(work) as ours, session(work, kernel_name=STOCK) as plain:
        assert isinstance(ours.manager.provisioner, SandboxProvisioner)
        assert not isinstance(plain.manager.provisioner, SandboxProvisioner)
        code = "import os; print(os.getpid() < 10)"
        assert (ours.run(code).text, plain.run(code).text) == ("True", "False")
        assert ids(daemon) == {ours.kernel_id}


def test_kernels_started_from_threads(work: Path, daemon: RunningDaemon) -> None:
    """Blocking managers, each in a thread that has no event loop of its own."""

    def one(number: int) -> str:
        with session(work) as kernel:
            kernel.run(f"mine = {number}")
            kernel.manager.restart_kernel(now=True)
            kernel.client.wait_for_ready(timeout=TIMEOUT_S)
            return kernel.run(f"print('mine' in globals(), {number})").text

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(one, range(6)))
    assert answers == [f"False {number}" for number in range(6)]
    assert ids(daemon) == set()


def test_kernels_of_event_loops_in_threads(work: Path, daemon: RunningDaemon) -> None:
    """Asynchronous managers, each in a loop of its own, all at once."""
    answers: list[str] = []
    failures: list[BaseException] = []

    async def main() -> None:
        manager = AsyncKernelManager(kernel_name=KERNEL_NAME)
        await manager.start_kernel(cwd=str(work))
        try:
            answers.append(await answer(manager))
        finally:
            await manager.shutdown_kernel(now=True)

    def loop() -> None:
        try:
            run(main())
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=loop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert failures == []
    assert answers == ["42"] * 4
    assert ids(daemon) == set()


def test_a_kernel_ends_in_another_thread_than_it_was_started_in(
    work: Path, daemon: RunningDaemon
) -> None:
    manager = KernelManager(kernel_name=KERNEL_NAME)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(manager.start_kernel, cwd=str(work)).result(TIMEOUT_S)
    assert manager.is_alive()
    assert asyncio.run(answer(manager)) == "42"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(manager.interrupt_kernel).result(TIMEOUT_S)
        pool.submit(manager.shutdown_kernel).result(TIMEOUT_S)
    assert not manager.is_alive()
    assert ids(daemon) == set()


def test_a_blocking_manager_inside_a_running_event_loop(work: Path, daemon: RunningDaemon) -> None:
    """As in a notebook that starts kernels itself: jupyter_client runs a loop beside the loop."""

    async def main() -> None:
        manager = KernelManager(kernel_name=KERNEL_NAME)
        manager.start_kernel(cwd=str(work))
        assert manager.is_alive()
        manager.restart_kernel(now=True)
        manager.shutdown_kernel(now=True)
        assert ids(daemon) == set()

    run(main())


def test_a_start_that_is_cancelled_leaves_nothing(work: Path, daemon: RunningDaemon) -> None:
    before = ids(daemon)

    async def main(delay_s: float) -> None:
        manager = AsyncKernelManager(kernel_name=KERNEL_NAME)
        task = asyncio.create_task(manager.start_kernel(cwd=str(work)))
        await asyncio.sleep(delay_s)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        if manager.has_kernel:  # it was faster
            await manager.shutdown_kernel(now=True)

    for delay_s in (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.2):
        run(main(delay_s))
        wait_until(lambda: ids(daemon) == before, what=f"no kernel after {delay_s} s")


def test_a_start_that_is_cancelled_at_its_last_step_leaves_nothing(
    work: Path, daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel is there, and its manager does not know it yet."""

    async def main() -> None:
        reached = asyncio.Event()

        async def watch(*_: Any) -> None:
            reached.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(SandboxProvisioner, "_watch_exit", watch)
        manager = AsyncKernelManager(kernel_name=KERNEL_NAME)
        task = asyncio.create_task(manager.start_kernel(cwd=str(work)))
        await reached.wait()
        assert len(ids(daemon)) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    wait_until(lambda: ids(daemon) == set(), what="no kernel")

"""Removals that fail are tried again, ever more rarely, until they succeed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sandboxkernel.daemon import removals as module
from sandboxkernel.daemon.removals import RETRY_MAX_S, Removals, retry_delay
from sandboxkernel.errors import LauncherLost, RemovalPending


def test_the_interval_doubles_up_to_its_cap() -> None:
    assert [retry_delay(n) for n in range(1, 6)] == [1, 2, 4, 8, 16]
    assert retry_delay(10) == retry_delay(10**6) == RETRY_MAX_S


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_FIRST_S", 0.0)


async def run_until_idle(removals: Removals) -> None:
    removals.run_due()
    assert removals._task is not None
    await removals._task


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "error", [OSError(16, "Device or resource busy"), LauncherLost("gone"), ZeroDivisionError()]
)
def test_it_is_tried_until_it_succeeds(error: Exception) -> None:
    async def scenario() -> None:
        removals, failing, tries = Removals(), [error, error], 0

        async def again() -> None:
            nonlocal tries
            tries += 1
            if failing:
                raise failing.pop()

        first = removals.failed("0123", OSError("busy"), again)
        assert (first.reason, first.attempts) == ("busy", 1)
        await run_until_idle(removals)
        await run_until_idle(removals)
        state = removals.get("0123")
        assert state is not None
        assert (state.attempts, state.since) == (3, first.since)
        await run_until_idle(removals)
        assert tries == 3
        assert "0123" not in removals and removals.all() == {}

    asyncio.run(scenario())


@pytest.mark.usefixtures("at_once")
def test_a_failure_that_was_noted_counts_once() -> None:
    async def scenario() -> None:
        removals = Removals()

        async def again() -> None:
            removals.failed("0123", OSError("still busy"), again)
            raise RemovalPending("as said")

        removals.failed("0123", OSError("busy"), again)
        await run_until_idle(removals)
        state = removals.get("0123")
        assert state is not None
        assert (state.attempts, state.reason) == (2, "still busy")

    asyncio.run(scenario())


@pytest.mark.usefixtures("at_once")
def test_one_that_hangs_does_not_pile_up_and_ends_with_the_daemon() -> None:
    async def scenario() -> None:
        removals, tries = Removals(), 0

        async def again() -> None:
            nonlocal tries
            tries += 1
            await asyncio.Event().wait()

        removals.failed("0123", OSError("busy"), again)
        for _ in range(3):
            removals.run_due()
            await asyncio.sleep(0)
        assert tries == 1
        await removals.close()
        assert "0123" in removals  # for the next daemon

    asyncio.run(scenario())


def test_what_is_not_due_waits() -> None:
    async def scenario() -> Any:
        removals = Removals()

        async def again() -> None:
            raise AssertionError("too soon")

        removals.failed("0123", OSError("busy"), again)
        removals.run_due()
        assert removals._task is None
        removals.done("0123")
        removals.done("0123")  # idempotent

    asyncio.run(scenario())

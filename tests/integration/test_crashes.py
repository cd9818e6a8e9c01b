"""A sample of `make crashes`: daemon and launcher are killed, with kernels and clients standing by."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.crashes.scene import PREPARED, Scene, crash_at, crash_at_random, scene
from tests.support import SLOWDOWN, host_state

# The whole is `make crashes`. An emulated processor gets one effect of each operation's for each
# victim, everywhere another one.
STEP = 7
LEAST_EFFECTS = 10  # of every operation for every victim
MOMENTS = 20 if SLOWDOWN == 1 else 3


@pytest.fixture
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = Path("/srv/sandboxkernel-tests/crashes")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def clean(stage: Scene) -> bool:
    assert stage.found.lost == []
    assert stage.found.leaks == []
    assert stage.found.stuck == []
    return True


def effects(pair: int) -> Iterable[int]:
    """At which of its effects the `pair`th operation and victim crashes, until there is no more."""
    return itertools.count(1, STEP) if SLOWDOWN == 1 else [1 + 3 * pair % LEAST_EFFECTS]


@pytest.mark.timeout(300 * SLOWDOWN)
def test_a_crash_at_a_step_of_a_start_or_an_end_loses_and_leaves_nothing(work: Path) -> None:
    with scene(work, trapped=True) as stage:
        before = host_state()
        pairs = itertools.product(PREPARED, ("daemon", "launcher"))
        for pair, (name, role) in enumerate(pairs):
            for number in effects(pair):
                if not crash_at(stage, role, name, number):
                    break
        stage.check_leaks(before, "all of them")
        assert clean(stage)
        assert sum(stage.found.crashes.values()) >= len(PREPARED) * 2


@pytest.mark.timeout(300 * SLOWDOWN)
def test_crashes_at_random_moments_lose_and_leave_nothing(work: Path) -> None:
    with scene(work, trapped=False) as stage:
        before = host_state()
        for seed in range(MOMENTS):
            crash_at_random(stage, seed)
        stage.check_leaks(before, "all of them")
        assert clean(stage)
        assert sum(stage.found.crashes.values()) == MOMENTS

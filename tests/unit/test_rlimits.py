from __future__ import annotations

import os
import resource

import pytest

from sandboxruntime.errors import SpecError
from sandboxruntime.rlimits import DEFAULTS, INFINITY, NUMBERS, apply, plan


def test_numbers_are_those_of_the_standard_library() -> None:
    for name, number in NUMBERS.items():
        assert getattr(resource, name, number) == number


def test_a_hard_limit_is_never_raised() -> None:
    current = {"RLIMIT_NOFILE": (1024, 20_000)}
    assert plan({"RLIMIT_NOFILE": (65_536, 1_048_576)}, current) == {
        "RLIMIT_NOFILE": (20_000, 20_000)
    }
    assert plan({"RLIMIT_NOFILE": (10, 20)}, current) == {"RLIMIT_NOFILE": (10, 20)}
    assert plan({"RLIMIT_NOFILE": (5, INFINITY)}, {"RLIMIT_NOFILE": (5, INFINITY)}) == {
        "RLIMIT_NOFILE": (5, INFINITY)
    }


@pytest.mark.parametrize(
    "rlimits",
    [
        {"RLIMIT_FILES": (1, 1)},
        {"NOFILE": (1, 1)},
        {"RLIMIT_CORE": (2, 1)},
        {"RLIMIT_CORE": (-1, -1)},
        {"RLIMIT_CORE": (0, INFINITY + 1)},
    ],
)
def test_bad_limits_are_refused(rlimits: dict[str, tuple[int, int]]) -> None:
    with pytest.raises(SpecError):
        apply(rlimits)


def test_defaults_hold_in_a_child_and_need_no_privilege() -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            apply(DEFAULTS)
            apply(DEFAULTS)
            right = resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
            right = right and resource.getrlimit(14) == (0, 0)
            code = 0 if right else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

"""Profiles, grants and clamping."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxkernel.daemon.policy import check_min_spares
from sandboxkernel.errors import LimitError, RequestError
from sandboxkernel.limits import (
    BOUNDS,
    DEFAULT_PROFILE,
    Grant,
    Subject,
    check_wish,
    clamp,
    granted,
    most,
    parse_grants,
    parse_limits,
    parse_profiles,
)
from sandboxkernel.models import IoLimit, Limits

GIB = 1 << 30
ALICE = Subject(
    uid=1001, gid=1001, name="alice", home="/home/alice", group_names=frozenset({"bio"})
)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(memory_bytes=0),
        Limits(memory_bytes=1),
        Limits(memory_bytes=-1),
        Limits(memory_bytes=1 << 62),
        Limits(cpus=0.0),
        Limits(cpus=-1.0),
        Limits(cpus=math.nan),
        Limits(cpus=math.inf),
        Limits(pids=0),
        Limits(pids=1),
        Limits(swap_bytes=-1),
        Limits(shm_bytes=1),
        Limits(tmp_bytes=0),
        Limits(cpu_weight=0),
        Limits(io=IoLimit(read_bytes_per_s=0)),
        Limits(io=IoLimit(write_ops_per_s=0)),
    ],
    ids=str,
)
def test_a_wish_that_makes_no_sense_is_refused_with_its_bounds(limits: Limits) -> None:
    with pytest.raises(LimitError) as caught:
        check_wish(limits)
    assert "outside" in caught.value.message
    assert caught.value.field is not None
    assert caught.value.hint


def test_every_limit_has_bounds() -> None:
    assert set(BOUNDS) | {"io"} == set(Limits.__struct_fields__)


def test_a_wish_above_the_maximum_is_lowered() -> None:
    effective = clamp(
        Limits(memory_bytes=8 * GIB), Limits(memory_bytes=GIB), Limits(memory_bytes=2 * GIB)
    )
    assert effective.memory_bytes == 2 * GIB


def test_no_wish_gives_the_default() -> None:
    assert clamp(Limits(), Limits(pids=128), Limits(pids=512)).pids == 128


def test_a_wish_below_the_default_is_taken() -> None:
    assert clamp(Limits(cpus=0.5), Limits(cpus=1.0), Limits(cpus=2.0)).cpus == 0.5


def test_a_maximum_holds_where_nobody_wished_for_anything() -> None:
    assert clamp(Limits(), Limits(), Limits(io=IoLimit(write_bytes_per_s=4096))).io == IoLimit(
        write_bytes_per_s=4096
    )


amounts = st.none() | st.integers(min_value=64 << 20, max_value=1 << 40)


@given(amounts, amounts, amounts)
def test_nothing_is_ever_above_the_maximum(
    wish: int | None, default: int | None, top: int | None
) -> None:
    value = clamp(*(Limits(memory_bytes=v) for v in (wish, default, top))).memory_bytes
    if top is not None:
        assert value is not None
        assert value <= top


@given(amounts, amounts)
def test_the_strictest_maximum_counts(one: int | None, other: int | None) -> None:
    value = most(Limits(memory_bytes=one), Limits(memory_bytes=other)).memory_bytes
    known = [v for v in (one, other) if v is not None]
    assert value == (min(known) if known else None)


def test_limits_are_read_as_people_write_them() -> None:
    limits = parse_limits({"memory": "1G", "cpus": 0.5, "io_write": "10M"}, where="x")
    assert limits == Limits(memory_bytes=GIB, cpus=0.5, io=IoLimit(write_bytes_per_s=10 << 20))


@pytest.mark.parametrize(
    "raw", [{"memroy": "1G"}, {"pids": "many"}, {"pids": True}, {"cpus": "1"}, {"pids": 1.5}]
)
def test_a_misspelt_or_mistyped_limit_is_an_error(raw: dict[str, object]) -> None:
    with pytest.raises(LimitError):
        parse_limits(raw, where="profiles.x.limits")


def test_a_profiles_limits_are_its_maximum_unless_it_says_otherwise() -> None:
    profile = parse_profiles({"bio": {"limits": {"memory": "1G"}}})["bio"]
    assert profile.maximum.memory_bytes == GIB
    assert profile.limits.pids == DEFAULT_PROFILE.limits.pids


@pytest.mark.parametrize(
    "raw",
    [
        {"Bio 101": {}},
        {"bio": {"colour": "red"}},
        {"bio": {"home": "maybe"}},
        {"bio": {"mounts": [{"destination": "/x"}]}},
        {"bio": {"work_folders": ["relative"]}},
        {"bio": {"spares": 65}},
        {"bio": {"spares": True}},
        {"bio": {"spares": 2, "min_spares": 3}},
        {"bio": {"min_spares": -1}},
        {"bio": {"min_spares": 1.0}},
        {"bio": {"min_spares": 1, "zygote": "user"}},
        {"bio": {"min_spares": 1, "zygote": "off"}},
        {"bio": {"min_spares": 1, "executor": "runc"}},
        {"bio": {"min_spares": 1, "limits": {"io_write": "64M"}}},
    ],
)
def test_a_bad_profile_is_refused_at_start(raw: dict[str, dict[str, object]]) -> None:
    with pytest.raises(RequestError):
        parse_profiles(raw)


def test_spares_that_wait_always_need_a_zygote_and_somebody_who_may_have_them() -> None:
    profiles = parse_profiles({"bio": {"spares": 30, "min_spares": 30}})
    assert (profiles["bio"].spares, profiles["bio"].min_spares) == (30, 30)
    assert (DEFAULT_PROFILE.min_spares, profiles["default"].min_spares) == (0, 0)
    capped = {"group": "bio", "profiles": ["bio"], "ceiling": {"memory": "3G"}}
    free = {"user": "*", "profiles": ["bio"]}
    check_min_spares(profiles.values(), parse_grants([capped, free]), 1)
    with pytest.raises(
        RequestError, match=r"profiles have min_spares \(bio\), and max_zygotes is 0"
    ):
        check_min_spares(profiles.values(), parse_grants([free]), 0)
    with pytest.raises(RequestError, match="every grant of that profile has a ceiling"):
        check_min_spares(profiles.values(), parse_grants([capped]), 1)
    check_min_spares([DEFAULT_PROFILE], parse_grants([capped]), 0)


def test_the_first_matching_grant_counts() -> None:
    grants = parse_grants(
        [
            {"group": "bio", "profiles": ["bio101"], "max_kernels": 3},
            {"user": "*", "profiles": ["default"]},
        ]
    )
    grant = granted(grants, ALICE)
    assert grant is not None
    assert grant.max_kernels == 3
    assert grant.allows("bio101")
    assert not grant.allows("default")


def test_without_a_matching_grant_nothing_is_granted() -> None:
    assert granted(parse_grants([{"user": "bob"}]), ALICE) is None


def test_without_grants_everybody_may() -> None:
    assert granted(parse_grants([]), ALICE) == Grant(user="*")


@pytest.mark.parametrize(
    "raw", [{}, {"user": "a", "group": "b"}, {"user": "a", "max_kernels": 0}, {"usr": "a"}]
)
def test_a_bad_grant_is_refused_at_start(raw: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        parse_grants([raw])

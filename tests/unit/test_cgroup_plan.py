"""Golden lists: a change of what is written to the host must show in review."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sandboxruntime.cgroup import (
    Cgroup,
    IoLimit,
    Layout,
    Limits,
    Mode,
    plan_devices,
    plan_parent_writes,
    plan_writes,
)
from sandboxruntime.cgroup.limits import Check, Write, matches
from sandboxruntime.cgroup.v1 import usage as v1_usage
from sandboxruntime.cgroup.v2 import usage as v2_usage
from sandboxruntime.errors import HostError, SpecError

POINTS = {
    name: f"/cg/{name}"
    for name in ("memory", "cpu", "cpuacct", "pids", "blkio", "freezer", "devices", "cpuset")
}
V1 = Layout(Mode.V1, POINTS, None, frozenset())
HYBRID = Layout(Mode.HYBRID, POINTS, "/cg/unified", frozenset({"hugetlb"}))
V2 = Layout(Mode.V2, {}, "/cg", frozenset({"cpu", "io", "memory", "pids", "cpuset"}))
LIMITS = Limits(
    memory_bytes=1 << 30,
    swap_bytes=1 << 20,
    cpu_quota_us=50_000,
    cpu_weight=200,
    pids=64,
    io=(IoLimit(8, 0, read_bytes_per_s=1000, write_ops_per_s=10),),
)


def lines(writes: list[Write]) -> list[str]:
    return [f"{write.controller or 'v2'}: {write.file} <- {write.value}" for write in writes]


@pytest.mark.parametrize("layout", [V1, HYBRID])
def test_v1_and_hybrid_write_the_same(layout: Layout) -> None:
    assert lines(plan_writes(layout, LIMITS)) == [
        "memory: memory.limit_in_bytes <- 1073741824",
        "memory: memory.memsw.limit_in_bytes <- 1074790400",
        "pids: pids.max <- 64",
        "cpu: cpu.shares <- 2048",
        "cpu: cpu.cfs_period_us <- 100000",
        "cpu: cpu.cfs_quota_us <- 50000",
        "blkio: blkio.throttle.read_bps_device <- 8:0 1000",
        "blkio: blkio.throttle.write_iops_device <- 8:0 10",
    ]
    assert lines(plan_parent_writes(layout, LIMITS)) == ["memory: memory.use_hierarchy <- 1"]


def test_v2() -> None:
    assert lines(plan_writes(V2, LIMITS)) == [
        "v2: memory.swap.max <- 1048576",
        "v2: memory.max <- 1073741824",
        "v2: memory.oom.group <- 1",
        "v2: pids.max <- 64",
        "v2: cpu.weight <- 200",
        "v2: cpu.max <- 50000 100000",
        "v2: io.max <- 8:0 rbps=1000 wbps=max riops=max wiops=10",
    ]
    assert lines(plan_parent_writes(V2, LIMITS)) == [
        f"v2: cgroup.subtree_control <- +{name}" for name in ("memory", "pids", "cpu", "io")
    ]


def test_a_hybrid_host_may_have_its_memory_controller_in_v2() -> None:
    points = {name: point for name, point in POINTS.items() if name != "memory"}
    layout = Layout(Mode.HYBRID, points, "/cg/unified", frozenset({"memory"}))
    writes = lines(plan_writes(layout, Limits(memory_bytes=4096, pids=3)))
    assert writes[1] == "v2: memory.max <- 4096"
    assert writes[-1] == "pids: pids.max <- 3"
    assert lines(plan_parent_writes(layout, LIMITS)) == ["v2: cgroup.subtree_control <- +memory"]


def test_no_swap_means_no_swapping_before_the_limit_either() -> None:
    assert lines(plan_writes(V1, Limits(memory_bytes=4096)))[-1] == (
        "memory: memory.swappiness <- 0"
    )


@pytest.mark.parametrize("layout", [V1, V2])
def test_nothing_asked_nothing_written(layout: Layout) -> None:
    assert plan_writes(layout, Limits()) == []


def test_a_reset_lifts_what_is_not_asked() -> None:
    assert lines(plan_writes(V1, Limits(), reset=True)) == [
        "memory: memory.memsw.limit_in_bytes <- -1",
        "memory: memory.limit_in_bytes <- -1",
        "pids: pids.max <- max",
        "cpu: cpu.shares <- 1024",
        "cpu: cpu.cfs_period_us <- 100000",
        "cpu: cpu.cfs_quota_us <- -1",
    ]
    assert lines(plan_writes(V2, Limits(), reset=True))[-1] == "v2: cpu.max <- max 100000"


def test_memsw_is_raised_first_and_lowered_last() -> None:
    def first(new: int, current: int) -> str:
        plan = plan_writes(V1, Limits(memory_bytes=new), memory_limit_bytes=current)
        return plan[0].file

    assert first(8192, 4096) == "memory.memsw.limit_in_bytes"
    assert first(4096, 8192) == "memory.limit_in_bytes"


@pytest.mark.parametrize(
    ("limits", "gone"),
    [
        (Limits(memory_bytes=1), "memory"),
        (Limits(pids=1), "pids"),
        (Limits(cpu_weight=1), "cpu"),
        (Limits(cpu_quota_us=1000), "cpu"),
        (Limits(io=(IoLimit(8, 0, 1),)), "io"),
    ],
)
@pytest.mark.parametrize("layout", [V1, HYBRID, V2])
def test_a_limit_without_its_controller_is_refused(
    layout: Layout, limits: Limits, gone: str
) -> None:
    v1_name = "blkio" if gone == "io" else gone
    poorer = replace(
        layout,
        v1={name: point for name, point in layout.v1.items() if name != v1_name},
        v2_controllers=layout.v2_controllers - {gone},
    )
    for plan in (plan_writes, plan_parent_writes):
        with pytest.raises(HostError) as caught:
            plan(poorer, limits)
        assert caught.value.feature == f"cgroup:{gone}"
        assert caught.value.hint


def test_swap_limit_is_optional_only_where_there_is_no_swap() -> None:
    for layout, file in ((V1, "memory.memsw.limit_in_bytes"), (V2, "memory.swap.max")):
        for swap_exists in (True, False):
            plan = plan_writes(layout, Limits(memory_bytes=1), swap_exists=swap_exists)
            (write,) = [write for write in plan if write.file == file]
            assert write.optional is not swap_exists


def test_a_ceiling_does_not_kill_all_kernels_of_a_user() -> None:
    plan = plan_writes(V2, Limits(memory_bytes=1), kill_as_unit=False)
    assert "v2: memory.oom.group <- 0" in lines(plan)


def test_devices_are_denied_before_they_are_allowed() -> None:
    plan = lines(plan_devices(HYBRID))
    assert plan[0] == "devices: devices.deny <- a"
    assert "devices: devices.allow <- c 1:3 rw" in plan
    assert not [line for line in plan[1:] if "m" in line.split("<-")[1]]
    assert plan_devices(V2) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"memory_bytes": 0},
        {"swap_bytes": -1},
        {"cpu_quota_us": 999},
        {"cpu_period_us": 0},
        {"cpu_weight": 10_001},
        {"pids": 0},
        {"io": (IoLimit(8, 0, 1), IoLimit(8, 0, 2))},
    ],
)
def test_impossible_limits_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(SpecError):
        Limits(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("check", "expected", "text", "same"),
    [
        (Check.EXACT, "64", "64\n", True),
        (Check.EXACT, "64", "63\n", False),
        (Check.PAGES, "5000", "8192\n", True),  # v1 rounds up
        (Check.PAGES, "5000", "4096\n", True),  # v2 rounds down
        (Check.PAGES, "5000", "12288\n", False),
        (Check.PAGES, "8192", "4096\n", False),
        (Check.PAGES, "-1", "9223372036854771712\n", True),
        (Check.PAGES, "max", "max\n", True),
        (Check.PAGES, "4096", "max\n", False),
        (Check.LINE, "8:0 10", "8:16 5\n8:0 10\n", True),
        (Check.LINE, "8:0 10", "8:0 100\n", False),
        (Check.ABSENT, "8:0", "8:16 5\n", True),
        (Check.ABSENT, "8:0", "8:0 5\n", False),
        (Check.ABSENT, "a", "", True),
        (Check.WORDS, "memory", "cpu memory pids\n", True),
        (Check.WORDS, "memory", "cpu pids\n", False),
    ],
)
def test_what_counts_as_read_back(check: Check, expected: str, text: str, same: bool) -> None:
    assert matches(Write("", "f", "v", expected, check), text, 4096) is same


def test_usage_v1() -> None:
    files = {
        "memory.usage_in_bytes": "10\n",
        "memory.max_usage_in_bytes": "20\n",
        "cpuacct.usage": "3000\n",
        "cpu.stat": "nr_periods 1\nnr_throttled 1\nthrottled_time 9000\n",
        "pids.current": "4\n",
        "blkio.throttle.io_service_bytes_recursive": "8:0 Read 5\n8:0 Write 6\n8:1 Read 1\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n",
    }
    usage = v1_usage(lambda _controller, file: files.get(file, ""))
    assert [getattr(usage, name) for name in usage.__slots__] == [10, 20, 3, 9, 4, 6, 6, 7]


def test_usage_v2() -> None:
    files = {
        "memory.current": "10\n",
        "memory.peak": "20\n",
        "cpu.stat": "usage_usec 3\nuser_usec 1\nthrottled_usec 9\n",
        "pids.current": "4\n",
        "io.stat": "8:0 rbytes=5 wbytes=6 rios=1 wios=1\n8:16 rbytes=1 wbytes=0\n",
        "memory.events": "low 0\noom 1\noom_kill 7\n",
    }
    usage = v2_usage(lambda _controller, file: files.get(file, ""))
    assert [getattr(usage, name) for name in usage.__slots__] == [10, 20, 3, 9, 4, 6, 6, 7]


def test_membership_finds_every_hierarchy_that_differs() -> None:
    group = Cgroup(HYBRID, "sandboxkernel/1/x")
    good = "\n".join(
        f"{number}:{key}:{path}" for number, (key, path) in enumerate(group.membership().items())
    )
    assert group.check_membership(good) == []
    assert group.check_membership(good + "\n9:cpuset:/\n") == []
    bad = good.replace(":memory:/sandboxkernel/1/x", ":memory:/sandboxkernel/1")
    assert group.check_membership(bad) == [
        "cgroup memory: expected /sandboxkernel/1/x, found /sandboxkernel/1"
    ]
    assert len(group.check_membership("")) == len(group.membership())


def test_membership_ignores_the_order_of_shared_controllers() -> None:
    shared = Layout(Mode.V1, {"cpu": "/cg/c", "cpuacct": "/cg/c"}, None, frozenset())
    assert Cgroup(shared, "x").check_membership("1:cpuacct,cpu:/x") == []

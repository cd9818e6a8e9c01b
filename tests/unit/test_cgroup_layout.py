from __future__ import annotations

import pytest

from sandboxruntime.cgroup.layout import Mode, check_path, parse_layout, parse_others
from sandboxruntime.errors import HostError, SpecError

V1 = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/pids\\040x rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
"""
V2_LINE = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"


def test_v1_controllers_that_share_a_mount_are_one_hierarchy() -> None:
    layout = parse_layout(V1, "")
    assert layout.mode is Mode.V1
    assert layout.hierarchies() == {
        "memory": "/sys/fs/cgroup/memory",
        "pids": "/sys/fs/cgroup/pids x",
        "cpu,cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
    }


def test_hybrid_enters_v2_last() -> None:
    layout = parse_layout(V1 + V2_LINE, "hugetlb\n")
    assert layout.mode is Mode.HYBRID
    assert layout.v2_controllers == {"hugetlb"}
    assert list(layout.hierarchies()) == ["memory", "pids", "cpu,cpuacct", ""]


def test_v2_alone() -> None:
    layout = parse_layout(V2_LINE, "cpu io memory pids")
    assert layout.mode is Mode.V2
    assert layout.hierarchies() == {"": "/sys/fs/cgroup/unified"}


def test_a_mount_of_a_subdirectory_is_not_a_hierarchy() -> None:
    with pytest.raises(HostError):
        parse_layout(
            "32 31 0:29 /docker/1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n", ""
        )


@pytest.mark.parametrize(
    "path", ["", "/a", "a/", "a//b", "a/../b", ".a", "a/.", "a b", "a\n", "a/" * 8 + "a", "ä"]
)
def test_unsafe_paths_are_refused(path: str) -> None:
    with pytest.raises(SpecError):
        check_path(path)


def test_safe_paths_are_returned() -> None:
    assert check_path("sandboxkernel/1000/ab12cd") == "sandboxkernel/1000/ab12cd"


def test_other_hierarchies_are_those_without_a_directory_of_ours() -> None:
    mountinfo = "\n".join(
        f"{n} 1 0:{n} {root} /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}"
        for n, (name, root) in enumerate(
            [("memory", "/"), ("cpuset", "/"), ("name=systemd", "/"), ("perf_event", "/sub")], 30
        )
    )
    layout = parse_layout(mountinfo, "")
    assert parse_others(mountinfo, layout) == [
        "/sys/fs/cgroup/cpuset",
        "/sys/fs/cgroup/name=systemd",
    ]

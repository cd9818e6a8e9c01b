"""The audit's arithmetic: which of two is the stricter, and what a reason is good for."""

from __future__ import annotations

import copy
import fnmatch
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.audit import compare as module
from tests.audit.compare import HELD_TO, Row, Verdict, compare, rows
from tests.audit.reasons import BESIDE_GVISOR, EXPLAINED
from tests.audit.report import document, page, text_of, unexplained

ROOT = Path(__file__).resolve().parents[2]
PROBE = Path(__file__).resolve().parents[1] / "audit" / "probe.py"
HOST: dict[str, Any] = {
    "namespaces": {"net": "net:[1]", "user": "user:[2]"}, "hostname": "host", "boot_id": "b",
    "cmdline": "quiet", "release": "6", "uptime": 100.0, "init": "systemd", "partitions": ["vda"],
    "memory": "MemTotal: 1", "processor": ["x"], "addresses": ["aa"], "folders": ["/var/lib/docker"],
}  # fmt: skip
REPORT: dict[str, Any] = {
    "status": {"CapInh": "0", "CapPrm": "0", "CapEff": "0", "CapBnd": "0", "CapAmb": "0",
               "NoNewPrivs": "1", "Seccomp": "2", "Securebits": "239"},
    "uid_map": ["0", "100000", "65536"], "ids": [1000, 1000, []],
    "namespaces": {"net": "net:[9]", "user": "user:[8]"},
    "mountinfo": ["1 2 0:1 / / rw,nosuid,nodev - overlay none rw"],
    "rlimits": {name: [0, 0] for name in (*module.RLIMITS, *module.NONE_ALLOWED)},
    "interfaces": ["lo"], "devices": {"/dev/null": "rw"}, "writable": [],
    "proc": {"read": ["/proc/self/stat"], "write": []}, "sys": {"read": [], "write": []},
    "syscalls": {"0": "EBADF", "165": "EPERM", "425": "ENOSYS", "34": "blocked", "5": "SIGSYS"},
    "flags": {"unshare NEWUSER": "EPERM"}, "acts": {"chroot": "EPERM"},
    "sockets": {"UNIX STREAM": "ok", "VSOCK STREAM": "EAFNOSUPPORT"},
    "disclosed": {
        "hostname": "inside", "boot_id": "b", "cmdline": "", "release": "6", "partitions": [],
        "memory": "", "processor": [], "uptime": ["101"], "init": "python", "processes": 2,
        "addresses": [], "kallsyms": False, "swaps": [], "diskstats": 0, "loadavg": [],
        "routes": 0, "cgroup": ["0::/"],
    },
}  # fmt: skip
LIMITS = {"memory, bytes": 1.0, "swap, bytes": 0.0, "processes": 5.0, "processors": 1.0}
NAMES = {0: "read", 165: "mount", 425: "io_uring_setup", 34: "pause", 5: "fstat"}


def ranks(report: dict[str, Any], limits: dict[str, float | None] | None = None) -> dict[str, Row]:
    return rows(report, HOST, LIMITS if limits is None else limits, NAMES)


def test_what_is_refused_has_rank_0_whoever_refuses_it() -> None:
    found = ranks(REPORT)
    assert [found[f"syscall: {n}"].rank for n in ("mount", "io_uring_setup", "fstat")] == [0, 0, 0]
    assert [found[f"syscall: {n}"].rank for n in ("read", "pause")] == [1, 1]


@pytest.mark.parametrize(
    ("path", "value", "row"),
    [
        (("status", "CapBnd"), "2", "capability: CapBnd 1"),
        (("status", "NoNewPrivs"), "0", "privilege: NoNewPrivs"),
        (("status", "Seccomp"), "0", "privilege: Seccomp"),
        (("status", "Securebits"), "-1", "privilege: securebits are locked"),
        (("namespaces", "net"), "net:[1]", "namespace: net"),
        (("syscalls", "165"), "EFAULT", "syscall: mount"),
        (("flags", "unshare NEWUSER"), "ok", "namespace call: unshare NEWUSER"),
        (("acts", "chroot"), "ok", "act: chroot"),
        (("sockets", "VSOCK STREAM"), "ok", "socket: VSOCK STREAM"),
        (("proc", "write"), ["/proc/sysrq-trigger"], "proc: write /proc/sysrq-trigger"),
        (("devices", "/dev/sda"), "r", "device: /dev/sda"),
        (("writable",), ["/usr"], "folder: a file can be made in /usr"),
        (("uid_map",), module.FULL_IDENTITY, "identity: uid on the host"),
        (("ids",), [0, 1000, []], "identity: uid inside is 0"),
        (("mountinfo",), ["1 2 0:1 / / rw,nodev - ext4 x rw"], "mount: honours set-user-id"),
        (("mountinfo",), ["1 2 0:1 / / rw,nosuid,nodev shared:1 - ext4 x rw"],
         "mount: propagates from or to others"),
        *(((("mountinfo",), [f"1 2 0:1 {root} /dev/null rw,nodev,{flag} - {kind} x rw"],
            "mount: a device or mask without nosuid and noexec"))
          for root, flag, kind in (("/zero", "nosuid", "devtmpfs"), ("/null", "nosuid", "tmpfs"))),
        (("mountinfo",), ["1 2 0:1 / / rw,nosuid,nodev - overlay x lowerdir=/var/lib/docker/x"],
         "mount: shows a path of the host"),
        (("rlimits", "RLIMIT_CORE"), [0, -1], "limit: RLIMIT_CORE, hard"),
        (("rlimits", "RLIMIT_NOFILE"), [0, -1], "limit: RLIMIT_NOFILE, hard"),
        (("disclosed", "hostname"), "host", "fact: the host's hostname"),
        (("disclosed", "init"), "systemd", "fact: the host's processes"),
        (("disclosed", "addresses"), ["aa"], "fact: a hardware address of the host's"),
        (("disclosed", "cgroup"), ["0::/system.slice"], "fact: control groups' paths on the host"),
        (("interfaces",), ["eth0", "lo"], "fact: interfaces but lo"),
    ],
)  # fmt: skip
def test_each_thing_that_is_let_through_makes_its_row_looser(
    path: tuple[str, ...], value: Any, row: str
) -> None:
    changed = copy.deepcopy(REPORT)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    verdicts = {
        each.name: each.verdicts["other"]
        for each in compare({"ours": ranks(changed)}, {"other": ranks(REPORT)})
    }
    assert [name for name, verdict in verdicts.items() if verdict is Verdict.LOOSER] == [row]
    assert Verdict.STRICTER not in verdicts.values()


def test_a_limit_that_is_not_set_is_looser() -> None:
    found = compare({"ours": ranks(REPORT, {**LIMITS, "processes": None})}, {"x": ranks(REPORT)})
    assert [row.name for row in found if row.looser] == ["limit: processes"]


def test_ours_counts_by_its_loosest_path() -> None:
    strict, loose = {"a": Row("no", 0)}, {"a": Row("yes", 1)}
    (row,) = compare({"cold": strict, "warm": loose}, {"bwrap": strict})
    assert row.verdicts["bwrap"] is Verdict.LOOSER
    assert row.is_unexplained


def test_a_row_that_one_does_not_have_is_refused_there() -> None:
    (row,) = compare({"cold": {}}, {"bwrap": {"device: /dev/sda": Row("r", 1)}})
    assert row.verdicts["bwrap"] is Verdict.STRICTER


@pytest.mark.parametrize("other", HELD_TO)
def test_only_a_reason_excuses(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, strict = {"cold": {"act: x": Row("ok", 1)}}, {"act: x": Row("EPERM", 0)}
    assert compare(ours, {other: strict})[0].is_unexplained
    assert unexplained(document({}, [], compare(ours, {other: strict}))) == ["act: x"]
    monkeypatch.setattr(module, "EXPLAINED", {"act: x": "needed"})
    assert not compare(ours, {other: strict})[0].is_unexplained


def test_what_excuses_beside_gvisor_excuses_beside_nobody_else() -> None:
    name = "proc: read /proc/kallsyms"
    ours, strict = {"cold": {name: Row("opens", 1)}}, {name: Row("", 0)}
    assert not compare(ours, {"runsc": strict})[0].is_unexplained
    assert compare(ours, {"runsc": strict, "docker": strict})[0].is_unexplained


def test_every_row_of_the_record_that_is_looser_has_its_reason() -> None:
    record = json.loads((ROOT / "docs/benchmarks/audit.json").read_text())
    assert {*HELD_TO} <= {each["name"] for each in record["subjects"] if not each["failure"]}
    assert unexplained(record) == []
    for other, counts in record["counts"].items():
        listed = [row for row in record["rows"].values() if row["verdicts"].get(other) == "looser"]
        assert len(listed) == counts["looser"], other


def test_the_page_is_the_records() -> None:
    text = (ROOT / "docs/benchmarks/audit.json").read_text()
    record = json.loads(text)
    assert text_of(record) == text
    assert page(record) == (ROOT / "docs/audit.md").read_text(), "run make audit"


def test_every_reason_is_of_a_row_that_there_is() -> None:
    record = json.loads((ROOT / "docs/benchmarks/audit.json").read_text())
    for pattern in (*EXPLAINED, *BESIDE_GVISOR):
        assert fnmatch.filter(record["rows"], pattern), pattern


def test_the_page_counts_and_names_what_is_looser() -> None:
    loose = {"act: x": Row("ok", 1), "act: y": Row("EPERM", 0)}
    strict = {"act: x": Row("EPERM", 0), "act: y": Row("ok", 1)}
    compared = compare({"ours, cold": loose}, {"bwrap": strict})
    told = [{"name": "bwrap", "how": "bwrap --x", "failure": ""}]
    record = document({"date": "today"}, told, compared)
    text = page(record)
    assert "| bwrap | 2 | 1 | 0 | 0 | 1 |" in text
    assert "| act: x | ok | bwrap | **unexplained** |" in text
    assert record["rows"]["act: y"]["verdicts"] == {"bwrap": "stricter"}


def test_the_probe_refuses_to_run_outside_a_container() -> None:
    """Not without the name of the host's PID namespace, and not in that namespace."""
    for env in ({}, {"AUDIT_HOST_PIDNS": Path("/proc/self/ns/pid").readlink().name}):
        done = subprocess.run(
            [sys.executable, "-I", str(PROBE)], capture_output=True, text=True, env=env
        )
        assert done.returncode == 1
        assert (done.stdout, "PID namespace" in done.stderr) == ("", True)

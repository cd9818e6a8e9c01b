"""Rows of the audit, and which of two sandboxes is the stricter on each. Pure.

A row is one thing that the inside can or cannot do, with a rank: 0 is the strictest answer, and a
row that a sandbox does not have is one that it does not allow. Ours counts by its loosest path.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tests.audit.reasons import BESIDE_GVISOR, EXPLAINED

__all__ = ["HELD_TO", "Comparison", "Row", "Verdict", "compare", "explain", "rows"]

GVISOR = "runsc"
# A row that is looser than one of these needs its reason.
HELD_TO = ("bwrap", "docker", "docker, hardened", GVISOR)
CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
CAPABILITIES = 41
REFUSED = {"ENOSYS", "EPERM", "SIGSYS"}
FULL_IDENTITY = ["0", "0", "4294967295"]
UPTIME_TOLERANCE_S = 3600.0
UNLIMITED = -1
SECUREBITS = 0x2F  # NOROOT, NO_SETUID_FIXUP, both locked, and KEEP_CAPS locked (capabilities(7))
SAME_AS_HOST = (
    "hostname", "boot_id", "cmdline", "release", "partitions", "memory", "processor",
)  # fmt: skip
# Bounded or not; what else a process may use is the control group's business.
RLIMITS = ("RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE", "RLIMIT_NOFILE", "RLIMIT_SIGPENDING")
NONE_ALLOWED = ("RLIMIT_CORE", "RLIMIT_NICE", "RLIMIT_RTPRIO")


class Verdict(StrEnum):
    """Ours, beside another."""

    STRICTER = "stricter"
    EQUAL = "equal"
    LOOSER = "looser"


@dataclass(frozen=True, slots=True)
class Row:
    """What was found for one thing; `rank` 0 is the strictest."""

    value: str
    rank: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row of ours beside every other sandbox's."""

    name: str
    ours: Mapping[str, Row]
    others: Mapping[str, Row]
    verdicts: Mapping[str, Verdict]

    @property
    def looser(self) -> tuple[str, ...]:
        """The sandboxes that are stricter here."""
        return tuple(name for name, verdict in self.verdicts.items() if verdict is Verdict.LOOSER)

    @property
    def reason(self) -> str:
        """Why ours is looser than those; empty if nobody has said so."""
        return explain(self.name, self.looser)

    @property
    def is_unexplained(self) -> bool:
        """Looser than one of those that ours is held to, and nobody has said why."""
        return not self.reason and any(name in HELD_TO for name in self.looser)


def explain(name: str, looser: Iterable[str]) -> str:
    """Why ours is looser than these on a row; empty if nobody has said so."""
    only_gvisor = set(looser) <= {GVISOR}
    for reasons in (EXPLAINED, BESIDE_GVISOR) if only_gvisor else (EXPLAINED,):
        for pattern, reason in reasons.items():
            if fnmatch.fnmatchcase(name, pattern):
                return reason
    return ""


def compare(
    ours: Mapping[str, Mapping[str, Row]], others: Mapping[str, Mapping[str, Row]]
) -> list[Comparison]:
    """Every row that any sandbox has, in the order of their names."""
    absent = Row("", 0)
    names = {name for found in (*ours.values(), *others.values()) for name in found}
    result = []
    for name in sorted(names):
        mine = {subject: found.get(name, absent) for subject, found in ours.items()}
        theirs = {subject: found.get(name, absent) for subject, found in others.items()}
        loosest = max(row.rank for row in mine.values())
        verdicts = {subject: _verdict(loosest, row.rank) for subject, row in theirs.items()}
        result.append(Comparison(name, mine, theirs, verdicts))
    return result


def _verdict(ours: float, theirs: float) -> Verdict:
    if ours == theirs:
        return Verdict.EQUAL
    return Verdict.STRICTER if ours < theirs else Verdict.LOOSER


def rows(
    report: Mapping[str, Any],
    host: Mapping[str, Any],
    limits: Mapping[str, float | None],
    syscall_names: Mapping[int, str],
) -> dict[str, Row]:
    """The rows of one probe's report; `host` are the same facts of the host."""
    found: dict[str, Row] = {}
    for number, verdict in report["syscalls"].items():
        name = syscall_names.get(int(number), number)
        found[f"syscall: {name}"] = Row(verdict, 0 if verdict in REFUSED else 1)
    for group, key in (("namespace call", "flags"), ("act", "acts"), ("socket", "sockets")):
        for name, verdict in report[key].items():
            found[f"{group}: {name}"] = Row(verdict, int(verdict in ("ok", "blocked")))
    for tree in ("proc", "sys"):
        for mode in ("read", "write"):
            for path in report[tree][mode]:
                found[f"{tree}: {mode} {path}"] = Row("opens", 1)
    for path, how in report["devices"].items():
        found[f"device: {path}"] = Row(how, len(how))
    for path in report["writable"]:
        found[f"folder: a file can be made in {path}"] = Row("yes", 1)
    found |= _privileges(report)
    found |= _namespaces(report, host)
    found |= _mounts(report["mountinfo"], host["folders"])
    found |= _limits(report["rlimits"], limits)
    found |= _facts(report, host)
    return found


def _privileges(report: Mapping[str, Any]) -> dict[str, Row]:
    status = report["status"]
    found = {}
    for name in CAPABILITY_SETS:
        bits = int(status.get(name, "0"), 16)
        for number in range(CAPABILITIES):
            has = bits >> number & 1
            found[f"capability: {name} {number}"] = Row("yes" if has else "no", has)
    for name, strict in (("NoNewPrivs", "1"), ("Seccomp", "2")):
        value = status.get(name, "not shown")
        found[f"privilege: {name}"] = Row(value, int(value != strict))
    bits = int(status["Securebits"])  # -1 where there is no such call
    locked = bits > 0 and bits & SECUREBITS == SECUREBITS
    found["privilege: securebits are locked"] = Row(status["Securebits"], int(not locked))
    uid, gid, groups = report["ids"]
    found["identity: uid inside is 0"] = Row(str(uid), int(uid == 0))
    found["identity: gid or a group inside is 0"] = Row(
        f"{gid} {groups}", int(gid == 0 or 0 in groups)
    )
    identity = report["uid_map"] == FULL_IDENTITY
    owner = f"the host's {uid}" if identity else "of a user namespace"
    found["identity: uid on the host"] = Row(owner, (2 if uid == 0 else 1) if identity else 0)
    return found


def _namespaces(report: Mapping[str, Any], host: Mapping[str, Any]) -> dict[str, Row]:
    found = {}
    for name, value in report["namespaces"].items():
        shared = value == host["namespaces"].get(name)
        found[f"namespace: {name}"] = Row("the host's" if shared else "its own", int(shared))
    return found


def _mounts(lines: Sequence[str], folders: Iterable[str]) -> dict[str, Row]:
    """Counts over /proc/self/mountinfo (proc_pid_mountinfo(5)), by what a mount permits."""
    suid, devices, bare, propagate, host_paths = [], [], [], [], []
    for line in lines:
        fields, _, rest = line.partition(" - ")
        parts = fields.split()
        point, options, optional = parts[4], parts[5].split(","), parts[6:]
        if "ro" in options and rest.startswith("tmpfs ") and point.startswith("/proc/"):
            continue  # a mask: nothing is in it, and nothing ever will be
        if "nosuid" not in options and rest.split()[0] != "devtmpfs":
            suid.append(point)
        if "nodev" not in options and rest.split()[0] not in ("devtmpfs", "devpts"):
            devices.append(point)
        of_devices = rest.split()[0] == "devtmpfs" or parts[3] == "/null"
        if of_devices and not {"nosuid", "noexec"} <= set(options):
            bare.append(point)
        if any(tag.startswith(("shared:", "master:")) for tag in optional):
            propagate.append(point)
        if any(folder in f"{parts[3]} {rest}" for folder in folders):
            host_paths.append(point)
    return {
        f"mount: {name}": Row(str(len(points)), int(bool(points)))
        for name, points in (
            ("honours set-user-id", suid), ("honours device nodes, /dev apart", [
                point for point in devices if point != "/dev"]),
            ("a device or mask without nosuid and noexec", bare),
            ("propagates from or to others", propagate), ("shows a path of the host", host_paths),
        )
    }  # fmt: skip


def _limits(
    rlimits: Mapping[str, Sequence[int]], limits: Mapping[str, float | None]
) -> dict[str, Row]:
    found = {}
    for name in (*RLIMITS, *NONE_ALLOWED):
        hard = rlimits[name][1]
        loose = hard != 0 if name in NONE_ALLOWED else hard == UNLIMITED
        found[f"limit: {name}, hard"] = Row("none" if hard == UNLIMITED else str(hard), int(loose))
    for name in ("memory, bytes", "swap, bytes", "processes", "processors"):
        value = limits.get(name)
        found[f"limit: {name}"] = Row("none" if value is None else f"{value:g}", int(value is None))
    return found


def _facts(report: Mapping[str, Any], host: Mapping[str, Any]) -> dict[str, Row]:
    shown = report["disclosed"]
    found = {}
    for name in SAME_AS_HOST:
        same = bool(shown[name]) and shown[name] == host[name]
        found[f"fact: the host's {name}"] = Row("shown" if same else "not shown", int(same))
    uptime = float(shown["uptime"][0]) if shown["uptime"] else 0.0
    same = bool(uptime) and abs(uptime - host["uptime"]) < UPTIME_TOLERANCE_S
    found["fact: the host's uptime"] = Row("shown" if same else "not shown", int(same))
    same = shown["init"] == host["init"]
    found["fact: the host's processes"] = Row(f"{shown['processes']} seen", int(same))
    mac = set(shown["addresses"]) & set(host["addresses"])
    found["fact: a hardware address of the host's"] = Row(str(len(mac)), int(bool(mac)))
    for name in ("kallsyms", "swaps", "diskstats", "loadavg", "routes"):
        there = bool(shown[name])
        found[f"fact: {name}"] = Row("shown" if there else "not shown", int(there))
    paths = [line for line in shown["cgroup"] if line.rpartition(":")[2] != "/"]
    found["fact: control groups' paths on the host"] = Row(str(len(paths)), int(bool(paths)))
    others = [name for name in report["interfaces"] if name != "lo"]
    found["fact: interfaces but lo"] = Row(str(len(others)), int(bool(others)))
    return found

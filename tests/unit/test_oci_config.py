"""The config.json for other runtimes. tests/integration/test_executors.py holds it to the schema."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from sandboxruntime import seccomp
from sandboxruntime.cgroup import IoLimit, Limits
from sandboxruntime.oci_config import oci_config, oci_seccomp
from sandboxruntime.spec import (
    Bind,
    Credentials,
    Executor,
    IdMapping,
    Process,
    Rootfs,
    Spec,
)
from sandboxruntime.syscall_numbers import NUMBERS
from tests.unit.bpf_simulator import X86_64, simulate

GOLDEN = Path(__file__).parent / "golden" / "oci-config.json"
MACHINE = "x86_64"
SPEC = Spec(
    container_id="0123456789ab",
    hostname="0123456789ab",
    rootfs=Rootfs(lower=("/l",), upper="/u", work="/w"),
    process=Process(uid=1000, gid=1000),
    uid_mappings=(IdMapping(0, 0x70010000, 65536),),
    gid_mappings=(IdMapping(0, 0x70010000, 65536),),
    cgroups_path="sandboxkernel/1000/0123456789ab",
    limits=Limits(
        memory_bytes=1 << 30, cpu_quota_us=50_000, cpu_weight=100, pids=128,
        io=(IoLimit(8, 0, write_bytes_per_s=4 << 20),),
    ),
    binds=(
        Bind("/home/ada", "/home/ada", Credentials(1000, 1000), masked=(".ssh",)),
        Bind("/usr/lib/sandboxruntime", "/opt/sandboxkernel/sandboxruntime", Credentials(0, 0),
             read_only=True),
    ),
    executor=Executor("runc", "/usr/bin/python3", "/opt/sandboxkernel"),
)  # fmt: skip


def config() -> dict[str, Any]:
    return oci_config(
        SPEC, rootfs="/b/0", binds=["/b/1", "/b/2"], args=["true"], env={"A": "b"},
        rlimits={"RLIMIT_CORE": (0, 0)}, machine=MACHINE,
    )  # fmt: skip


def test_the_config_is_the_golden_one() -> None:
    text = json.dumps(config(), indent=1) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert GOLDEN.read_text() == text


def test_every_namespace_is_private_and_nothing_is_kept() -> None:
    linux, process = config()["linux"], config()["process"]
    kinds = {"pid", "network", "ipc", "uts", "mount", "user", "cgroup"}
    assert {n["type"] for n in linux["namespaces"]} == kinds
    assert not any("path" in n for n in linux["namespaces"])
    assert all(names == [] for names in process["capabilities"].values())
    assert process["noNewPrivileges"] is True
    assert "/home/ada/.ssh" in linux["maskedPaths"]


def oci_answer(rules: dict[str, Any], call: str, args: tuple[int, ...]) -> str:
    """What libseccomp answers: any rule whose tests hold, else the default."""
    answers = {
        rule["action"]
        for rule in rules["syscalls"]
        if call in rule["names"]
        and all(args[t["index"]] & t["value"] == t["valueTwo"] for t in rule.get("args", ()))
    }
    assert len(answers) <= 1, (call, args, answers)  # libseccomp takes no contradiction
    return answers.pop() if answers else rules["defaultAction"]


SAMPLED = random.Random(0)
INTERESTING = (0, 1, 2, 3, 5, 6, 10, 15, 16, 17, 35, 38, 40, 0o6000, 0o755, 0o100, 0o4755, 0x5412,
               0x5401, 0x7E020000, 0x10000000, 0x01200011, 0xFFFFFFFF, 1 << 32)  # fmt: skip


@pytest.mark.parametrize("name", ["notebook", "zygote"])
def test_what_the_profile_allows_is_allowed(name: str) -> None:
    profile = seccomp.load_profile(name)
    rules = oci_seccomp(profile, MACHINE)
    program = seccomp.compile_filter(profile, MACHINE)
    samples = [tuple(SAMPLED.choices(INTERESTING, k=6)) for _ in range(500)]
    narrowed = 0
    for call, number in NUMBERS[MACHINE].items():
        for args in samples:
            exact = str(simulate(program, number, args, arch=X86_64))
            found = oci_answer(rules, call, args)
            if exact == "allow":
                assert found == "SCMP_ACT_ALLOW", (call, args)
            narrowed += found != "SCMP_ACT_ALLOW"
            if len(profile.calls.get(call, ())) < 2:
                break  # no argument matters
    assert narrowed > len(samples)  # of calls that are allowed with other arguments, too


@pytest.mark.parametrize(
    ("call", "args"),
    [
        ("mount", ()), ("ptrace", ()), ("bpf", ()), ("unshare", ()), ("keyctl", ()),
        ("clone", (0x10000000,)),  # CLONE_NEWUSER
        ("socket", (17, 3, 0)),  # AF_PACKET
        ("socket", (1, 3, 0)),  # AF_UNIX, SOCK_RAW
        ("chmod", (0, 0o4755)),
        ("personality", (0x0400000,)),
    ],
)  # fmt: skip
def test_what_matters_is_refused_by_it_alone(call: str, args: tuple[int, ...]) -> None:
    rules = oci_seccomp(seccomp.load_profile("notebook"), MACHINE)
    assert oci_answer(rules, call, (*args, *[0] * (6 - len(args)))) == "SCMP_ACT_ERRNO"

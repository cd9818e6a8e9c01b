"""`linux.seccomp` of OCI as BPF, against an evaluator written from the specification."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest

from sandboxruntime.bundles.filters import OPERATORS, compile_oci_filter
from sandboxruntime.errors import SpecError
from sandboxruntime.syscall_numbers import NUMBERS
from tests.unit.bpf_simulator import AARCH64, I386, X86_64, simulate

MACHINE = "x86_64"
VALUES = (
    0,
    1,
    2,
    5,
    0xFFFFFFFF,
    1 << 32,
    (1 << 32) + 5,
    (5 << 32) + 2,
    (1 << 64) - 1,
    0x7F00000000,
)


def answer_of(data: dict[str, Any], call: str, args: tuple[int, ...]) -> str:
    """First what has tests, then what has none, then the default: as seccomp_rule_add(3)."""
    named = [entry for entry in data["syscalls"] if call in entry["names"]]
    for entry in sorted(named, key=lambda entry: not entry.get("args")):
        if all(holds(test, args[test["index"]]) for test in entry.get("args", ())):
            return word(entry)
    return word({"action": data["defaultAction"], "errnoRet": data.get("defaultErrnoRet")})


def holds(test: dict[str, Any], arg: int) -> bool:
    value = test["value"]
    match test["op"].removeprefix("SCMP_CMP_"):
        case "EQ":
            return arg == value
        case "NE":
            return arg != value
        case "LT":
            return arg < value
        case "LE":
            return arg <= value
        case "GT":
            return arg > value
        case "GE":
            return arg >= value
        case _:
            return arg & value == test["valueTwo"]


def word(entry: dict[str, Any]) -> str:
    if entry["action"] == "SCMP_ACT_ERRNO":
        number = entry.get("errnoRet")
        return errno.errorcode[errno.EPERM if number is None else number]
    return {"SCMP_ACT_ALLOW": "allow", "SCMP_ACT_KILL_PROCESS": "kill"}[entry["action"]]


@pytest.mark.parametrize("seed", range(30))
def test_every_operator_compares_64_bits(seed: int) -> None:
    chance = random.Random(seed)

    def test() -> dict[str, Any]:
        return {"index": chance.randrange(6), "op": f"SCMP_CMP_{chance.choice(OPERATORS)}",
                "value": chance.choice(VALUES), "valueTwo": chance.choice(VALUES)}  # fmt: skip

    def tests() -> list[dict[str, Any]]:
        found = {t["index"]: t for t in (test() for _ in range(chance.randrange(4)))}
        return list(found.values())

    actions = ("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS")
    data: dict[str, Any] = {
        "defaultAction": chance.choice(actions),
        "syscalls": [
            {"names": chance.sample(["read", "ioctl", "socket"], 2), "args": tests(),
             "action": chance.choice(actions), "errnoRet": chance.choice([None, 38, 61])}
            for _ in range(5)
        ],
    }  # fmt: skip
    program = compile_oci_filter(data, MACHINE)
    for _ in range(2000):
        call = chance.choice(["read", "ioctl", "socket", "getpid"])
        args = tuple(chance.choice(VALUES) + chance.choice((0, 0, 1)) for _ in range(6))
        args = tuple(arg & (1 << 64) - 1 for arg in args)
        found = str(simulate(program, NUMBERS[MACHINE][call], args, arch=X86_64))
        assert found == answer_of(data, call, args), (data, call, args)


def allow_all() -> dict[str, Any]:
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["bpf"], "action": "SCMP_ACT_ERRNO"}],
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]}  # fmt: skip


def test_other_gates_are_closed_whatever_the_config_says() -> None:
    """Its rules are of this machine's numbers: through another gate they would mean other calls."""
    program = compile_oci_filter(allow_all(), MACHINE)
    number = NUMBERS[MACHINE]["bpf"]
    assert str(simulate(program, number, arch=X86_64)) == "EPERM"
    assert str(simulate(program, number | 0x40000000, arch=X86_64)) == "ENOSYS"
    assert str(simulate(program, 20, arch=I386)) == "kill"
    assert str(simulate(program, 20, arch=AARCH64)) == "kill"


def test_two_tests_of_one_argument_are_alternatives() -> None:
    """As runc has it, since libseccomp takes one test an argument (config-linux.md)."""
    data = allow_all()
    data["syscalls"] = [
        {"names": ["read"], "action": "SCMP_ACT_ERRNO",
         "args": [{"index": 0, "op": "SCMP_CMP_EQ", "value": value} for value in (3, 4)]}
    ]  # fmt: skip
    program = compile_oci_filter(data, MACHINE)
    found = [str(simulate(program, NUMBERS[MACHINE]["read"], (n,))) for n in (2, 3, 4)]
    assert found == ["allow", "EPERM", "EPERM"]


@pytest.mark.parametrize(
    "change",
    [
        {"defaultAction": None},
        {"defaultAction": "SCMP_ACT_NOTIFY"},
        {"listenerPath": "/x"},
        {"flags": ["SECCOMP_FILTER_FLAG_LOG"]},
        {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000},
        {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW",
                       "args": [{"index": 6, "op": "SCMP_CMP_EQ", "value": 1}]}]},
        {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW",
                       "args": [{"index": 0, "op": "EQUAL", "value": 1}]}]},
        {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW",
                       "args": [{"index": 0, "op": "SCMP_CMP_EQ", "value": -1}]}]},
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        compile_oci_filter(allow_all() | change, MACHINE)

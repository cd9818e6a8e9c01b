"""`linux.seccomp` of an OCI config as a BPF program. Pure.

Meaning as libseccomp gives it: rules of one call are alternatives, tests of one rule hold
together, arguments have 64 bits. A rule without tests answers what none of the call's other rules
do; what no rule names gets the default. Calls through another architecture's gate are killed, and
x32 calls do not exist, whatever `architectures` says: narrower, never wider.
Sources: config-linux.md, Seccomp; seccomp(2); seccomp_rule_add(3).
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sandboxruntime.errors import HostError, SpecError
from sandboxruntime.seccomp import Code, assemble, program_of
from sandboxruntime.syscall_numbers import NUMBERS

__all__ = ["ACTIONS", "OPERATORS", "FilterRule", "Test", "compile_oci_filter", "parse_filter"]

# include/uapi/linux/seccomp.h
ACTIONS: Final = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_WITH_DATA: Final = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
OPERATORS: Final = ("EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ")
_U32: Final = 0xFFFFFFFF
_U64: Final = (1 << 64) - 1
_OFFSET_ARGS: Final = 16
# linux/bpf_common.h, as in seccomp.py
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP_EQUAL, _JUMP_GREATER, _JUMP_GREATER_EQUAL = 0x15, 0x25, 0x35


@dataclass(frozen=True, slots=True)
class Test:
    """One test of an argument: `argument & mask OPERATOR value`."""

    arg: int
    operator: str
    value: int
    mask: int = _U64


@dataclass(frozen=True, slots=True)
class FilterRule:
    """An answer (SECCOMP_RET_*) for when every test holds."""

    action: int
    tests: tuple[Test, ...] = ()


def parse_filter(data: Mapping[str, Any]) -> tuple[int, dict[str, list[FilterRule]]]:
    """The default answer, and rules by call. Raises SpecError.

    Unknown calls are left out, as libseccomp does: profiles name those of every Linux and machine.
    """
    for name in ("listenerPath", "listenerMetadata"):
        if data.get(name):
            raise _bad(f"{name} is more than this runtime can do")
    flags = [name for name in _list(data, "flags") if name != "SECCOMP_FILTER_FLAG_TSYNC"]
    if flags:
        raise _bad(f"flags {flags} are more than this runtime can do")
    known = set().union(*NUMBERS.values())
    default = _action(data.get("defaultAction"), data.get("defaultErrnoRet"))
    calls: dict[str, list[FilterRule]] = {}
    for entry in _list(data, "syscalls", dict):
        action = _action(entry.get("action"), entry.get("errnoRet"))
        tests = [_test(item) for item in _list(entry, "args", dict)]
        names = _list(entry, "names", str)
        for rule in _rules(action, tests):
            for call in names:
                if call in known:
                    calls.setdefault(call, []).append(rule)
    return default, calls


def _rules(action: int, tests: Sequence[Test]) -> list[FilterRule]:
    # Two tests of one argument cannot be one rule of libseccomp: runtimes make them alternatives.
    if len({test.arg for test in tests}) == len(tests):
        return [FilterRule(action, tuple(tests))]
    return [FilterRule(action, (test,)) for test in tests]


def _list(data: Mapping[str, Any], name: str, kind: type = object) -> list[Any]:
    """A member that is an array of `kind`; null, as Go writes an empty one, counts as empty."""
    found = data.get(name)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(item, kind) for item in found):
        raise _bad(f"{name} is not an array of what it should hold")
    return found


def _bad(message: str) -> SpecError:
    return SpecError(f"linux.seccomp: {message}", field="linux.seccomp")


def _action(name: Any, data: Any) -> int:
    if not isinstance(name, str) or name not in ACTIONS:
        raise _bad(f"action {name!r} is none that this runtime knows")
    if name not in _WITH_DATA:
        return ACTIONS[name]
    number = errno.EPERM if data is None else data
    if not isinstance(number, int) or not 0 <= number <= 4095:
        raise _bad(f"errnoRet is {number!r}, not 0 to 4095")
    return ACTIONS[name] | number


def _test(item: Mapping[str, Any]) -> Test:
    operator = str(item.get("op", "")).removeprefix("SCMP_CMP_")
    arg, value = item.get("index", 0), item.get("value", 0)
    if operator not in OPERATORS:
        raise _bad(f"operator {item.get('op')!r} is none that this runtime knows")
    numbers = (value, item.get("valueTwo", 0))
    if not isinstance(arg, int) or not 0 <= arg < 6:
        raise _bad(f"argument {arg!r} is not 0 to 5")
    if not all(isinstance(n, int) and 0 <= n <= _U64 for n in numbers):
        raise _bad(f"{numbers} are not numbers of 64 bits")
    if operator == "MASKED_EQ":  # libseccomp: the mask first, then the datum
        return Test(arg, operator, numbers[1], mask=numbers[0])
    return Test(arg, operator, value)


def compile_oci_filter(data: Mapping[str, Any], machine: str) -> bytes:
    """The program for `machine` (uname(2)), for seccomp.install(). Raises SpecError, HostError."""
    default, calls = parse_filter(data)
    if machine not in NUMBERS:
        raise HostError(f"no system call numbers for machine {machine!r}", feature="seccomp")
    numbers = NUMBERS[machine]
    answers = {
        numbers[call]: tuple(_answer(rules, default))
        for call, rules in calls.items()
        if call in numbers
    }
    fallback = ((_RETURN, 0, 0, default),)
    return assemble(program_of(answers, fallback, machine, x32=(_RETURN, 0, 0, _no_such_call())))


def _no_such_call() -> int:
    return ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS


def _answer(rules: Sequence[FilterRule], default: int) -> Code:
    code: Code = []
    for rule in sorted(rules, key=lambda rule: not rule.tests):  # those with tests come first
        block: Code = [(_RETURN, 0, 0, rule.action)]
        for test in reversed(rule.tests):
            block = [*_compare(test, len(block)), *block]
        code += block
    if all(rule.tests for rule in rules):
        code.append((_RETURN, 0, 0, default))
    return code


def _compare(test: Test, skip: int) -> Code:
    """Fall through if the test holds, else jump over the `skip` instructions after it.

    64 bits in two halves, the high one first; struct seccomp_data is little-endian.
    """
    low, high = test.value & _U32, test.value >> 32
    mask_low, mask_high = test.mask & _U32, test.mask >> 32
    offset = _OFFSET_ARGS + 8 * test.arg
    first = [(_LOAD, 0, 0, offset + 4), *([(_AND, 0, 0, mask_high)] if mask_high != _U32 else [])]
    second = [(_LOAD, 0, 0, offset), *([(_AND, 0, 0, mask_low)] if mask_low != _U32 else [])]
    n = len(second)  # between the tests of the halves
    fail = n + 1 + skip  # from behind the high half's last test to behind the block
    match test.operator:
        case "EQ" | "MASKED_EQ":
            return [*first, (_JUMP_EQUAL, 0, fail, high), *second, (_JUMP_EQUAL, 0, skip, low)]
        case "NE":
            return [*first, (_JUMP_EQUAL, 0, n + 1, high), *second, (_JUMP_EQUAL, skip, 0, low)]
        case "GT" | "GE":
            last = _JUMP_GREATER if test.operator == "GT" else _JUMP_GREATER_EQUAL
            return [*first, (_JUMP_GREATER, n + 2, 0, high), (_JUMP_EQUAL, 0, fail, high),
                    *second, (last, 0, skip, low)]  # fmt: skip
        case _:  # LT is not GE, LE is not GT
            last = _JUMP_GREATER_EQUAL if test.operator == "LT" else _JUMP_GREATER
            return [*first, (_JUMP_GREATER, fail + 1, 0, high), (_JUMP_EQUAL, 0, n + 1, high),
                    *second, (last, skip, 0, low)]  # fmt: skip

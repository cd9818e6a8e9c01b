"""System call filters: profile -> BPF program (pure), and its installation.

A profile is a TOML file beside this package; parse_profile() checks it once and nobody checks
again. The program is a binary search over call numbers whose leaves are answers or short
argument tests. Linux evaluates the number-only leaves once, at installation, and never runs the
filter for calls that are always allowed (seccomp_cache_prepare, Linux 5.11).
Sources: seccomp(2); Linux, include/uapi/linux/{seccomp,filter,bpf_common,audit}.h.
"""

from __future__ import annotations

import errno
import functools
import struct
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any, Final

from sandboxruntime import syscalls
from sandboxruntime.errors import HostError, SpecError
from sandboxruntime.syscall_numbers import NUMBERS

__all__ = [
    "AUDIT_ARCH",
    "Code",
    "Condition",
    "Instruction",
    "Profile",
    "Rule",
    "assemble",
    "compile_filter",
    "install",
    "load_profile",
    "parse_profile",
    "program_of",
]

# EM_X86_64 and EM_AARCH64, each with __AUDIT_ARCH_64BIT | __AUDIT_ARCH_LE.
AUDIT_ARCH: Final = MappingProxyType({"x86_64": 0xC000003E, "aarch64": 0xC00000B7})

_RET_KILL_PROCESS: Final = 0x80000000
_RET_ERRNO: Final = 0x00050000
_RET_ALLOW: Final = 0x7FFF0000

# struct sock_filter { __u16 code; __u8 jt; __u8 jf; __u32 k; }
_INSTRUCTION: Final = struct.Struct("<HBBI")
_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_JUMP: Final = 0x05  # BPF_JMP | BPF_JA
_JUMP_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_GREATER_EQUAL: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_JUMP_BITS: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

# struct seccomp_data { int nr; __u32 arch; __u64 instruction_pointer; __u64 args[6]; }
_OFFSET_NUMBER: Final = 0
_OFFSET_ARCH: Final = 4
_OFFSET_ARGS: Final = 16
_MAX_ARGS: Final = 6

_MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS
_MAX_SHORT_JUMP: Final = 255  # jt and jf are 8 bits wide
_FLAG_TSYNC: Final = 1  # SECCOMP_FILTER_FLAG_TSYNC
_U32: Final = 0xFFFFFFFF
_X32_BIT: Final = 0x40000000  # arch/x86/include/uapi/asm/unistd.h, __X32_SYSCALL_BIT

Instruction = tuple[int, int, int, int]
Code = list[Instruction]


@dataclass(frozen=True, slots=True)
class Condition:
    """A test of one argument's low 32 bits: `arg & mask` is in `values`, or shares `any_bits`."""

    arg: int
    mask: int = _U32
    values: tuple[int, ...] = ()
    any_bits: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """An answer for when every condition holds; `action` is a SECCOMP_RET_* value."""

    action: int
    when: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """For each call, by name, its rules in order; the last one is unconditional."""

    name: str
    default: int
    calls: Mapping[str, tuple[Rule, ...]]


def load_profile(name: str = "notebook") -> Profile:
    """Read a profile of this package. Raises SpecError if there is none of that name."""
    file = resources.files("sandboxruntime") / "profiles" / f"{name}.toml"
    if not name.isidentifier() or not file.is_file():
        raise SpecError(f"no seccomp profile {name!r}", field="linux.seccomp")
    return parse_profile(file.read_text(encoding="utf-8"))


def parse_profile(text: str) -> Profile:
    """Parse and check a profile.

    A profile that `extends` another answers every call that it does not name as that one does.
    Raises SpecError for unknown calls, keys or errno names, for a call that is answered twice,
    and for argument rules without an unconditional last one.
    """
    try:
        table = tomllib.loads(text)
        return _parse_table(table)
    except tomllib.TOMLDecodeError as exc:
        raise _bad(str(exc)) from exc
    except (KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise _bad(f"a member is missing or of another type: {exc}") from exc


def _parse_table(table: Mapping[str, Any]) -> Profile:
    _only(table, {"name", "extends", "default", "allow", "eperm", "enosys", "rule"})
    calls: dict[str, tuple[Rule, ...]] = {}
    for key, action in (("allow", "allow"), ("eperm", "EPERM"), ("enosys", "ENOSYS")):
        for call in table.get(key, []):
            if call in calls:
                raise _bad(f"{call} is listed twice")
            calls[call] = (Rule(_action(action)),)
    listed = set(calls)
    for entry in table.get("rule", []):
        _only(entry, {"calls", "when", "then"})
        rule = Rule(_action(entry["then"]), tuple(map(_condition, entry.get("when", []))))
        for call in entry["calls"]:
            if call in listed or (call in calls and not calls[call][-1].when):
                raise _bad(f"a rule for {call} can never match")
            calls[call] = (*calls.get(call, ()), rule)
    known = set().union(*NUMBERS.values())
    if unknown := sorted(set(calls) - known):
        raise _bad(f"unknown system calls {', '.join(unknown)}")
    if unfinished := sorted(call for call, rules in calls.items() if rules[-1].when):
        raise _bad(f"no unconditional last rule for {', '.join(unfinished)}")
    if "extends" not in table:
        return Profile(table["name"], _action(table["default"]), MappingProxyType(calls))
    base = load_profile(table["extends"])
    return Profile(table["name"], base.default, MappingProxyType({**base.calls, **calls}))


def _bad(message: str) -> SpecError:
    return SpecError(f"bad seccomp profile: {message}", field="linux.seccomp")


def _only(table: Mapping[str, Any], keys: set[str]) -> None:
    if unknown := sorted(set(table) - keys):
        raise _bad(f"unknown key {unknown[0]!r}")


def _action(word: str) -> int:
    if word == "allow":
        return _RET_ALLOW
    if word == "kill":
        return _RET_KILL_PROCESS
    number = getattr(errno, word, None)
    if not isinstance(number, int):
        raise _bad(f"unknown answer {word!r}")
    return _RET_ERRNO | number


def _condition(entry: Mapping[str, Any]) -> Condition:
    _only(entry, {"arg", "mask", "equal", "in", "any_bits"})
    tests = [key for key in ("equal", "in", "any_bits") if key in entry]
    if len(tests) != 1:
        raise _bad(f"a condition needs exactly one of equal, in, any_bits: {dict(entry)}")
    values = (entry["equal"],) if "equal" in entry else tuple(entry.get("in", ()))
    condition = Condition(entry["arg"], entry.get("mask", _U32), values, entry.get("any_bits", 0))
    numbers = (condition.mask, condition.any_bits, *values)
    if not 0 <= condition.arg < _MAX_ARGS or not all(0 <= n <= _U32 for n in numbers):
        raise _bad(f"a number is out of range: {dict(entry)}")
    if not values and not condition.any_bits:
        raise _bad(f"a condition that nothing can meet: {dict(entry)}")
    return condition


@functools.lru_cache(maxsize=8)
def _compile(name: str, default: int, calls: tuple[Any, ...], machine: str) -> bytes:
    return assemble(_program(default, dict(calls), machine))


def compile_filter(profile: Profile, machine: str) -> bytes:
    """Return the profile as an array of struct sock_filter for `machine` (uname(2)). Cached.

    Calls that the machine does not have are left out. Raises HostError for an unknown machine.
    """
    if machine not in AUDIT_ARCH:
        raise HostError(
            f"no system call numbers for machine {machine!r}",
            feature="seccomp",
            hint=f"supported machines: {', '.join(sorted(AUDIT_ARCH))}",
        )
    return _compile(profile.name, profile.default, tuple(profile.calls.items()), machine)


def _program(default: int, calls: Mapping[str, tuple[Rule, ...]], machine: str) -> Code:
    numbers = NUMBERS[machine]
    answers = {
        numbers[call]: tuple(_answer(rules)) for call, rules in calls.items() if call in numbers
    }
    # Numbers above the last known one, where x86's x32 calls are, too, get the default.
    return program_of(answers, tuple(_answer((Rule(default),))), machine)


def program_of(
    answers: Mapping[int, tuple[Instruction, ...]],
    fallback: tuple[Instruction, ...],
    machine: str,
    *,
    x32: Instruction | None = None,
) -> Code:
    """A search over call numbers whose leaves are `answers`, each of which returns. Pure.

    Numbers without one get the `fallback`; `x32` is what numbers with bit 30 get, if not that.
    """
    # Each leaf answers the numbers from its start to the next leaf's.
    leaves: list[tuple[int, tuple[Instruction, ...]]] = [(0, answers.get(0, fallback))]
    for number in range(1, max(answers, default=0) + 2):
        code = answers.get(number, fallback)
        if code != leaves[-1][1]:
            leaves.append((number, code))
    if x32 is not None:
        leaves.append((_X32_BIT, (x32,)))
    return [
        (_LOAD, 0, 0, _OFFSET_ARCH),
        # Another architecture's numbers mean other calls: int 0x80 must not get around us.
        (_JUMP_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _RET_KILL_PROCESS),
        (_LOAD, 0, 0, _OFFSET_NUMBER),
        *_search(leaves),
    ]


def _search(leaves: Sequence[tuple[int, tuple[Instruction, ...]]]) -> Code:
    if len(leaves) == 1:
        return [*leaves[0][1]]
    middle = len(leaves) // 2
    below, above = _search(leaves[:middle]), _search(leaves[middle:])
    pivot = leaves[middle][0]
    if len(below) <= _MAX_SHORT_JUMP:
        return [(_JUMP_GREATER_EQUAL, len(below), 0, pivot), *below, *above]
    return [
        (_JUMP_GREATER_EQUAL, 0, 1, pivot),
        (_JUMP, 0, 0, len(below)),
        *below,
        *above,
    ]


def _answer(rules: Sequence[Rule]) -> Code:
    code: Code = []
    for rule in rules:
        code += _rule(rule)
    return code


def _rule(rule: Rule) -> Code:
    code: Code = [(_RETURN, 0, 0, rule.action)]
    for condition in reversed(rule.when):
        code = [*_test(condition, len(code)), *code]
    return code


def _test(condition: Condition, skip: int) -> Code:
    """Fall through if the condition holds, else jump over the `skip` instructions after it."""
    # Little-endian: the low half of an argument comes first.
    code: Code = [(_LOAD, 0, 0, _OFFSET_ARGS + 8 * condition.arg)]
    if condition.mask != _U32:
        code.append((_AND, 0, 0, condition.mask))
    if condition.any_bits:
        return [*code, (_JUMP_BITS, 0, _short(skip), condition.any_bits)]
    last = len(condition.values) - 1
    for index, value in enumerate(condition.values):
        code.append(
            (_JUMP_EQUAL, _short(last - index), _short(skip) if index == last else 0, value)
        )
    return code


def _short(length: int) -> int:
    if length > _MAX_SHORT_JUMP:
        raise _bad("a rule is too long")
    return length


def assemble(code: Code) -> bytes:
    """An array of struct sock_filter. Raises SpecError for a program that Linux refuses."""
    for _, jump_true, jump_false, _ in code:
        if max(jump_true, jump_false) > _MAX_SHORT_JUMP:
            raise _bad("a rule is too long")
    if len(code) > _MAX_INSTRUCTIONS:
        raise _bad(f"{len(code)} instructions; Linux takes {_MAX_INSTRUCTIONS}")
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)


def install(program: bytes) -> None:
    """Install a compiled filter on every thread of this process, for good.

    Needs no_new_privs or CAP_SYS_ADMIN. Raises OSError; ESRCH if a thread could not be
    synchronised (it has a filter that this process does not have).
    """
    thread = syscalls.seccomp_set_mode_filter(program, _FLAG_TSYNC)
    if thread:
        # With TSYNC a positive result is the thread that refused, and nothing was installed.
        raise ProcessLookupError(errno.ESRCH, f"seccomp: thread {thread} was not synchronised")

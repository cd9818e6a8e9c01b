from __future__ import annotations

import struct
import tomllib
from importlib import resources
from typing import Any

import pytest

from sandboxruntime.errors import HostError, SpecError
from sandboxruntime.seccomp import compile_filter, load_profile, parse_profile
from sandboxruntime.syscall_numbers import NUMBERS
from tests.unit.bpf_simulator import AARCH64, I386, X86_64, simulate

ARCH = {"x86_64": X86_64, "aarch64": AARCH64}
PROFILE = load_profile()
PROGRAMS = {machine: compile_filter(PROFILE, machine) for machine in ARCH}
TABLE: dict[str, Any] = tomllib.loads(
    (resources.files("sandboxruntime") / "profiles" / "notebook.toml").read_text()
)


def answer(call: str, *args: int, machine: str = "x86_64") -> str:
    number = NUMBERS[machine][call]
    return str(simulate(PROGRAMS[machine], number, args, arch=ARCH[machine]))


@pytest.mark.parametrize("machine", ARCH)
def test_every_number_gets_the_answer_of_its_list(machine: str) -> None:
    expected = {
        call: word
        for key, word in (("allow", "allow"), ("eperm", "EPERM"), ("enosys", "ENOSYS"))
        for call in TABLE[key]
    }
    with_rules = {call for rule in TABLE["rule"] for call in rule["calls"]}
    names = {number: call for call, number in NUMBERS[machine].items()}
    for number in range(700):
        call = names.get(number, "")
        if call not in with_rules:
            action = simulate(PROGRAMS[machine], number, arch=ARCH[machine])
            assert str(action) == expected.get(call, "ENOSYS"), (number, call)


@pytest.mark.parametrize("machine", ARCH)
def test_the_program_is_short_and_every_jump_stays_inside(machine: str) -> None:
    code = list(struct.iter_unpack("<HBBI", PROGRAMS[machine]))
    assert len(code) < 1024
    assert code[-1][0] == 0x06
    for index, (operation, jump_true, jump_false, k) in enumerate(code):
        if operation == 0x05:
            assert index + 1 + k < len(code)
        elif operation & 0x07 == 0x05:
            assert index + 1 + max(jump_true, jump_false) < len(code)


def test_second_ways_to_the_same_end_do_not_exist() -> None:
    """Docker refuses them too: code of Linux's that no notebook calls is code that none attacks."""
    for call in ("futex_wake", "futex_wait", "futex_requeue", "setxattrat", "getxattrat",
                 "listxattrat", "removexattrat"):  # fmt: skip
        assert answer(call) == "ENOSYS", call


def test_the_search_is_logarithmic() -> None:
    for number in NUMBERS["x86_64"].values():
        assert simulate(PROGRAMS["x86_64"], number).steps < 80
    for call in ("read", "write", "futex", "mmap", "epoll_wait"):
        assert simulate(PROGRAMS["x86_64"], NUMBERS["x86_64"][call]).steps < 20


@pytest.mark.parametrize("number", [0, 1, 59, 435])
def test_another_architecture_is_killed(number: int) -> None:
    assert str(simulate(PROGRAMS["x86_64"], number, arch=I386)) == "kill"
    assert str(simulate(PROGRAMS["x86_64"], number, arch=AARCH64)) == "kill"
    assert str(simulate(PROGRAMS["aarch64"], number, arch=X86_64)) == "kill"


@pytest.mark.parametrize("number", [0x40000000, 0x40000001, 0x4000003B, 0x40000200, 0xFFFFFFFF])
def test_x32_numbers_do_not_exist(number: int) -> None:
    assert str(simulate(PROGRAMS["x86_64"], number)) == "ENOSYS"


CLONE_NEW = [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000]


@pytest.mark.parametrize("machine", ARCH)
@pytest.mark.parametrize("flag", CLONE_NEW)
def test_clone_makes_no_namespace(machine: str, flag: int) -> None:
    assert answer("clone", flag | 17, machine=machine) == "EPERM"
    assert answer("clone", flag | (1 << 40), machine=machine) == "EPERM"


def test_clone_makes_processes_and_threads() -> None:
    assert answer("clone", 17) == "allow"  # fork
    assert answer("clone", 0x4111) == "allow"  # posix_spawn
    assert answer("clone", 0x3D0F00) == "allow"  # pthread_create
    assert answer("clone", 0x1200011) == "allow"  # glibc's fork


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((1, 1, 0), "allow"),
        ((1, 5 | 0o2000000, 0), "allow"),
        ((1, 2 | 0o4000, 0), "allow"),
        ((1, 3, 0), "EPERM"),
        ((2, 1, 0), "allow"),
        ((2, 1 | 0o2004000, 6), "allow"),
        ((10, 2, 17), "allow"),
        ((2, 2, 0), "allow"),
        ((2, 1, 132), "EPROTONOSUPPORT"),  # SCTP
        ((10, 1, 262), "EPROTONOSUPPORT"),  # MPTCP
        ((2, 2, 1), "EPROTONOSUPPORT"),  # ping
        ((2, 2, 136), "EPROTONOSUPPORT"),  # UDP-Lite
        ((2, 3, 1), "EPERM"),
        ((10, 3, 58), "EPERM"),
        ((2, 3 | 0o2000000, 255), "EPERM"),
        ((2, 10, 0), "EPERM"),
        ((2, 6, 33), "EPERM"),
        ((2, 5, 132), "EPERM"),
        ((16, 3, 0), "allow"),
        ((16, 2 | 0o2000000, 0), "allow"),
        ((16, 3, 6), "EAFNOSUPPORT"),  # XFRM
        ((16, 3, 9), "EAFNOSUPPORT"),  # AUDIT
        ((16, 3, 12), "EAFNOSUPPORT"),  # NETFILTER
        ((16, 3, 15), "EAFNOSUPPORT"),  # KOBJECT_UEVENT
        ((1 | 1 << 32, 1, 0), "allow"),  # Linux sees an int: still AF_UNIX
        ((38 | 1 << 32, 5, 0), "EAFNOSUPPORT"),
    ],
)
def test_sockets(args: tuple[int, ...], expected: str) -> None:
    for machine in ARCH:
        assert answer("socket", *args, machine=machine) == expected


def test_no_other_family_exists() -> None:
    for family in set(range(64)) - {1, 2, 10, 16}:
        for kind in range(11):
            assert answer("socket", family, kind, 0) == "EAFNOSUPPORT"
            assert answer("socketpair", family, kind, 0) == "EAFNOSUPPORT"
    assert answer("socketpair", 1, 1 | 0o2000000, 0) == "allow"


@pytest.mark.parametrize(
    ("level", "option", "expected"),
    [
        (6, 31, "EPERM"),
        (6, 1, "allow"),
        (17, 100, "EPERM"),
        (136, 100, "EPERM"),
        (17, 103, "allow"),
        (0, 17, "EPERM"),
        (41, 35, "EPERM"),
        (1, 31, "allow"),
        (6 | 1 << 32, 31 | 1 << 33, "EPERM"),
    ],
)
def test_setsockopt(level: int, option: int, expected: str) -> None:
    assert answer("setsockopt", 3, level, option) == expected


@pytest.mark.parametrize("request_number", [0x5412, 0x541C, 0x541D, 0x5423, 0x5412 | 1 << 32])
def test_terminals_cannot_be_typed_into(request_number: int) -> None:
    assert answer("ioctl", 0, request_number) == "EPERM"
    assert answer("ioctl", 0, 0x5413) == "allow"  # TIOCGWINSZ


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "allow"), (0xFFFFFFFF, "allow"), (0x40000, "EPERM"), (0x400000, "EPERM"), (8, "EPERM")],
)
def test_personality(value: int, expected: str) -> None:
    assert answer("personality", value) == expected


@pytest.mark.parametrize(
    ("option", "expected"),
    [(15, "allow"), (38, "allow"), (35, "EPERM"), (59, "EPERM"), (62, "EPERM"), (999, "EINVAL")],
)
def test_prctl(option: int, expected: str) -> None:
    assert answer("prctl", option) == expected
    assert answer("prctl", option | 1 << 32) == expected


@pytest.mark.parametrize("bits", [0o4000, 0o2000, 0o6000])
@pytest.mark.parametrize(
    ("call", "before"),
    [
        ("chmod", (1,)),
        ("fchmod", (3,)),
        ("fchmodat", (3, 1)),
        ("fchmodat2", (3, 1)),
        ("mkdir", (1,)),
        ("mkdirat", (3, 1)),
        ("mknod", (1,)),
        ("mknodat", (3, 1)),
        ("creat", (1,)),
        ("open", (1, 0o101)),
        ("openat", (3, 1, 0o101)),
        ("open", (1, 0o20200002)),  # O_TMPFILE
        ("openat", (3, 1, 0o20200002)),
    ],
)
def test_no_setuid_or_setgid_file(call: str, before: tuple[int, ...], bits: int) -> None:
    for machine in ARCH:
        if call in NUMBERS[machine]:
            assert answer(call, *before, bits | 0o755, machine=machine) == "EPERM"
            assert answer(call, *before, 0o1777, machine=machine) == "allow"


def test_open_without_creation_ignores_the_mode() -> None:
    assert answer("open", 1, 0, 0o6755) == "allow"
    assert answer("openat", 3, 1, 0o2000002, 0o6755) == "allow"


HANDOVER = (
    "recvmsg sendmsg close dup2 dup3 execve clone wait4 waitid kill rt_sigaction rt_sigprocmask"
    " rt_sigreturn exit_group"
)


def test_the_installer_can_go_on_after_the_filter() -> None:
    for machine, numbers in NUMBERS.items():
        for call in HANDOVER.split():
            if call in numbers:
                assert answer(call, machine=machine) == "allow"


GOOD = 'name = "x"\ndefault = "ENOSYS"\nallow = ["read"]\n'


@pytest.mark.parametrize(
    "extra",
    [
        'eperm = ["read"]',
        'eperm = ["reed"]',
        "sub_architectures = true",
        '[[rule]]\ncalls = ["read"]\nthen = "EPERM"',
        '[[rule]]\ncalls = ["write"]\nthen = "EWHAT"',
        '[[rule]]\ncalls = ["write"]\nthen = "allow"\nwhen = [{ arg = 0, equal = 1 }]',
        '[[rule]]\ncalls = ["write"]\nthen = "allow"\nwhen = [{ arg = 6, equal = 1 }]',
        '[[rule]]\ncalls = ["write"]\nthen = "allow"\nwhen = [{ arg = 0 }]',
        '[[rule]]\ncalls = ["write"]\nthen = "allow"\nwhen = [{ arg = 0, in = [] }]',
        '[[rule]]\ncalls = ["write"]\nthen = "allow"\nwhen = [{ arg = 0, equal = 4294967296 }]',
        '[[rule]]\ncalls = ["write"]\nthen = "allow"\nwhen = [{ arg = 0, equal = 1, in = [2] }]',
        "=",
    ],
)
def test_bad_profiles_are_refused(extra: str) -> None:
    parse_profile(GOOD)
    with pytest.raises(SpecError):
        parse_profile(GOOD + extra + "\n")


@pytest.mark.parametrize("name", ["nothing", "../x", "", "a/b"])
def test_unknown_profiles_are_refused(name: str) -> None:
    with pytest.raises(SpecError):
        load_profile(name)


def test_unknown_machine_is_refused() -> None:
    with pytest.raises(HostError):
        compile_filter(PROFILE, "i686")


def test_the_simulator_agrees_with_itself_on_conditions() -> None:
    profile = parse_profile(
        GOOD
        + """
[[rule]]
calls = ["write"]
when = [{ arg = 0, in = [1, 2] }, { arg = 2, mask = 0xF0, equal = 0x30 }]
then = "allow"
[[rule]]
calls = ["write"]
when = [{ arg = 5, any_bits = 0x81 }]
then = "kill"
[[rule]]
calls = ["write"]
then = "EACCES"
"""
    )
    program = compile_filter(profile, "x86_64")

    def run(*args: int) -> str:
        return str(simulate(program, 1, args))

    assert run(1, 0, 0x3F) == run(2, 0, 0x30) == "allow"
    assert run(3, 0, 0x30) == run(1, 0, 0x40) == "EACCES"
    assert run(3, 0, 0, 0, 0, 0x80) == "kill"

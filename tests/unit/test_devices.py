"""The device allow-list of cgroup v2: what the program answers, by an interpreter of its own."""

from __future__ import annotations

import struct

import pytest

from sandboxruntime.cgroup import plan_devices
from sandboxruntime.cgroup.devices import ALLOWED, assemble
from sandboxruntime.cgroup.layout import Layout, Mode

BLOCK, CHAR = 1, 2
MKNOD, READ, WRITE = 1, 2, 4
PROGRAM = assemble()


def run(kind: int, access: int, major: int, minor: int, program: bytes = PROGRAM) -> int:
    """What the program returns (instruction-set.rst: the few instructions that it has)."""
    context = struct.pack("=3I", access << 16 | kind, major, minor)
    registers, at = [0] * 11, 0
    code = list(struct.iter_unpack("<BBhi", program))
    while True:
        opcode, both, offset, immediate = code[at]
        to, source = both & 15, both >> 4
        at += 1
        match opcode:
            case 0x61:
                registers[to] = struct.unpack_from("=I", context, offset)[0]
                assert source == 1  # the context
            case 0xB7:
                registers[to] = immediate
            case 0xBF:
                registers[to] = registers[source]
            case 0x57:
                registers[to] &= immediate
            case 0x77:
                registers[to] >>= immediate
            case 0x15 | 0x55 | 0x45:
                value = registers[to]
                taken = {
                    0x15: value == immediate,
                    0x55: value != immediate,
                    0x45: bool(value & immediate),
                }
                at += offset if taken[opcode] else 0
            case 0x95:
                return registers[0]
            case _:
                raise AssertionError(f"instruction {opcode:#x}")


def is_allowed(major: int, minor: int) -> bool:
    return (major, minor) in ALLOWED or (major, None) in ALLOWED


def test_every_character_device_is_answered_as_the_list_says() -> None:
    for major in (*range(0, 300), 4095):
        for minor in (*range(0, 16), 200, 229, 237, 255, 256, (1 << 20) - 1):
            expected = int(is_allowed(major, minor))
            assert run(CHAR, READ | WRITE, major, minor) == expected, (major, minor)


@pytest.mark.parametrize("access", [READ, WRITE, READ | WRITE, 0])
def test_devices_of_the_list_can_be_read_and_written(access: int) -> None:
    assert run(CHAR, access, 1, 3) == 1
    assert run(CHAR, access, 136, 77) == 1


@pytest.mark.parametrize("access", [MKNOD, MKNOD | READ, MKNOD | READ | WRITE])
def test_no_node_can_be_made(access: int) -> None:
    assert run(CHAR, access, 1, 3) == 0


def test_no_block_device_can_be_used_whatever_its_number() -> None:
    assert not any(run(BLOCK, READ, major, minor) for major, minor in ((1, 3), (8, 0), (136, 1)))


def test_both_generations_have_the_same_list() -> None:
    layout = Layout(Mode.V1, {"devices": "/sys/fs/cgroup/devices"}, None, frozenset())
    writes = [write.value for write in plan_devices(layout)]
    assert writes[0] == "a"
    assert writes[1:] == [
        f"c {major}:{'*' if minor is None else minor} rw" for major, minor in ALLOWED
    ]
    assert plan_devices(Layout(Mode.V2, {}, "/sys/fs/cgroup", frozenset())) == []

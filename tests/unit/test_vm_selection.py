"""What runs in the virtual machine is decided for every file of the lanes, and exists."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.vm.selection import (
    BOOTS,
    LEFT_OUT,
    LONG,
    MACHINES,
    PARTS,
    WHOLE,
    arguments,
    between_boots,
)

ROOT = Path(__file__).resolve().parents[2]
LANES = ("integration", "escape", "conformance", "hostile", "browser", "vm")


def names(file: str) -> set[str]:
    """Functions and classes at the top of a test file."""
    body = ast.parse((ROOT / file).read_text()).body
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in body if isinstance(node, kinds)}


def test_every_file_is_decided_upon() -> None:
    files = {
        str(path.relative_to(ROOT))
        for lane in LANES
        for path in (ROOT / "tests" / lane).glob("test_*.py")
    }
    decided = [*WHOLE, *PARTS, *BOOTS, *(name for name in LEFT_OUT if "::" not in name)]
    assert sorted(decided) == sorted(files)


def test_what_is_named_exists() -> None:
    named = [(file, name.partition("[")[0]) for file, parts in PARTS.items() for name in parts]
    named += [(file, name) for file, tests in BOOTS.items() for name in tests]
    for item in (*LEFT_OUT, *LONG):
        file, _, name = item.partition("::")
        if name:
            plain = name.partition("[")[0]
            in_long = item in LONG and (file in BOOTS or plain in PARTS.get(file, ()))
            assert file in WHOLE or in_long, f"{item}: of this file not all runs"
            named.append((file, name.partition("[")[0]))
    assert [f"{file}::{name}" for file, name in named if name not in names(file)] == []


def test_every_omission_has_its_reason() -> None:
    assert all(LEFT_OUT.values())
    assert all(LONG.values())


def test_between_boots_every_test_of_a_file_has_its_turn() -> None:
    for file, tests in BOOTS.items():
        assert set(tests) == {name for name in names(file) if name.startswith("test_")}


def test_each_file_runs_in_one_machine() -> None:
    files = [file for part in MACHINES.values() for file in part]
    assert sorted(files) == sorted([*WHOLE, *PARTS, *BOOTS])


def test_what_takes_long_runs_when_everything_does() -> None:
    short = {item for machine in MACHINES for item in arguments(machine)}
    long = {item for machine in MACHINES for item in arguments(machine, long=True)}
    assert not {f"--deselect={name}" for name in LONG} & long
    for name in LONG:
        file = name.partition("::")[0]
        if file in BOOTS:
            assert name not in {test for test, _ in between_boots([file])}
            assert name in {test for test, _ in between_boots([file], long=True)}
        elif file in LONG:
            assert any(item.startswith(file) for item in long - short)
            assert not any(item.startswith(file) for item in short)
        elif file in PARTS:
            assert (f"--deselect={name}" in short) if "[" in name else (name in long - short)
        else:
            assert f"--deselect={name}" in short
    for name in LEFT_OUT:
        if "::" in name and name.partition("::")[0] not in LONG:
            assert f"--deselect={name}" in short & long

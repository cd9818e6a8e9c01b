from __future__ import annotations

import struct

import pytest

from sandboxruntime.landlock import Access, Scope, abi_version, plan_ruleset

SIZES = {1: 8, 2: 8, 3: 8, 4: 16, 5: 16, 6: 24, 7: 24}


@pytest.mark.parametrize("abi", SIZES)
def test_the_structure_has_the_size_of_the_abi(abi: int) -> None:
    assert len(plan_ruleset(abi, []).attr()) == SIZES[abi]


@pytest.mark.parametrize(
    ("abi", "newest"),
    [(1, Access.MAKE_SYM), (2, Access.REFER), (4, Access.TRUNCATE), (5, Access.IOCTL_DEV)],
)
def test_only_rights_the_abi_knows_are_handled(abi: int, newest: Access) -> None:
    assert plan_ruleset(abi, []).handled == 2 * newest - 1


@pytest.mark.parametrize("abi", SIZES)
def test_no_rule_allows_more_than_is_handled(abi: int) -> None:
    ruleset = plan_ruleset(abi, ["/tmp", "/home"])
    for rule in ruleset.rules:
        assert rule.allowed & ~ruleset.handled == 0
        assert rule.allowed & (Access.MAKE_CHAR | Access.MAKE_BLOCK) == 0


def test_the_rules() -> None:
    ruleset = plan_ruleset(7, ["/tmp"], devices="/d")
    allowed = {rule.path: rule.allowed for rule in ruleset.rules}
    assert allowed["/"] == Access.EXECUTE | Access.READ_FILE | Access.READ_DIR
    assert allowed["/d"] & Access.IOCTL_DEV
    assert not allowed["/d"] & (Access.MAKE_REG | Access.REMOVE_FILE | Access.EXECUTE)
    assert allowed["/tmp"] & Access.REFER
    assert allowed["/proc"] == Access.WRITE_FILE | Access.TRUNCATE


def test_scopes_from_abi_6() -> None:
    assert plan_ruleset(5, []).scoped == Scope(0)
    ruleset = plan_ruleset(6, [])
    assert struct.unpack("=QQQ", ruleset.attr()) == (ruleset.handled, 0, 3)


def test_the_version_needs_no_privilege() -> None:
    assert abi_version() >= 0

"""docs/attacks.md is what the catalogue says, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

from tests.escape.attacks import ALL
from tests.escape.coverage import SECTIONS
from tests.escape.table import PAGE, mentioned_tests, page

TESTS = Path(__file__).resolve().parents[1]


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run python -m tests.escape.table"


def test_every_attack_has_its_section() -> None:
    assert {attack.section for attack in ALL} <= {section for section, _, _ in SECTIONS}


def test_every_section_says_how_it_is_covered() -> None:
    sections = {attack.section for attack in ALL}
    assert [name for name, _, elsewhere in SECTIONS if name not in sections and not elsewhere] == []


def test_the_tests_that_are_named_exist() -> None:
    source = "".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    found = set(re.findall(r"def (test_\w+)", source))
    assert set(mentioned_tests()) - found == set()


def test_an_attack_refuses_to_run_in_the_hosts_user_namespace() -> None:
    for attack in ALL:
        source = attack.source({})
        assert source.index("not confined") < source.index("attack()")

"""docs/attacks.md is what the catalogue says, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

from tests.escape.attacks import ALL
from tests.escape.coverage import SECTIONS, Claim
from tests.escape.table import PAGE, mentioned_tests, page

TESTS = Path(__file__).resolve().parents[1]


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run python -m tests.escape.table"


def test_every_attack_belongs_to_a_claim_of_its_section() -> None:
    claims = {section.name: section.claims for section in SECTIONS}
    assert [
        attack.name
        for attack in ALL
        if not any(claim.covers(attack.name) for claim in claims.get(attack.section, ()))
    ] == []


def test_every_claim_is_shown_or_has_its_reason() -> None:
    assert [claim.text for each in SECTIONS for claim in each.claims if not claim.is_shown] == []


def test_a_claim_without_evidence_or_with_half_a_sentence_is_told() -> None:
    assert not Claim("something").is_shown
    assert not Claim("something", shown="somewhere").is_shown
    assert not Claim("something", reason="because").is_shown
    assert Claim("something", shown="`test_something`").is_shown
    assert Claim("something", shown="C5").is_shown


def test_the_attacks_that_are_named_exist() -> None:
    """A pattern that stands for no attack of its section is a claim that nothing shows."""
    names = {each.name: {a.name for a in ALL if a.section == each.name} for each in SECTIONS}
    assert [
        (section.name, pattern)
        for section in SECTIONS
        for claim in section.claims
        for pattern in claim.attacks
        if not any(Claim("", (pattern,)).covers(name) for name in names[section.name])
    ] == []


def test_the_sections_that_are_named_exist() -> None:
    words = " ".join(claim.shown for each in SECTIONS for claim in each.claims)
    assert set(re.findall(r"\b([A-L][0-9])\b", words)) <= {section.name for section in SECTIONS}


def test_a_section_stands_once_and_claims_something() -> None:
    assert len({section.name for section in SECTIONS}) == len(SECTIONS)
    assert all(section.claims for section in SECTIONS)


def test_the_tests_that_are_named_exist() -> None:
    source = "".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    found = set(re.findall(r"def (test_\w+)", source))
    assert set(mentioned_tests()) - found == set()


def test_an_attack_refuses_to_run_in_the_hosts_user_namespace() -> None:
    for attack in ALL:
        source = attack.source({})
        assert source.index("not confined") < source.index("attack()")


def test_no_control_bites_with_the_answer_of_a_sandbox() -> None:
    """Or it could not fail."""
    assert [a.name for a in ALL if a.control is not None and set(a.bites) & a.outcomes()] == []

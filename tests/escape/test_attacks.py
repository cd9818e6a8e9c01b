"""Attacks from inside on a real container, each with a control in which it succeeds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandboxruntime.steps import Step
from tests.escape.attacks import (
    NEEDS_CAPABILITY,
    NO_PRIVILEGE_NEEDED,
    PRIVILEGE,
    SECCOMP_ONLY,
    Attack,
)
from tests.harness import Harness, harness, make_spec

ALL = (*SECCOMP_ONLY, *NEEDS_CAPABILITY, *NO_PRIVILEGE_NEEDED)


def launch(running: Harness, attack: Attack) -> str:
    with make_spec() as spec, running.container(spec) as attempt:
        _, output = attempt.run("python3", "-c", attack.source())
    return output.strip().splitlines()[-1] if output.strip() else output


@pytest.fixture(scope="module")
def confined() -> Iterator[Harness]:
    with harness() as running:
        yield running


@pytest.fixture(scope="module")
def without_seccomp() -> Iterator[Harness]:
    with harness([Step.SECCOMP, Step.LANDLOCK]) as running:
        yield running


@pytest.fixture(scope="module")
def privileged() -> Iterator[Harness]:
    with harness(PRIVILEGE, keep_capabilities=True) as running:
        yield running


@pytest.fixture(scope="module")
def seccomp_alone() -> Iterator[Harness]:
    """Capabilities are kept; only the filter stands between the attack and success."""
    kept = [step for step in PRIVILEGE if step not in (Step.SECCOMP, Step.NO_NEW_PRIVS)]
    with harness(kept, keep_capabilities=True) as running:
        yield running


@pytest.mark.parametrize("attack", ALL, ids=lambda attack: attack.name)
def test_the_attack_is_refused(confined: Harness, attack: Attack) -> None:
    outcome = launch(confined, attack)
    assert outcome in {f"refused {name}" for name in attack.expected}, outcome


@pytest.mark.parametrize(
    "attack",
    [a for a in SECCOMP_ONLY if a.without and not a.keep_capabilities],
    ids=lambda attack: attack.name,
)
def test_without_the_filter_the_attack_succeeds(without_seccomp: Harness, attack: Attack) -> None:
    assert launch(without_seccomp, attack) == "ESCAPED"


@pytest.mark.parametrize(
    "attack",
    [*(a for a in SECCOMP_ONLY if a.keep_capabilities), *NEEDS_CAPABILITY],
    ids=lambda attack: attack.name,
)
def test_with_capabilities_and_no_filter_the_attack_succeeds(
    privileged: Harness, attack: Attack
) -> None:
    assert launch(privileged, attack) == "ESCAPED"


@pytest.mark.parametrize(
    "attack",
    [a for a in NEEDS_CAPABILITY if a.name not in {
        # These are decided by capability and ownership alone; no filter looks at them.
        "setuid to inside root", "give a file away", "write to the image's programs",
        "bring an interface down",
    }],
    ids=lambda attack: attack.name,
)  # fmt: skip
def test_the_filter_alone_stops_even_full_capabilities(
    seccomp_alone: Harness, attack: Attack
) -> None:
    assert launch(seccomp_alone, attack).startswith("refused")


@pytest.mark.parametrize("attack", NEEDS_CAPABILITY, ids=lambda attack: attack.name)
def test_having_no_capability_alone_stops_the_attack(
    without_seccomp: Harness, attack: Attack
) -> None:
    assert launch(without_seccomp, attack).startswith("refused")

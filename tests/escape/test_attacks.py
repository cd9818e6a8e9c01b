"""Attacks from inside on a real container, each with a control in which it succeeds."""

from __future__ import annotations

import contextlib
import functools
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxkernel.images.store import ImageStore
from tests.escape.attacks import ALL, Attack, Control
from tests.harness import Harness, harness, host_image, make_spec
from tests.support import SHARED_DATA

Launch = Callable[[Attack, Control | None], str]
CONFINED = Control("nothing")
LINUX = tuple(int(part) for part in platform.release().split(".")[:2])


@pytest.fixture(scope="module")
def launch() -> Iterator[Launch]:
    """What an attack prints in a container that lacks what a control lacks; launchers are kept."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def launcher(control: Control, plant: str) -> Harness:
            return stack.enter_context(
                harness(
                    control.steps, keep_capabilities=control.keep_capabilities,
                    patch=plant + control.patch,
                )
            )  # fmt: skip

        def run(attack: Attack, control: Control | None) -> str:
            lacking = control or CONFINED
            with contextlib.ExitStack() as mine:
                spec = mine.enter_context(make_spec(**dict(lacking.spec)))
                arrange = attack.arrange or (lambda layer: contextlib.nullcontext({}))
                values = mine.enter_context(arrange(Path(spec.rootfs.upper)))
                attempt = mine.enter_context(launcher(lacking, attack.plant).container(spec))
                _, output = attempt.run("python3", "-IS", "-c", attack.source(values))
            return output.strip().splitlines()[-1] if output.strip() else "no word"

        yield run


def named(attacks: list[Attack]) -> dict[str, Any]:
    return {"argvalues": attacks, "ids": [attack.name for attack in attacks]}


@pytest.mark.parametrize("attack", **named([*ALL]))
def test_the_attack_is_refused(launch: Launch, attack: Attack) -> None:
    assert launch(attack, None) in attack.outcomes()


@pytest.mark.parametrize(
    "attack", **named([a for a in ALL if a.control is not None and a.newer_than <= LINUX])
)
def test_without_its_defence_the_attack_succeeds(launch: Launch, attack: Attack) -> None:
    assert launch(attack, attack.control) in attack.bites


@pytest.mark.parametrize(
    ("attack", "lacking"),
    [(attack, control) for attack in ALL for control in attack.alone],
    ids=lambda value: value.missing if isinstance(value, Control) else value.name,
)
def test_what_is_left_of_its_defences_stops_it_alone(
    launch: Launch, attack: Attack, lacking: Control
) -> None:
    assert launch(attack, lacking).startswith("refused")


def test_the_names_of_attacks_are_their_own() -> None:
    assert len({attack.name for attack in ALL}) == len(ALL)


def test_after_all_of_them_the_image_is_as_it_was_made() -> None:
    """Read through the page cache, which is what a write to shared pages would have changed.

    That it finds a single byte: `test_a_byte_of_an_image_is_found_and_the_image_made_again`.
    """
    store = ImageStore(SHARED_DATA / "images")
    assert store.verify(host_image().ref) == ()

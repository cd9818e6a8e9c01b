"""Spares that wait before anybody has started a kernel: for a class that begins at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from sandboxkernel.models import Zygote
from tests.support import RunningDaemon, python_inside, running_daemon, sandbox, wait_until

CLASS = 3
CONFIG = f"""
c.SandboxKernelDaemon.profiles = {{
    "class": {{"spares": {CLASS}, "min_spares": {CLASS}}},
    "other": {{"spares": 1}},
}}
c.SandboxKernelDaemon.max_zygotes = 1
c.SandboxKernelDaemon.memory_reserve = 0.0
"""


@pytest.fixture(scope="module")
def own() -> Iterator[RunningDaemon]:
    """A daemon of which one profile has spares always."""
    with running_daemon(CONFIG) as running:
        yield running


def class_is_ready(daemon: RunningDaemon) -> Zygote:
    """Wait for the zygote of "class" with all of its spares."""

    def ready() -> Zygote | None:
        found = daemon.client().zygotes().zygotes
        return next((z for z in found if z.domain == "class" and len(z.spares) == CLASS), None)

    return wait_until(ready, what="all spares of class")


def test_the_first_class_finds_its_spares(own: RunningDaemon) -> None:
    """Nobody has started anything before; and there are as many again for the next class."""
    before = class_is_ready(own)
    for _ in range(CLASS):
        with sandbox(own, as_kernel=True, profile="class") as kernel:
            assert own.client().inspect(kernel.id).start_path == "spare"
            assert python_inside(own, kernel, "print(6 * 7)") == (0, "42\n")
    after = class_is_ready(own)
    assert after.id == before.id and not set(after.spares) & set(before.spares)


def test_they_are_there_again_when_the_launcher_has_ended(own: RunningDaemon) -> None:
    before = class_is_ready(own)
    os.kill(own.launcher, signal.SIGKILL)
    wait_until(lambda: class_is_ready(own).id != before.id, what="another zygote")
    with sandbox(own, as_kernel=True, profile="class") as kernel:
        assert own.client().inspect(kernel.id).start_path == "spare"


def test_an_image_that_is_not_there_is_said_and_holds_up_nobody() -> None:
    config = CONFIG.replace('"class": {', '"class": {"image": "nowhere:1", ')
    with running_daemon(config) as daemon:
        said = "profile class has no spares for now: "
        wait_until(lambda: said in daemon.log_path.read_text(), what=said)
        with sandbox(daemon, as_kernel=True, profile="other") as kernel:
            assert python_inside(daemon, kernel, "print(6 * 7)") == (0, "42\n")
        assert daemon.log_path.read_text().count(said) == 1


def test_another_profiles_zygote_takes_their_place_for_a_while(own: RunningDaemon) -> None:
    """Only one zygote may be there: whoever is in need comes first, and the class has it back."""
    before = class_is_ready(own)
    with sandbox(own, as_kernel=True, profile="other"):
        pass

    def serving() -> set[str]:
        return {z.id for z in own.client().zygotes().zygotes if not z.retired}

    wait_until(lambda: before.id not in serving(), what="a zygote of other in its place")
    again = class_is_ready(own)
    assert again.id in serving()
    wait_until(lambda: len(serving()) == 1, what="the end of the zygote of other")

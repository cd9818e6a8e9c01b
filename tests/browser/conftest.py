"""The browser's Jupyter talks to the tests' daemon."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import RunningDaemon

WORK = Path("/srv/sandboxkernel-tests/course")


@pytest.fixture(autouse=True)
def talk_to_the_daemon(daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOXKERNEL_HOST", f"unix://{daemon.socket_path}")


@pytest.fixture
def work() -> Iterator[Path]:
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    yield WORK
    shutil.rmtree(WORK, ignore_errors=True)

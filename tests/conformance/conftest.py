"""Jupyter clients of these tests talk to the tests' daemon."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import NO_ZYGOTES, RunningDaemon, running_daemon

KERNEL_NAME = "sandboxed-python"
WORK = Path("/srv/sandboxkernel-tests")


@pytest.fixture(scope="class")
def cold_daemon() -> Iterator[RunningDaemon]:
    """A daemon without zygotes, beside the tests' own.

    For one function or class: both mount the same user layer, and what is changed through one overlay is not
    seen in another that has looked already (kernel documentation, overlayfs.rst).
    """
    with running_daemon(NO_ZYGOTES) as running:
        yield running


@pytest.fixture(autouse=True)
def talk_to_the_daemon(daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOXKERNEL_HOST", f"unix://{daemon.socket_path}")


@pytest.fixture
def work(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A work folder that a profile may mount."""
    folder = WORK / request.node.name.replace("[", "-").replace("]", "")[:60]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)

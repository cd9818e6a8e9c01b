"""Fixtures of the privileged tests, and the leak check that follows every one of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from tests import support
from tests.support import RunningDaemon, host_state, leaks, running_daemon, wait_until

PRIVILEGED = ("integration", "escape", "conformance", "browser")
CONFIG = """
c.SandboxKernelDaemon.profiles = {
    "default": {"maximum": {"memory": "4G"}},
    "small": {"limits": {"memory": "256M", "cpus": 0.5, "pids": 64}},
    "hungry": {"limits": {"cpus": 0.5, "pids": 256}},
    "disk": {"limits": {"io_write": "4M", "io_read": "4M"}},
    "throwaway": {"ephemeral": True},
    "rooted": {"work_folders": ["/srv/sandboxkernel-tests"]},
}
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.parent.name
        if folder not in PRIVILEGED:
            continue
        item.add_marker(pytest.mark.privileged)
        if folder != "integration":
            item.add_marker(getattr(pytest.mark, folder))
        if os.geteuid() != 0:
            if support.MUST_RUN:
                raise pytest.UsageError(f"{item.nodeid} needs root")
            item.add_marker(pytest.mark.skip(reason="needs root"))


def pytest_sessionfinish() -> None:
    support.remove_cgroups()


@pytest.fixture(scope="session")
def daemon() -> Iterator[RunningDaemon]:
    """One daemon for all tests that do not need their own."""
    with running_daemon(CONFIG) as running:
        for _ in running.client().prepare_image("host"):
            pass
        yield running


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compare the host before and after every privileged test."""
    if request.path.parent.name not in PRIVILEGED or "daemon" not in request.fixturenames:
        yield
        return
    request.getfixturevalue("daemon")
    before = host_state()
    yield
    # Namespaces and dying processes go asynchronously: they get a deadline, not a guess.
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not leaks(before), timeout_s=10)
    assert leaks(before) == {}

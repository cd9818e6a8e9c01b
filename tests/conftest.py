"""Fixtures of the privileged tests, and the leak check that follows every one of them."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

from tests import support
from tests.support import (
    RunningDaemon,
    by_executor,
    host_state,
    lasting_leaks,
    running_daemon,
    warm_up,
)

PRIVILEGED = ("integration", "escape", "conformance", "hostile", "browser", "vm")
# What has an alternative, whose tests run instead.
REVIEWED_SKIPS = frozenset(
    {
        "no v2",
        "v2 only",
        "no v1 freezer",
        "no v1 pids controller",
        "no v1 devices controller",
        "x86 only",
        # jupyter_kernel_test: a plain ipykernel does not pass it either, and a test compares them
        "History range not supported",
    }
)
# Of these files every test also runs in containers that runc made. All others of the lanes do with
# SANDBOXKERNEL_TEST_EXECUTOR=runc (`make test-runc`).
BY_RUNC = ("test_contract.py", "test_confinement.py", "test_features.py")
# What SANDBOXKERNEL_TEST_EXECUTOR leaves out, and why.
NATIVE_ONLY = {
    "test_zygotes.py": "containers of other executors are not forked",
    "test_fork_hygiene.py": "containers of other executors are not forked",
    "test_crashes.py": "its traps are in the steps of our own executor",
    "test_faults.py": "fails steps of our own executor; test_executors.py has a runtime that fails",
    "test_cgroup_real.py": "cgroups are ours with every executor, and have no container there",
    "test_confinement_primitives.py": "system calls of our own, without a container",
    "test_masks.py": "its controls leave out masks of our own; another executor's paths are the same",
    "test_attacks.py": "its controls leave out steps of our own; test_executors.py attacks runc's",
    "test_surroundings.py": "its controls leave out steps of our own, too",
    "test_misconfined.py": "our own launcher lies; test_executors.py has a runtime that confines less",
    "test_neighbours.py": "has both executors itself",
    "test_audit.py": "has both executors itself",
    "test_hostile_roots.py": "has both executors itself",
    "test_hostile_layers.py": "walks see a directory, whoever made the container that filled it",
    "test_joining.py": "its controls leave out steps of our own, too",
    "test_host_views.py": "its controls leave out steps of our own, too",
    "test_device_list.py": "has both executors itself",
    "test_removals.py": "has both executors itself",
}
CONFIG = """
c.SandboxKernelDaemon.profiles = {
    "default": {"maximum": {"memory": "4G"}},
    "small": {"limits": {"memory": "256M", "cpus": 0.5, "pids": 64}},
    "on_demand": {"spares": 0},
    "hungry": {"limits": {"cpus": 0.5, "pids": 256}},
    "disk": {"limits": {"io_write": "4M", "io_read": "4M"}},
    "throwaway": {"ephemeral": True},
    "rooted": {"work_folders": ["/srv/sandboxkernel-tests"]},
}
"""


# Tests do not assert times, and a run of CI is not where something new should be met: what is made
# up is the same every time, but for `make fuzz` and SANDBOXKERNEL_TEST_RANDOM.
settings.register_profile("untimed", deadline=None, derandomize=not support.RANDOM)
settings.load_profile("untimed")


def pytest_configure() -> None:
    support.heed_signals()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if support.EXECUTOR != "native":
        left_out = [item for item in items if item.path.name in NATIVE_ONLY]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """`make test`: a skip without a reviewed reason is a failure, which shows the daemons' logs."""
    report = yield
    if report.failed:
        report.sections += support.daemon_logs()
    if support.MUST_RUN and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if reason.removeprefix("Skipped: ") not in REVIEWED_SKIPS:
            report.outcome = "failed"
            report.longrepr = f"skipped for a reason that nobody reviewed: {reason}"
    return report


@pytest.hookimpl(trylast=True)  # pytest's own ends the fixtures, and the daemons with them
def pytest_sessionfinish() -> None:
    support.remove_cgroups()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Conformance is shown on both paths to a kernel: a fresh interpreter, and a fork."""
    path = metafunc.definition.path
    # unittest's classes take no parameters: test_jupyter_kernel.py has a class for each path.
    if path.parent.name == "conformance" and not metafunc.cls and "daemon" in metafunc.fixturenames:
        paths = ["warm", "cold", *(["runc"] if path.name in BY_RUNC else [])]
        paths = paths if support.EXECUTOR == "native" else ["cold"]  # no other has zygotes
        paths = paths if support.ZYGOTES else [path for path in paths if path != "warm"]
        metafunc.parametrize("daemon", paths, indirect=True, scope="session")


@pytest.fixture(scope="session")
def daemon(request: pytest.FixtureRequest) -> Iterator[RunningDaemon]:
    """One daemon for all tests that do not need their own.

    With zygotes, unless it is "cold", or its containers are made by "runc".
    """
    path = getattr(request, "param", "warm" if support.ZYGOTES else "cold")
    config = CONFIG if path == "warm" else CONFIG + support.NO_ZYGOTES
    if path == "runc":
        config += by_executor(path)
    with running_daemon(config) as running:
        for _ in running.client().prepare_image("host"):
            pass
        if path == "warm":
            warm_up(running)
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
    assert lasting_leaks(before, timeout_s=10) == {}

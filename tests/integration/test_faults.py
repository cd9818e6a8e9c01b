"""A step that fails leaves nothing behind and names itself; the next start is good."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
from pathlib import Path

import pytest

from sandboxkernel.errors import KernelStartFailed
from sandboxruntime.launcher import FAULT_VARIABLE
from sandboxruntime.steps import CHILD_STEPS, LAUNCHER_STEPS, Step
from tests.faults.scene import ERRNOS, at_point, baseline, count, our_cgroups, scene
from tests.harness import Harness, harness, make_spec
from tests.support import wait_until


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def descriptors_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize("step", [*LAUNCHER_STEPS, *CHILD_STEPS], ids=str)
def test_a_failing_step_is_named_and_leaves_nothing(step: Step) -> None:
    with harness(env={FAULT_VARIABLE: step}) as running, make_spec() as spec:
        descriptors = []
        for _ in range(3):
            with pytest.raises(KernelStartFailed) as caught, running.container(spec):
                pass
            assert caught.value.step == step
            assert caught.value.errno == 5
            assert children_of(running.pid) == []
            assert our_cgroups() == []
            descriptors.append(descriptors_of(running.pid))
        assert descriptors[1] == descriptors[2]  # the first start fills caches of the launcher


def test_a_start_after_a_failed_one_is_good() -> None:
    with harness() as running, make_spec() as spec:
        for _ in range(2):
            with running.container(spec) as attempt:
                assert attempt.run("true") == (0, "")


def test_killing_the_launcher_leaves_processes_in_their_cgroup_for_the_next_daemon_to_sweep() -> (
    None
):
    running = Harness()
    with make_spec() as spec:
        with pytest.raises(OSError, match="Broken pipe"), running.container(spec):
            running.kill()
        pids = [
            int(p)
            for path in our_cgroups()
            for p in (Path(path) / "cgroup.procs").read_text().split()
        ]
        assert pids
        # The process that waits for its hand-over ends by itself: its socket has closed.
        for pid in set(pids):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        wait_until(lambda: not any((Path(p) / "cgroup.procs").read_text() for p in our_cgroups()))
        for path in our_cgroups():
            os.rmdir(path)
    running.remove_staging()


@pytest.mark.parametrize(
    ("scenario", "every"), [("cold", 45), ("exec", 45), ("delete", 9), ("runc", 45)]
)
@pytest.mark.timeout(120)
def test_a_failing_operation_runs_no_user_code_and_leaves_nothing(
    scenario: str, every: int
) -> None:
    """A sample of `make faults`."""
    with scene() as stage:
        held = baseline(stage)
        for turn, number in enumerate(range(1, count(stage, scenario) + 1, every)):
            at_point(stage, scenario, number, getattr(errno, ERRNOS[turn % len(ERRNOS)]), held)
    assert stage.found.faults[scenario] >= 2
    assert stage.found.user_code_ran == []
    assert stage.found.leaks == []
    assert stage.found.problems == []


_UNMOUNT_FAILS = """
real = syscalls.umount2
def umount2(target, flags=0):
    if target.count("/") == 4 and target.endswith("/1"):  # /run/STAGING/BUNDLE/work folder
        raise OSError(5, "injected")
    real(target, flags)
syscalls.umount2 = umount2
"""


def test_an_unmount_that_fails_costs_no_file_of_the_user() -> None:
    """A bundle for another runtime has the work folder mounted in it, and is cleared afterwards."""
    with tempfile.TemporaryDirectory(prefix="skt-faults-", dir="/srv") as folder:
        kept = Path(folder, "work", "kept")
        kept.parent.mkdir()
        kept.write_text("a notebook")
        with (
            harness(patch=_UNMOUNT_FAILS) as running,
            make_spec(work=kept.parent, executor="runc") as spec,
            pytest.raises(KernelStartFailed),
            running.container(spec),
        ):
            pass
        assert kept.read_text() == "a notebook"


def test_an_end_that_failed_can_be_asked_for_again() -> None:
    """The launcher keeps what it could not remove, process and layer."""
    with scene() as stage:
        held = baseline(stage)
        assert at_point(stage, "delete", 1, errno.EIO, held)
    assert stage.found.refused == {"delete: step delete": 1}
    assert stage.found.is_clean()

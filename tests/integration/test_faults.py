"""A step that fails leaves nothing behind and names itself; the next start is good."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
from pathlib import Path

import pytest

from sandboxkernel.errors import KernelStartFailed
from sandboxkernel.models import KernelCreate
from sandboxruntime.cgroup import read_layout
from sandboxruntime.launcher import FAULT_VARIABLE
from sandboxruntime.steps import CHILD_STEPS, LAUNCHER_STEPS, Step
from tests.faults import scenarios as faults_scenarios
from tests.faults import scene as faults_scene
from tests.faults.record import ERRNOS
from tests.faults.scenarios import SCENARIOS, playing
from tests.faults.scene import our_cgroups
from tests.faults.served import SERVED, serving
from tests.harness import Harness, harness, make_spec
from tests.support import CGROUP_PARENT, DEADLINE_S, SLOWDOWN, running_daemon, wait_until

SAMPLE = 8  # operations of each scenario


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
            assert our_cgroups() == {}
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


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.timeout(120 * SLOWDOWN)
def test_a_failing_operation_runs_no_user_code_and_leaves_nothing(name: str) -> None:
    """A sample of `make faults`."""
    with playing(name) as one:
        operations = one.operations()
        sample = operations[:: len(operations) // SAMPLE + 1]
        for turn, operation in enumerate(sample):
            one.fail(operation, getattr(errno, ERRNOS[turn % len(ERRNOS)]))
    assert one.found.faults >= 2
    assert one.found.user_code_ran == []
    assert one.found.leaks == []
    assert one.found.problems == []


# Mistakes in the launcher, the operation that brings each to light, and where that is told.
MISTAKES = {
    "problems": (
        "sethostname",
        """
inner = init.CREATE_STEPS[init.Step.HOSTNAME]
def passed_over(context):
    try:
        inner(context)
    except OSError:
        pass
init.CREATE_STEPS[init.Step.HOSTNAME] = passed_over
""",
    ),
    "leaks": (
        "os.write in cgroup.files.write_text < cgroup.files._apply < cgroup.files.apply_writes "
        "< cgroup.group.create",
        "from sandboxruntime.cgroup import lifecycle; lifecycle.undo = lambda *_: None",
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_are_noticed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: nothing is found because there is nothing, and not because nobody looks."""
    place, mistake = MISTAKES[kind]
    monkeypatch.setattr(faults_scene, "PATCH", faults_scene.PATCH + mistake)
    monkeypatch.setattr(faults_scenarios, "SETTLE_S", 1.0)  # what leaks is there for ever
    with playing("cold") as one:
        one.fail([each for each in one.operations() if place in each.label][-1], errno.EIO)
    assert getattr(one.found, kind)


def test_a_fork_that_fails_before_it_is_there_says_why() -> None:
    with playing("fork") as one:
        place = "unshare in guest.zygote._become_container"
        operation = next(each for each in one.operations() if place in each.label)
        one.stage.switch.arm(operation, errno.EIO)
        spec = one.subject()
        outcome = one.scenario.act(one.stage, spec)
        one.scenario.clean(one.stage, spec)
    assert outcome.startswith("step clone") and "injected into syscalls.unshare" in outcome


def test_a_fork_that_was_given_up_costs_no_zygote() -> None:
    """The zygote comes to it when nobody listens any more, and its cgroup has gone."""
    with playing("fork") as one:
        operation = next(o for o in one.operations() if "open_tree in rootfs." in o.label)
        zygote, spec = one.stage.zygote.pid, one.subject()
        os.kill(zygote, signal.SIGSTOP)
        one.stage.switch.arm(operation, errno.EIO)
        outcome = one.scenario.act(one.stage, spec)
        assert outcome.startswith("step rootfs") and one.stage.switch.disarm()
        assert one.scenario.clean(one.stage, spec) == ""
        os.kill(zygote, signal.SIGCONT)
        assert one.good() == ""
        assert one.stage.zygote.is_alive()


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


# Scenario -> part of the operation's place -> how the fault must end.
FOUND = {
    "runc": {
        # The overlay that was to take its place stayed open.
        "syscalls.umount2 in rootfs._detach #4": "step binds",
    },
    "fork": {
        "group.directory_fd": "step cgroup",  # descriptors of the cgroup stayed open
        "socket.socketpair in zygote.ask": "step cgroup",  # the same
        "guest.zygote._receive_orders": "step idmap",  # nobody was told, or of another step
        "pages.__call__": "",  # memory was not copied ahead, and so the kernel ended
    },
    "exec": {
        # A forked launcher returned to its loop, and the program ran with nobody to wait for it.
        "syscalls.prctl in container._wait_for_joined": "step clone",
    },
    "unpark": {
        "cgroup.lifecycle.kill": "step unpark",  # the spare was forgotten, with its descriptor
    },
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_mended(name: str) -> None:
    with playing(name) as one:
        operations = one.operations()
        for place, end in FOUND[name].items():
            one.found.refused.clear()
            one.fail(next(each for each in operations if place in str(each)), errno.ENOMEM)
            assert list(one.found.refused) == [end] * bool(end), place
    assert one.found.faults == len(FOUND[name])
    assert one.found.is_clean(), one.found


def test_an_end_that_failed_can_be_asked_for_again() -> None:
    """The launcher keeps what it could not remove, process and layer."""
    with playing("delete") as one:
        one.fail(one.operations()[0], errno.EIO)
    assert list(one.found.refused) == ["step delete"]
    assert one.found.is_clean()


def test_the_end_of_a_kernel_is_told_although_its_cgroup_cannot_be_removed() -> None:
    """Whoever waits for the end does not wait for the removal, which can be asked for again."""
    with running_daemon() as daemon:
        client = daemon.client()
        kernel = client.create(KernelCreate(kernel_id="stuck", argv=["sleep", "600"]))
        name, point = next(iter(read_layout().hierarchies().items()))
        (cgroup,) = (Path(point) / CGROUP_PARENT).rglob(kernel.id)
        stray = cgroup / "stray"
        stray.mkdir()
        watch = client.watch_exit(kernel.id, kernel.generation)
        client.kill(kernel.id)
        ended = watch.wait(DEADLINE_S)
        assert ended is not None and ended.reason == "signaled", (name, ended)
        assert client.inspect(kernel.id).state == "exited"
        stray.rmdir()
        assert cgroup.exists()  # or there was nothing to ask for again
        client.remove(kernel.id)
        assert not cgroup.exists()


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.timeout(120 * SLOWDOWN)
def test_an_operation_that_fails_costs_a_daemon_no_start_and_no_removal(name: str) -> None:
    """A fork that fails becomes a cold start; what ends is asked for again."""
    with serving(name) as one:
        operations = one.operations()
        # And the reading of what an ended sandbox has used, without which its end is told, too.
        usage = [each for each in operations if "group._read" in each.label][:1]
        for operation in [*operations[5 :: len(operations) // 2 + 1], *usage]:
            one.fail(operation, errno.EIO)
    assert one.found.faults >= 1
    assert one.found.is_clean(), one.found

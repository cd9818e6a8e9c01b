"""What cannot be given back is told, and goes by itself once nothing holds it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandboxkernel.errors import Conflict, KernelNotFound, RemovalPending
from sandboxkernel.models import CheckFinding, Kernel, KernelRestart, Removal
from sandboxruntime.cgroup import Cgroup, read_layout
from tests.support import (
    CGROUP_PARENT,
    DEADLINE_S,
    RunningDaemon,
    by_executor,
    running_daemon,
    sandbox,
    wait_until,
    warm_up,
)

pytestmark = pytest.mark.timeout(300)

# A cgroup parent of its own: to a check that repairs, the cgroups of other daemons are strays.
CONFIG = f"""
c.SandboxKernelDaemon.max_zygotes = 0
c.SandboxKernelDaemon.cgroup_parent = {f"{CGROUP_PARENT}/removals"!r}
c.SandboxKernelDaemon.profiles = {{"default": {{"ephemeral": True}}}}
"""

FORKING = 'c.SandboxKernelDaemon.profiles = {"default": {"ephemeral": True, "spares": 1}}'


@pytest.fixture(params=["native", "runc"])
def own(daemon: RunningDaemon, request: pytest.FixtureRequest) -> Iterator[RunningDaemon]:
    config = CONFIG + (by_executor("runc") if request.param == "runc" else "")
    with running_daemon(config) as running:
        yield running


@contextlib.contextmanager
def sleeper(own: RunningDaemon) -> Iterator[Kernel]:
    """A sandbox that may be gone before the end of the block."""
    with contextlib.suppress(KernelNotFound), sandbox(own, "sleep", "600") as kernel:
        yield kernel


@contextlib.contextmanager
def held_layer(own: RunningDaemon, sandbox_id: str) -> Iterator[Callable[[], None]]:
    """Somebody has mounted a file system in a sandbox's layer; gives what unmounts it."""
    place = own.data_dir / "scratch" / sandbox_id / "held"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], check=True)
    release = contextlib.ExitStack()
    release.callback(subprocess.run, ["umount", str(place)], check=True)
    with release:
        yield release.close


@contextlib.contextmanager
def held_cgroup(sandbox_id: str) -> Iterator[Callable[[], None]]:
    """Somebody has made a cgroup below a sandbox's own; gives what removes it."""
    layout = read_layout()
    top = Path(layout.hierarchies().get("pids") or layout.hierarchies()[""])
    (own,) = (top / CGROUP_PARENT).rglob(sandbox_id)
    place = own / "held"
    place.mkdir()
    release = contextlib.ExitStack()
    release.callback(place.rmdir)
    with release:
        yield release.close


def finding(own: RunningDaemon, name: str, *, repair: bool = False) -> CheckFinding | None:
    """What a check says of a removal; it takes seconds, because it reads the images, too."""
    found = own.client().check(repair=repair).findings
    return next((f for f in found if (f.kind, f.object) == ("removal", name)), None)


def pending(own: RunningDaemon, name: str, *, attempts: int) -> Removal | None:
    state = own.client().inspect(name).removal
    return state if state is not None and state.attempts >= attempts else None


def actions(own: RunningDaemon) -> list[str]:
    return [event.action for event in own.client().events()]


def wait_for_the_next_try(condition: Callable[[], bool]) -> None:
    """Wait for it as long as the intervals have grown to: a check may take long meanwhile."""
    wait_until(condition, timeout_s=3 * DEADLINE_S, what="it is given back by itself")


def is_gone(own: RunningDaemon, name: str) -> bool:
    with contextlib.suppress(KernelNotFound):
        own.client().inspect(name)
        return False
    return True


def leases(own: RunningDaemon) -> list[str]:
    return sorted(path.name for path in (own.run_dir / "leases").iterdir())


def test_a_layer_that_is_held_is_removed_once_it_is_not(own: RunningDaemon) -> None:
    client = own.client()
    with sleeper(own) as kernel, held_layer(own, kernel.id) as let_go:
        with pytest.raises(RemovalPending, match="another file system") as caught:
            client.remove(kernel.id)
        assert kernel.kernel_id in str(caught.value)
        state = wait_until(lambda: pending(own, kernel.id, attempts=2), what="another attempt")
        assert "another file system" in state.reason and state.next_at > state.since
        assert client.inspect(kernel.id).state == "exited"
        told = finding(own, kernel.id)
        assert told is not None and "another file system" in told.problem and "next at" in told.hint
        with pytest.raises(Conflict, match="being removed"):
            client.restart(kernel.id, KernelRestart())
        with sandbox(own, "true"):
            pass  # others start and go meanwhile
        let_go()
        wait_for_the_next_try(lambda: is_gone(own, kernel.id))
    assert not (own.data_dir / "scratch" / kernel.id).exists()
    assert leases(own) == []
    told_of = actions(own)
    assert told_of.count("kernel_removal_failed") >= 2
    assert told_of[-1] == "kernel_removed"


@pytest.mark.parametrize("own", ["native"], indirect=True)
@pytest.mark.parametrize("by", ["remove", "check"])
def test_a_removal_that_is_asked_for_again_is_done_at_once(own: RunningDaemon, by: str) -> None:
    with sleeper(own) as kernel:
        with held_layer(own, kernel.id):
            for _ in range(2):
                with pytest.raises(RemovalPending):
                    own.client().remove(kernel.id)
        if by == "remove":
            own.client().remove(kernel.id)
        else:
            told = finding(own, kernel.id, repair=True)
            assert told is not None and told.repaired
        assert is_gone(own, kernel.id)


@pytest.mark.parametrize("own", ["native"], indirect=True)  # runc removes cgroups below its own
def test_an_end_is_told_also_while_its_cgroup_is_held(own: RunningDaemon) -> None:
    client = own.client()
    with sleeper(own) as kernel, held_cgroup(kernel.id) as let_go:
        client.kill(kernel.id)  # answers once the end is known
        ended = client.inspect(kernel.id)
        assert ended.state == "exited" and ended.exit is not None
        assert ended.exit.signal == 9
        state = wait_until(lambda: pending(own, kernel.id, attempts=2), what="another attempt")
        assert "cannot remove" in state.reason
        let_go()
        wait_for_the_next_try(lambda: client.inspect(kernel.id).removal is None)
        again = client.restart(kernel.id, KernelRestart())
        assert (again.state, again.generation) == ("running", 2)


@pytest.mark.parametrize("own", ["native"], indirect=True)
def test_the_next_daemon_goes_on_with_it(own: RunningDaemon) -> None:
    with sleeper(own) as kernel, held_layer(own, kernel.id) as let_go:
        with pytest.raises(RemovalPending):
            own.client().remove(kernel.id)
        own.kill()
        own.start()
        assert is_gone(own, kernel.id)  # its user has seen the last of it
        assert finding(own, kernel.id) is not None and leases(own) == [kernel.id]
        let_go()
        wait_for_the_next_try(lambda: leases(own) == [])
    left = list((own.data_dir / "scratch" / kernel.id).rglob("*"))
    assert not (own.data_dir / "scratch" / kernel.id).exists(), left


@pytest.mark.parametrize("kind", ["zygotes", "spares"])
def test_what_is_ahead_of_starts_is_given_back_once_nothing_holds_it(
    daemon: RunningDaemon, kind: str
) -> None:
    """A zygote that has died, and with it its spare; the one of them whose cgroup is held."""
    with running_daemon(FORKING) as own:
        zygote = warm_up(own)
        assert zygote is not None
        name = {"zygotes": zygote.id, "spares": zygote.spares[0]}[kind]
        with held_cgroup(name) as let_go:
            for pid in Cgroup.attach(read_layout(), f"{CGROUP_PARENT}/zygotes/{zygote.id}").pids():
                with contextlib.suppress(ProcessLookupError):  # pid 1's end is everybody's
                    os.kill(pid, signal.SIGKILL)
            told = wait_until(lambda: finding(own, name), what="it is told")
            assert "cannot remove" in told.problem and "next at" in told.hint
            assert name in leases(own)
            successor = warm_up(own)  # starts go on meanwhile
            assert successor is not None and successor.id != zygote.id
            let_go()
            wait_for_the_next_try(lambda: finding(own, name) is None)
        wait_for_the_next_try(lambda: not {zygote.id, *zygote.spares} & set(leases(own)))

"""What one user's sandbox notices of another's through the files that both see."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxkernel.daemon.plan import PACKAGES
from sandboxruntime.spec import Bind, Credentials, Spec
from sandboxruntime.steps import Step
from tests.harness import ID_BASE, Attempt, Harness, harness, make_spec

OTHERS = ID_BASE + 65536
SHARED = Path("/srv/sandboxkernel-tests/neighbours")
IMAGE_FILE = "/usr/bin/env"
# Takes every lock on the file that its rights permit, watches it, and tells what it saw at SIGUSR1.
LISTENS = """
import ctypes, fcntl, os, signal, struct
libc = ctypes.CDLL(None, use_errno=True)
path = {path!r}
seen = set()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
signal.signal(signal.SIGIO, lambda *_: seen.add("dnotify"))
folder = os.open(os.path.dirname(path), os.O_RDONLY)
file = os.open(path, os.O_RDONLY)
fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
fcntl.lockf(os.open(path, os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)
for name, act in (
    ("lease", lambda: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)),
    ("dnotify", lambda: fcntl.fcntl(folder, fcntl.F_NOTIFY, fcntl.DN_ACCESS | fcntl.DN_MULTISHOT)),
):
    try:
        act()
        if name == "lease":
            seen.add(name)
    except PermissionError:
        pass
watch = libc.inotify_init1(os.O_NONBLOCK)
for what in (path, os.path.dirname(path)):
    assert libc.inotify_add_watch(watch, what.encode(), 0xFFF) > 0
print("ready", flush=True)
signal.sigwait([signal.SIGUSR1])
try:
    os.read(watch, 65536)
    seen.add("inotify")
except BlockingIOError:
    pass
print(sorted(seen))
"""
# Opens, reads and locks the same file, and says which locks were in its way.
ACTS = """
import fcntl, os, struct
path = {path!r}
found = set()
file = os.open(path, os.O_RDONLY)
os.read(file, 64)
try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    found.add("flock")
wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
if struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, wanted))[0] != fcntl.F_UNLCK:
    found.add("fcntl")
print(sorted(found))
"""
CROSSES = ["fcntl", "flock", "inotify"]


def crossing(listener: Attempt, actor: Attempt, path: str) -> list[str]:
    """What of the one's locks and of the other's acts is felt in the other sandbox."""
    listener.start("python3", "-c", LISTENS.format(path=path))
    assert listener.read_line() == "ready"
    status, felt = actor.run("python3", "-c", ACTS.format(path=path))
    assert status == 0, felt
    os.kill(listener.pid, signal.SIGUSR1)
    status, seen = listener.finish()
    assert status == 0, seen
    return sorted([*eval(felt), *eval(seen)])


@pytest.fixture
def shared() -> Iterator[Path]:
    SHARED.mkdir(parents=True)
    file = SHARED / "file"
    file.write_text("shared")
    yield file
    file.unlink()
    SHARED.rmdir()


@contextlib.contextmanager
def pair(confined: Harness, spec: Spec, other: Spec) -> Iterator[tuple[Attempt, Attempt]]:
    with confined.container(spec) as listener, confined.container(other) as actor:
        yield listener, actor


def same_user(spec: Spec) -> Spec:
    """Another sandbox on the same layer."""
    name = spec.container_id[::-1]
    path = f"{os.path.dirname(spec.cgroups_path)}/{name}"
    return dataclasses.replace(spec, container_id=name, cgroups_path=path)


@pytest.mark.parametrize("executor", ["", "runc"])
def test_locks_and_watches_of_the_image_stay_with_their_user(
    confined: Harness, executor: str
) -> None:
    """Each user's overlay has inodes of its own. The control: two sandboxes of one user."""
    with make_spec(executor=executor) as ours:
        with (
            make_spec(executor=executor, id_base=OTHERS) as theirs,
            pair(confined, ours, theirs) as (listener, actor),
        ):
            assert crossing(listener, actor, IMAGE_FILE) == []
        with pair(confined, ours, same_user(ours)) as (listener, actor):
            assert crossing(listener, actor, IMAGE_FILE) == CROSSES


def in_a_shared_folder(confined: Harness, file: Path, executor: str = "") -> list[str]:
    """Crossings at a read-only folder of the host that a profile mounts for everybody."""
    bind = Bind(str(file.parent), str(file.parent), Credentials(0, 0), read_only=True)
    with contextlib.ExitStack() as stack:
        specs = [stack.enter_context(make_spec(executor=executor, id_base=base))
                 for base in (ID_BASE, OTHERS)]  # fmt: skip
        both = [dataclasses.replace(spec, binds=(*spec.binds, bind)) for spec in specs]
        listener, actor = stack.enter_context(pair(confined, *both))
        return crossing(listener, actor, str(file))


@pytest.mark.parametrize("executor", ["", "runc"])
def test_locks_and_watches_of_a_shared_folder_cross(
    confined: Harness, shared: Path, executor: str
) -> None:
    """They are the host's own inodes: docs/security.md, What is not promised."""
    assert in_a_shared_folder(confined, shared, executor) == CROSSES


def test_leases_and_notices_of_a_shared_folder_would_cross(shared: Path) -> None:
    """The control: without the filter, which refuses them everywhere."""
    with harness([Step.SECCOMP, Step.LANDLOCK]) as unfiltered:
        found = in_a_shared_folder(unfiltered, shared)
    assert found == sorted([*CROSSES, "dnotify", "lease"])


def test_the_runtimes_own_files_tell_nothing_of_others(confined: Harness) -> None:
    """Else a user could see when others' kernels start. The control is the shared folder above."""
    path = f"{PACKAGES}/sandboxruntime/guest/pid1.py"
    with (
        make_spec(executor="runc") as ours,
        make_spec(executor="runc", id_base=OTHERS) as theirs,
        pair(confined, ours, theirs) as (listener, actor),
    ):
        assert crossing(listener, actor, path) == []

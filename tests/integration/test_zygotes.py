"""A zygote or a spare that fails, in whatever way, costs a cold start and never a failed one."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandboxkernel.models import Limits, Zygote
from sandboxruntime.cgroup import Cgroup, read_layout
from sandboxruntime.errors import VerifyError
from sandboxruntime.spec import IdMapping
from sandboxruntime.verify import verify_init
from tests.support import (
    CGROUP_PARENT,
    DEADLINE_S,
    RunningDaemon,
    python_inside,
    running_daemon,
    sandbox,
    wait_until,
    warm_up,
)
from tests.unit.test_runtime_plans import SPEC

PROFILES = """
tight = {"memory": "256M", "pids": 64}
c.SandboxKernelDaemon.profiles = {
    "default": {"spares": 2},
    "bare": {"spares": 0},
    "disk": {"limits": {"io_write": "64M"}},
    "tight": {"spares": 1, "limits": tight},
    "tight_bare": {"spares": 0, "limits": tight},
}
"""


@pytest.fixture(scope="module")
def own() -> Iterator[RunningDaemon]:
    """A daemon whose zygotes may be maltreated."""
    with running_daemon(PROFILES) as running:
        yield running


def zygote_of(daemon: RunningDaemon, profile: str) -> Zygote | None:
    """The zygote that serves a profile's kernels now."""
    answer = daemon.client().zygotes()
    if profile in answer.starting:
        return None
    return next((z for z in answer.zygotes if z.domain == profile and not z.retired), None)


@pytest.fixture
def bare(own: RunningDaemon) -> Zygote:
    """A zygote that keeps no spares."""

    def ready() -> Zygote | None:
        with sandbox(own, as_kernel=True, profile="bare"):
            return zygote_of(own, "bare")

    return wait_until(ready, what="a zygote of bare")


def processes(path: str) -> list[int]:
    """Those of a cgroup below the tests' parent."""
    return Cgroup.attach(read_layout(), f"{CGROUP_PARENT}/{path}").pids()


def start_works(daemon: RunningDaemon, profile: str | None = None) -> tuple[str, str]:
    """A kernel starts and runs code; its path, and why it was cold."""
    with sandbox(daemon, as_kernel=True, profile=profile) as kernel:
        assert python_inside(daemon, kernel, "print(6 * 7)") == (0, "42\n")
        found = daemon.client().inspect(kernel.id)
        assert found.state == "running"
        return found.start_path, found.cold_reason


def test_a_fork_on_demand_says_nothing_of_a_cold_start(own: RunningDaemon, bare: Zygote) -> None:
    assert start_works(own, "bare") == ("warm", "")


def test_kernels_with_a_cap_on_disk_traffic_are_forked_on_demand(own: RunningDaemon) -> None:
    """No spare is made for them, whose cgroup would need to know the disk."""
    found = wait_until(
        lambda: (path := start_works(own, "disk"))[0] != "cold" and path, what="a zygote of disk"
    )
    assert found == ("warm", "")


def test_a_wedged_zygote_is_passed_by_and_replaced(own: RunningDaemon, bare: Zygote) -> None:
    (pid,) = [pid for pid in processes(f"zygotes/{bare.id}") if runs_python_of_the_image(pid)]
    overlays = launcher_overlays(own)
    os.kill(pid, signal.SIGSTOP)
    path, reason = start_works(own, "bare")
    assert path == "cold" and reason.startswith("the fork failed: ")
    assert wait_until(
        lambda: start_works(own, "bare")[0] == "warm", what="a fork of the zygote's successor"
    )
    wait_until(lambda: not is_alive(pid), what="the end of the wedged zygote")
    wait_until(lambda: launcher_overlays(own) == overlays, what="the end of its overlay")


def test_a_wedged_spare_is_passed_by(own: RunningDaemon) -> None:
    zygote = warm_up(own)
    for spare in zygote.spares:
        for pid in processes(f"spares/{spare}"):
            os.kill(pid, signal.SIGSTOP)
    path, reason = start_works(own)
    assert path == "cold" and "no answer within" in reason


def test_a_spare_that_dies_is_made_again(own: RunningDaemon) -> None:
    zygote = warm_up(own)
    for spare in zygote.spares:
        for pid in processes(f"spares/{spare}"):
            os.kill(pid, signal.SIGKILL)
    start_works(own)
    wait_until(lambda: set(warm_up(own).spares) - set(zygote.spares), what="new spares")


def test_a_zygote_out_of_memory_costs_a_cold_start(own: RunningDaemon, bare: Zygote) -> None:
    """Its limit is lowered to what it has: before long, a page kills it in the middle of a fork."""
    points = read_layout().hierarchies()
    name, file = next(
        (each, file)
        for each, file in (("memory", "memory.limit_in_bytes"), ("", "memory.max"))
        if each in points
    )
    path = Path(points[name]) / CGROUP_PARENT / "zygotes" / bare.id
    for _ in range(50):
        with contextlib.suppress(FileNotFoundError), gone_is_no_error():
            squeeze(path, file)
        start_works(own, "bare")
        now = zygote_of(own, "bare")
        if now is None or now.id != bare.id:
            return
    pytest.fail("the zygote has survived its limit")


def layout(pid: int) -> dict[str, str]:
    """Where the loader, stack and heap of a process begin: what an address tells."""
    found: dict[str, str] = {}
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        words = line.split()
        name = os.path.basename(words[5]) if len(words) > 5 else ""
        if name.startswith(("ld-", "ld.", "[stack]", "[heap]", "libc.")):
            found.setdefault(name, words[0].partition("-")[0])
    assert len(found) >= 3, found
    return found


def test_the_layout_of_memory_is_a_zygotes_own(own: RunningDaemon, bare: Zygote) -> None:
    """Its kernels have it, too (the control); daemon, launcher and the next zygote have others."""

    def program(zygote: Zygote) -> int:
        (pid,) = [p for p in processes(f"zygotes/{zygote.id}") if runs_python_of_the_image(p)]
        return pid

    first = layout(program(bare))
    with sandbox(own, as_kernel=True, profile="bare") as kernel:
        assert kernel.pid is not None and own.client().inspect(kernel.id).start_path == "warm"
        assert layout(kernel.pid).items() & first.items() >= {("[stack]", first["[stack]"])}
    os.kill(program(bare), signal.SIGKILL)

    def successor() -> Zygote | None:
        with sandbox(own, as_kernel=True, profile="bare"):
            now = zygote_of(own, "bare")
        return now if now is not None and now.id != bare.id else None

    others = [program(wait_until(successor, what="another zygote")), own.process.pid, own.launcher]
    for pid in others[1:]:  # nor is its program theirs
        assert not os.path.samefile(f"/proc/{others[0]}/exe", f"/proc/{pid}/exe")
    for pid in others:
        assert not layout(pid).items() & first.items()


def test_a_class_starts_while_its_zygote_dies(own: RunningDaemon, bare: Zygote) -> None:
    def start(number: int) -> str:
        if number == 4:
            for pid in processes(f"zygotes/{bare.id}"):
                os.kill(pid, signal.SIGKILL)
        return start_works(own, "bare")[0]

    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(start, range(12)))
    assert set(paths) <= {"warm", "cold"} and "cold" in paths


def test_without_memory_to_spare_nothing_is_made_ahead() -> None:
    with running_daemon("c.SandboxKernelDaemon.memory_reserve = 1.0\n") as daemon:
        for _ in range(2):
            assert start_works(daemon) == ("cold", "memory of the host is short")
        assert daemon.client().zygotes().zygotes == []


@contextlib.contextmanager
def gone_is_no_error() -> Iterator[None]:
    """A control file that was open when its cgroup was removed."""
    try:
        yield
    except OSError as exc:
        if exc.errno != errno.ENODEV:
            raise


def squeeze(path: Path, file: str) -> None:
    """Lower the limit of a cgroup until nothing more can be reclaimed."""
    usage = int((path / file.replace("limit", "usage").replace("max", "current")).read_text())
    while usage > 0:
        try:
            (path / file).write_text(str(usage))
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
            return
        usage -= 128 * 1024


def test_pid_1_is_held_to_its_spec_and_the_control_is_not_confined(own: RunningDaemon) -> None:
    """It shares the user namespace with the kernel; a child of a zygote might keep its power."""
    with sandbox(own, as_kernel=True) as kernel:
        kernels_pid = own.client().inspect(kernel.id).pid
        status = Path(f"/proc/{kernels_pid}/status").read_text()
        init = int(status.split("PPid:")[1].split()[0])
        uid = int(status.split("Uid:")[1].split()[0])
        mapping = (IdMapping(container_id=1000, host_id=uid, size=1),)
        spec = dataclasses.replace(SPEC, uid_mappings=mapping)
        filters = int(status.split("Seccomp_filters:")[1].split()[0])
        pidfd = os.pidfd_open(init)
        verify_init(init, pidfd, spec, filters=filters)
        os.close(pidfd)
    with subprocess.Popen(["sleep", "60"]) as bare_process:
        pidfd = os.pidfd_open(bare_process.pid)
        with pytest.raises(VerifyError) as caught:
            verify_init(bare_process.pid, pidfd, spec, filters=filters)
        assert caught.value.check == "credentials"
        bare_process.kill()
        bare_process.wait()
        with pytest.raises(VerifyError, match="has ended"):
            verify_init(bare_process.pid, pidfd, spec, filters=filters)
        os.close(pidfd)


def launcher_overlays(daemon: RunningDaemon) -> int:
    """How many there are: their names say nothing of whose they are."""
    pid = daemon.process.pid
    launcher = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
    return Path(f"/proc/{launcher}/mountinfo").read_text().count(" - overlay ")


def runs_python_of_the_image(pid: int) -> bool:
    """Not pid 1 of its container, which is a fork of the launcher."""
    return b"zygote.py" in Path(f"/proc/{pid}/cmdline").read_bytes()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


@pytest.mark.parametrize("profile", ["tight", "tight_bare"])
def test_caps_hold_in_kernels_that_were_forked(own: RunningDaemon, profile: str) -> None:
    """On demand and from a spare: what is in force, and a memory bomb."""
    expected = "spare" if profile == "tight" else "warm"

    wait_until(lambda: start_works(own, profile)[0] != "cold", what=f"a zygote of {profile}")
    if expected == "spare":
        warm_up(own, profile)
    with sandbox(own, as_kernel=True, profile=profile, limits=Limits(cpus=0.5)) as kernel:
        found = own.client().inspect(kernel.id)
        assert (found.start_path, found.limits.memory_bytes) == (expected, 256 << 20)
        usage = own.client().stats(kernel.id)
        assert (usage.memory_limit_bytes, usage.pids_limit, usage.cpus) == (256 << 20, 64, 0.5)
        bomb = """
import os, signal
made = []
try:
    while len(made) < 200:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        made.append(pid)
except BlockingIOError:
    print('refused', len(made) < 64)
for pid in made:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""
        code, text = python_inside(own, kernel, bomb)
        assert text.strip() == "refused True", (code, text)
        python_inside(own, kernel, "data = b'x' * (400 << 20)")
        watch = own.client().watch_exit(kernel.id, found.generation)
        ended = watch.wait(DEADLINE_S)
        assert ended is not None and ended.reason == "oom_killed", ended


def keys_of(uid: int) -> int:
    """Keys that count towards a host uid's quota (proc_key-users(5))."""
    for line in Path("/proc/key-users").read_text().splitlines():
        owner, rest = line.split(":")
        if int(owner) == uid:
            return int(rest.split()[2].split("/")[0])
    return 0


def test_a_forked_kernel_has_one_keyring_which_its_zygotes_uid_pays_for(
    own: RunningDaemon, bare: Zygote
) -> None:
    """Not its user's uid: that would end at a hundred kernels (keyrings(7), maxkeys)."""
    (pid,) = [pid for pid in processes(f"zygotes/{bare.id}") if runs_python_of_the_image(pid)]
    uid = Path(f"/proc/{pid}").stat().st_uid
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            kernel = stack.enter_context(sandbox(own, as_kernel=True, profile="bare"))
            assert own.client().inspect(kernel.id).start_path == "warm"
        # Linux frees the keyrings of those that have ended a while later.
        wait_until(lambda: keys_of(uid) == 3, what="one keyring a kernel")


def test_a_prune_leaves_what_zygotes_live_in(daemon: RunningDaemon) -> None:
    warm_up(daemon)
    zygotes = [zygote.id for zygote in daemon.client().zygotes().zygotes]
    scratch = daemon.data_dir / "scratch"
    stale = scratch / "0123456789ab"
    stale.mkdir()
    assert all((scratch / zygote).is_dir() for zygote in zygotes)  # or there is nothing to see
    removed = daemon.client().prune().removed
    assert f"scratch {stale.name}" in removed and not stale.exists()
    assert "scratch .boot" not in removed
    assert all((scratch / zygote).is_dir() for zygote in zygotes)


BABBLING = """
from sandboxkernel.daemon import app
source = app._guest_source
app._guest_source = lambda name: {code!r} if name == "zygote.py" else source(name)
from sandboxkernel.daemon.__main__ import main
main()
"""
SAYING = """
import socket, sys, time
socket.socket(fileno=int(sys.argv[2])).sendall({word!r})
time.sleep(60)
"""


@pytest.mark.parametrize("word", [b"5", b"[" * 65536, b'{"unfit": 5}', b"\xff\0"])
def test_a_zygote_that_says_anything_is_unfit_and_not_made_again_at_once(word: bytes) -> None:
    """What it has imported may write to its socket."""
    source = BABBLING.format(code=SAYING.format(word=word)).replace("{", "{{").replace("}", "}}")
    with running_daemon(program=("-c", source)) as babbled:
        with sandbox(babbled, as_kernel=True) as kernel:
            assert kernel.start_path == "cold"
        client = babbled.client()
        wait_until(lambda: "no zygote for default" in babbled.log_path.read_text())
        wait_until(lambda: not client.zygotes().starting)
        with sandbox(babbled, as_kernel=True) as kernel:
            assert client.inspect(kernel.id).cold_reason.startswith(
                "no zygote: the zygote is unfit: it says"
            )
            assert not client.zygotes().starting
        assert "Traceback" not in babbled.log_path.read_text()

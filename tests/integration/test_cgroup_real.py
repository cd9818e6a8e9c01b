"""Real cgroups: each limit stops what it should, and nothing is left behind."""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from sandboxruntime import syscalls
from sandboxruntime.cgroup import (
    Cgroup,
    IoLimit,
    Limits,
    block_device_of,
    create_parent,
    read_layout,
)
from sandboxruntime.errors import HostError, StateError

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]
MIB = 1 << 20
LAYOUT = read_layout()


@pytest.fixture
def parent() -> Iterator[str]:
    name = f"sandboxkernel-test-{secrets.token_hex(4)}"
    yield name
    for point in LAYOUT.hierarchies().values():
        if os.path.isdir(f"{point}/{name}"):
            left = [entry.name for entry in os.scandir(f"{point}/{name}") if entry.is_dir()]
            os.rmdir(f"{point}/{name}")  # fails, as it should, if a test left a sub-cgroup
            assert left == []


@pytest.fixture
def make(parent: str) -> Iterator[Callable[[Limits], Cgroup]]:
    groups: list[Cgroup] = []

    def create(limits: Limits) -> Cgroup:
        groups.append(Cgroup.create(LAYOUT, f"{parent}/k{len(groups)}", limits))
        return groups[-1]

    yield create
    for group in groups:
        group.kill()
        group.remove()
        group.remove()


def run_inside(group: Cgroup, code: str) -> subprocess.Popen[bytes]:
    """Start Python that enters the cgroup through the passed descriptors, before its first line."""
    fds = group.entry_fds()
    if "" in group.directories:  # the launcher clones into v2; subprocess cannot
        fds.append(os.open(f"{group.directories['']}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
    enter = f"import os\nfor fd in {fds}: os.write(fd, b'0'); os.close(fd)\n"
    try:
        return subprocess.Popen(
            [sys.executable, "-S", "-c", enter + code],
            pass_fds=fds,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
    finally:
        for fd in fds:
            os.close(fd)


def wait_until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def end(process: subprocess.Popen[bytes]) -> int:
    assert process.stdin and process.stdout
    process.stdin.close()
    process.stdout.close()
    return process.wait(20)


def test_memory_hog_is_killed_and_counted(make: Callable[[Limits], Cgroup]) -> None:
    group = make(Limits(memory_bytes=64 * MIB, pids=32))
    notify_fd = group.oom_notify_fd()
    poller = select.poll()
    poller.register(notify_fd, select.POLLIN)
    assert poller.poll(0) == []
    process = run_inside(group, "x = []\nwhile True: x.append(b'x' * (1 << 20))")
    assert poller.poll(20_000)
    assert end(process) == -signal.SIGKILL
    group.acknowledge_oom(notify_fd)
    assert poller.poll(0) == []
    usage = group.usage()
    assert usage.oom_kills >= 1
    assert 32 * MIB < usage.memory_peak_bytes <= 64 * MIB


def test_what_has_used_up_its_processor_time_ends_all_the_same(
    make: Callable[[Limits], Cgroup],
) -> None:
    """Before Linux 6.18 what is on its way out is throttled, too, and gives memory back slowly."""
    group = make(Limits(memory_bytes=1024 * MIB, pids=64))
    process = run_inside(
        group,
        "held = bytearray(b'x') * (400 << 20)\n"
        "for _ in range(20):\n  if os.fork() == 0: break\n"
        "else: os.write(1, b'r')\n"
        "while True: pass",
    )
    assert process.stdout and process.stdout.read(1) == b"r"
    group.update(Limits(memory_bytes=1024 * MIB, pids=64, cpu_quota_us=1000))
    wait_until(lambda: group.usage().cpu_throttled_us > 0)
    group.kill(5.0)
    assert group.pids() == []
    assert end(process) == -signal.SIGKILL


def test_memory_within_the_limit_is_fine(make: Callable[[Limits], Cgroup]) -> None:
    group = make(Limits(memory_bytes=128 * MIB))
    assert end(run_inside(group, "x = bytearray(90 << 20)")) == 0
    assert group.usage().oom_kills == 0


def test_fork_bomb_stops_at_the_limit_and_dies_with_the_cgroup(
    make: Callable[[Limits], Cgroup],
) -> None:
    group = make(Limits(memory_bytes=256 * MIB, pids=20))
    bomb = """
import sys, time
made = 0
for _ in range(100):
    try:
        if os.fork() == 0:
            os.setsid()
            time.sleep(60)
            os._exit(0)
        made += 1
    except BlockingIOError:
        break
sys.stdout.write(f"{made}\\n"); sys.stdout.flush()
time.sleep(60)
"""
    process = run_inside(group, bomb)
    assert process.stdout
    assert process.stdout.readline() == b"19\n"
    assert len(group.pids()) == 20
    assert group.usage().pids == 20
    group.kill()
    assert group.pids() == []
    assert end(process) == -signal.SIGKILL


def test_cpu_quota_throttles(make: Callable[[Limits], Cgroup]) -> None:
    group = make(Limits(cpu_quota_us=20_000, cpu_weight=100))
    burn = "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass"
    assert end(run_inside(group, burn)) == 0
    usage = group.usage()
    assert usage.cpu_throttled_us > 100_000
    assert usage.cpu_usage_us < 600_000  # a fifth of a core, with room for start-up and periods


def test_every_hierarchy_holds_the_process(make: Callable[[Limits], Cgroup]) -> None:
    group = make(Limits(pids=8))
    process = run_inside(group, "print('in', flush=True)\nimport sys\nsys.stdin.read()")
    assert process.stdout
    process.stdout.readline()
    with open(f"/proc/{process.pid}/cgroup", encoding="ascii") as file:
        assert group.check_membership(file.read()) == []
    with open("/proc/self/cgroup", encoding="ascii") as file:
        assert len(group.check_membership(file.read())) == len(group.membership())
    assert group.pids() == [process.pid]
    assert end(process) == 0


def test_a_process_can_be_cloned_into_the_v2_directory(make: Callable[[Limits], Cgroup]) -> None:
    group = make(Limits(pids=8))
    directory_fd = group.directory_fd()
    if directory_fd < 0:
        pytest.skip("no v2")
    pid, pidfd = syscalls.clone3(syscalls.CloneFlag(0), cgroup_fd=directory_fd)
    if pid == 0:
        signal.pause()
        os._exit(0)
    os.close(directory_fd)
    assert group.pids() == [pid]
    group.kill()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    os.close(pidfd)


def test_enter_moves_a_running_process(make: Callable[[Limits], Cgroup]) -> None:
    group = make(Limits(pids=8))
    process = subprocess.Popen(["sleep", "60"])
    group.enter(process.pid)
    with open(f"/proc/{process.pid}/cgroup", encoding="ascii") as file:
        assert group.check_membership(file.read()) == []
    group.kill()
    assert process.wait(10) == -signal.SIGKILL


def cpu_ticks(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_freeze_stops_and_kill_works_on_the_frozen(make: Callable[[Limits], Cgroup]) -> None:
    group = make(Limits(pids=8))
    process = run_inside(group, "print('in', flush=True)\nwhile True: pass")
    assert process.stdout
    process.stdout.readline()
    assert not group.is_frozen()
    group.freeze()
    assert group.is_frozen()
    before = cpu_ticks(process.pid)
    time.sleep(0.2)
    assert cpu_ticks(process.pid) == before
    group.thaw()
    assert not group.is_frozen()
    wait_until(lambda: cpu_ticks(process.pid) > before)
    group.freeze()
    group.kill()
    assert end(process) == -signal.SIGKILL


def test_v1_freezer_is_thawed_before_killing(make: Callable[[Limits], Cgroup]) -> None:
    if "freezer" not in LAYOUT.v1:
        pytest.skip("no v1 freezer")
    group = make(Limits(pids=8))
    process = run_inside(group, "print('in', flush=True)\nwhile True: pass")
    assert process.stdout
    process.stdout.readline()
    with open(f"{LAYOUT.directory('freezer', group.path)}/freezer.state", "w") as file:
        file.write("FROZEN")
    wait_until(group.is_frozen)
    group.kill()
    assert end(process) == -signal.SIGKILL


def test_kill_reaches_a_process_that_is_only_in_a_v1_hierarchy(
    make: Callable[[Limits], Cgroup],
) -> None:
    if "pids" not in LAYOUT.v1:
        pytest.skip("no v1 pids controller")
    group = make(Limits(pids=8))
    process = subprocess.Popen(["sleep", "60"])
    with open(f"{LAYOUT.directory('pids', group.path)}/cgroup.procs", "w") as file:
        file.write(str(process.pid))
    group.kill()
    assert process.wait(10) == -signal.SIGKILL


def test_pure_v1_freezes_and_kills_without_the_v2_tree(parent: str) -> None:
    if not LAYOUT.v1:
        pytest.skip("v2 only")
    from dataclasses import replace

    from sandboxruntime.cgroup import Mode

    layout = replace(LAYOUT, mode=Mode.V1, v2=None, v2_controllers=frozenset())
    group = Cgroup.create(layout, f"{parent}/v1only", Limits(pids=8))
    try:
        process = run_inside(group, "print('in', flush=True)\nwhile True: pass")
        assert process.stdout
        process.stdout.readline()
        group.freeze()
        assert group.is_frozen()
        group.kill()
        assert end(process) == -signal.SIGKILL
    finally:
        group.kill()
        group.remove()


def test_update_raises_lowers_and_lifts(make: Callable[[Limits], Cgroup]) -> None:
    group = make(Limits(memory_bytes=64 * MIB, pids=8))
    for limits in (
        Limits(memory_bytes=256 * MIB, swap_bytes=MIB, pids=16, cpu_quota_us=10_000),
        Limits(memory_bytes=32 * MIB, cpu_weight=50),
        Limits(),
        Limits(memory_bytes=64 * MIB),
    ):
        group.update(limits)  # each write is read back inside


def test_lowering_below_what_is_in_use_is_refused_not_fatal(
    make: Callable[[Limits], Cgroup],
) -> None:
    group = make(Limits(memory_bytes=256 * MIB))
    process = run_inside(
        group, "x = bytearray(100 << 20)\nprint('in', flush=True)\nimport sys\nsys.stdin.read()"
    )
    assert process.stdout
    process.stdout.readline()
    with pytest.raises(HostError):
        group.update(Limits(memory_bytes=16 * MIB))
    assert group.usage().oom_kills == 0
    assert end(process) == 0


def test_io_limit_slows_synchronous_writes(
    make: Callable[[Limits], Cgroup], tmp_path: object
) -> None:
    path = f"{tmp_path}/file"
    try:
        major, minor = block_device_of(str(tmp_path))
    except HostError as exc:
        pytest.skip(str(exc))
    group = make(Limits(io=(IoLimit(major, minor, write_bytes_per_s=2 * MIB),)))
    code = f"""
import mmap
fd = os.open({path!r}, os.O_CREAT | os.O_WRONLY | os.O_DIRECT, 0o600)
block = mmap.mmap(-1, 1 << 20)
for _ in range(3): os.write(fd, block)
"""
    start = time.monotonic()
    assert end(run_inside(group, code)) == 0
    assert time.monotonic() - start > 0.8
    assert group.usage().io_write_bytes >= 3 * MIB
    start = time.monotonic()
    group.update(Limits())
    assert end(run_inside(group, code)) == 0
    assert time.monotonic() - start < 0.8


def test_devices_outside_the_list_cannot_be_opened(make: Callable[[Limits], Cgroup]) -> None:
    if "devices" not in LAYOUT.v1 or not os.path.exists("/dev/loop-control"):
        pytest.skip("no v1 devices controller")
    group = make(Limits())
    code = """
import errno, sys
os.close(os.open("/dev/null", os.O_RDWR)); os.read(os.open("/dev/urandom", os.O_RDONLY), 1)
try:
    os.open("/dev/loop-control", os.O_RDWR)
except OSError as exc:
    sys.exit(exc.errno)
"""
    assert end(run_inside(group, code)) == 1  # EPERM


def test_an_existing_cgroup_is_not_taken_over(make: Callable[[Limits], Cgroup]) -> None:
    group = make(Limits())
    with pytest.raises(StateError):
        Cgroup.create(LAYOUT, group.path, Limits())
    assert Cgroup.attach(LAYOUT, group.path).membership() == group.membership()
    with pytest.raises(StateError):
        Cgroup.attach(LAYOUT, group.path + "x")


def test_a_failed_creation_leaves_nothing(parent: str) -> None:
    with pytest.raises(HostError) as caught:
        Cgroup.create(LAYOUT, f"{parent}/x", Limits(io=(IoLimit(9999, 1, 1),)))
    assert caught.value.hint
    for point in LAYOUT.hierarchies().values():
        assert not os.path.exists(f"{point}/{parent}")


def test_a_ceiling_holds_over_its_children(parent: str) -> None:
    ceiling = create_parent(LAYOUT, f"{parent}/user", Limits(memory_bytes=48 * MIB, pids=10))
    create_parent(LAYOUT, f"{parent}/user", Limits(memory_bytes=64 * MIB, pids=10))
    group = Cgroup.create(LAYOUT, f"{parent}/user/k", Limits(memory_bytes=512 * MIB))
    try:
        assert end(run_inside(group, "x = bytearray(200 << 20)")) == -signal.SIGKILL
        assert ceiling.usage().memory_peak_bytes <= 64 * MIB
    finally:
        group.kill()
        group.remove()
        ceiling.remove()


def test_a_populated_cgroup_is_not_removed(make: Callable[[Limits], Cgroup]) -> None:
    group = make(Limits())
    process = run_inside(group, "print('in', flush=True)\nimport sys\nsys.stdin.read()")
    assert process.stdout
    process.stdout.readline()
    with pytest.raises(StateError):
        group.remove(timeout_s=0.1)
    assert end(process) == 0
    group.remove()
    with pytest.raises(FileNotFoundError):
        group.usage()

"""What a sandbox can see and hold: masks, descriptors, mounts, devices, the work folder."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxkernel.errors import KernelStartFailed, WorkFolderError
from sandboxruntime.errors import VerifyError
from sandboxruntime.spec import MASKED_PATHS, Credentials
from sandboxruntime.steps import Step
from tests.escape.attacks.canaries import file_capability
from tests.escape.attacks.views import FILE_CAPABILITY
from tests.harness import ID_BASE, Harness, harness, make_spec

WORK = Path("/srv/sandboxkernel-tests/escape")


@pytest.fixture
def work() -> Iterator[Path]:
    WORK.mkdir(parents=True, exist_ok=True)
    yield WORK
    subprocess.run(["rm", "-rf", str(WORK)], check=True)


def python(running: Harness, source: str, **changes: Any) -> str:
    with make_spec(**changes) as spec, running.container(spec) as attempt:
        _, output = attempt.run("python3", "-c", source)
    return output.strip()


MASKED = """
import json, os
def look(path):
    try:
        return len(open(path, 'rb').read(64)) if not os.path.isdir(path) else len(os.listdir(path))
    except OSError:
        return -1
print(json.dumps({p: look(p) for p in ['/proc/keys', '/proc/timer_list', '/proc/interrupts',
                                       '/proc/vmallocinfo', '/proc/acpi', '/proc/sysvipc']}))
"""


def test_masked_files_are_empty_and_are_not_without_the_mask(confined: Harness) -> None:
    masked = json.loads(python(confined, MASKED))
    assert all(size <= 0 for size in masked.values()), masked
    control = json.loads(python(confined, MASKED, masked_paths=()))
    assert control["/proc/interrupts"] > 0
    assert control["/proc/sysvipc"] > 0


WRITABLE = """
import os
found = []
for folder, names, files in os.walk(%r):
    # A process's own files are its own affair: what it may change there is of itself.
    names[:] = [n for n in names if not n.isdigit() and n not in ('self', 'thread-self')]
    for name in files:
        try:
            os.close(os.open(folder + '/' + name, os.O_WRONLY))
        except OSError:
            continue
        found.append(folder + '/' + name)
print(len(found))
"""
SYSCTL = WRITABLE % "/proc/sys"
PROC = WRITABLE % "/proc"
NULLS = "import os; print(sum(os.path.exists(p) and os.stat(p).st_rdev == os.makedev(1, 3) for p in {paths!r}))"


def test_no_sysctl_can_be_opened_for_writing(confined: Harness) -> None:
    assert python(confined, SYSCTL) == "0"


def test_nothing_in_proc_but_masks_and_oneself_can_be_opened_for_writing(confined: Harness) -> None:
    """A mask is the null device. The control has neither masks nor read-only paths."""
    masks = python(confined, NULLS.format(paths=MASKED_PATHS))
    assert int(masks) > 0
    assert python(confined, PROC) == masks
    control = python(confined, PROC, masked_paths=(), read_only_paths=())
    assert int(control) > 0


def test_sysctls_of_the_own_namespaces_could_be_written_without_the_read_only_paths() -> None:
    with harness(
        [Step.CAPABILITIES, Step.SECCOMP, Step.LANDLOCK, Step.NO_NEW_PRIVS], keep_capabilities=True
    ) as running:
        assert python(running, SYSCTL) == "0"
        assert int(python(running, SYSCTL, read_only_paths=())) > 0


def test_only_the_declared_descriptors_are_open(confined: Harness) -> None:
    source = """
import os
print(sorted((int(fd), os.readlink(f'/proc/self/fd/{fd}').split(':')[0]) for fd in os.listdir('/proc/self/fd')
             if os.path.lexists(f'/proc/self/fd/{fd}')))
"""
    assert python(confined, source) == "[(0, '/dev/null'), (1, 'pipe'), (2, 'pipe')]"


def test_the_device_directory_holds_what_it_should_and_nothing_can_be_added(
    confined: Harness,
) -> None:
    source = """
import os
print(sorted(os.listdir('/dev')))
for name, kind in (('null', 1), ('zero', 1), ('full', 1), ('random', 1), ('urandom', 1), ('tty', 5)):
    assert os.major(os.stat('/dev/' + name).st_rdev) == kind
try:
    open('/dev/new', 'w')
    print('ESCAPED')
except OSError as error:
    print(error.strerror)
"""
    names, refusal = python(confined, source).splitlines()
    assert names == str(sorted([
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout",
        "tty", "urandom", "zero",
    ]))  # fmt: skip
    assert refusal == "Permission denied"


def test_a_device_node_in_the_layer_cannot_be_opened(confined: Harness) -> None:
    with make_spec() as spec:
        node = Path(spec.rootfs.upper) / "home" / "sandbox" / "disk"
        os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, 1))  # /dev/mem's number
        os.chown(node, ID_BASE + 1000, ID_BASE + 1000)
        with confined.container(spec) as attempt:
            _, output = attempt.run("python3", "-c", "open('/home/sandbox/disk')")
        assert "PermissionError" in output


def test_a_set_user_id_program_in_the_layer_gains_nothing(confined: Harness) -> None:
    with make_spec() as spec:
        program = Path(spec.rootfs.upper) / "home" / "sandbox" / "id"
        program.write_bytes(Path("/usr/bin/id").read_bytes())
        os.chown(program, ID_BASE, ID_BASE)
        program.chmod(0o6755)
        with confined.container(spec) as attempt:
            _, output = attempt.run("/home/sandbox/id", "-u")
        assert output.strip() == "1000"


@pytest.mark.parametrize("root_uid", [None, 0, ID_BASE, ID_BASE + 1000])
@pytest.mark.parametrize("owner", [Credentials(0, 0), Credentials(12345, 12345)])
def test_a_programs_capabilities_in_the_work_folder_are_passed_over(
    work: Path, owner: Credentials, root_uid: int | None
) -> None:
    """Without the three defences, too, with which the same program in the layer gains them: see
    the attack "gain a capability by a program's file capabilities", of which this has the control."""
    program = work / "cat"
    program.write_bytes(Path("/usr/bin/cat").read_bytes())
    program.chmod(0o755)
    os.setxattr(program, "security.capability", file_capability(root_uid))
    lacking = FILE_CAPABILITY
    with (
        harness(lacking.steps, patch=lacking.patch) as running,
        make_spec(work=work, owner=owner) as spec,
        running.container(spec) as attempt,
    ):
        _, output = attempt.run(str(program), "/proc/self/status")
    assert "CapPrm:\t0000000000000000" in output


def test_nothing_of_the_host_is_in_the_mount_table(confined: Harness) -> None:
    output = python(confined, "print(open('/proc/self/mountinfo').read())")
    points = [line.split(" ")[4] for line in output.splitlines()]
    assert points[0] == "/"
    assert not [
        p for p in points if not p.startswith(("/proc", "/dev", "/tmp", "/run")) and p != "/"
    ]
    assert "shared:" not in output


def test_a_host_whose_mounts_propagate_hands_none_of_them_in(work: Path) -> None:
    """As systemd sets every host up. What it mounts later must not appear in the work folder."""
    with harness(shared_mounts=True) as running:
        launchers = Path(f"/proc/{running.pid}/mountinfo").read_text()
        assert "master:" in launchers  # the control: they do reach the launcher
        with make_spec(work=work) as spec, running.container(spec) as attempt:
            facts = attempt.verify()
    assert "master:" not in facts.mountinfo and "shared:" not in facts.mountinfo


def test_only_own_processes_are_visible(confined: Harness) -> None:
    source = "import os; print(sorted(int(n) for n in os.listdir('/proc') if n.isdigit()))"
    assert python(confined, source) == "[1, 2]"


def test_a_crash_leaves_no_core(confined: Harness, work: Path) -> None:
    with make_spec(work=work) as spec, confined.container(spec) as attempt:
        status, _ = attempt.run("python3", "-c", f"import os; os.chdir({str(work)!r}); os.abort()")
    assert status is not None
    assert os.WTERMSIG(status) == 6
    assert not os.WCOREDUMP(status)
    assert list(work.iterdir()) == []


def test_the_hosts_sockets_are_out_of_reach(confined: Harness, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket() as loopback:
        abstract.bind("\0sandboxkernel-test")
        abstract.listen()
        loopback.bind(("127.0.0.1", 0))
        loopback.listen()
        port = loopback.getsockname()[1]
        source = f"""
import socket
for family, address in ((socket.AF_UNIX, '\\0sandboxkernel-test'), (socket.AF_INET, ('127.0.0.1', {port}))):
    try:
        socket.socket(family).connect(address)
        print('ESCAPED')
    except OSError as error:
        print(error.strerror)
"""
        assert python(confined, source).splitlines() == ["Connection refused"] * 2
        # The control: the same addresses answer on the host.
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("\0sandboxkernel-test")
        socket.create_connection(("127.0.0.1", port)).close()


def test_the_work_folder_belongs_to_its_owner_on_both_sides(confined: Harness, work: Path) -> None:
    os.chown(work, 12345, 12346)
    source = f"""
import os
folder = {str(work)!r}
open(folder + '/inside', 'w').write('hello')
print(os.stat(folder).st_uid, os.stat(folder + '/inside').st_uid)
"""
    with (
        make_spec(work=work, owner=Credentials(12345, 12346)) as spec,
        confined.container(spec) as attempt,
    ):
        _, output = attempt.run("python3", "-c", source)
    assert output.strip() == "1000 1000"
    assert (os.stat(work / "inside").st_uid, os.stat(work / "inside").st_gid) == (12345, 12346)


def test_files_of_others_in_the_work_folder_cannot_be_written(
    confined: Harness, work: Path
) -> None:
    os.chown(work, 12345, 12345)
    theirs = work / "theirs"
    theirs.write_text("x")
    theirs.chmod(0o644)
    with (
        make_spec(work=work, owner=Credentials(12345, 12345)) as spec,
        confined.container(spec) as attempt,
    ):
        _, output = attempt.run("python3", "-c", f"open({str(theirs)!r}, 'a').write('y')")
    assert "PermissionError" in output
    assert theirs.read_text() == "x"


def test_a_folder_that_the_opener_cannot_read_is_refused(confined: Harness, work: Path) -> None:
    work.chmod(0o700)
    with (
        make_spec(work=work, owner=Credentials(12345, 1)) as spec,
        pytest.raises(WorkFolderError, match="as uid 12345"),
        confined.container(spec),
    ):
        pass


def test_a_symbolic_link_to_a_system_folder_is_refused(confined: Harness, work: Path) -> None:
    link = work / "link"
    for target in ("/etc", "/proc/1/root", "/run"):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        with (
            make_spec(work=link) as spec,
            pytest.raises(WorkFolderError, match=r"not among the folders|Permission denied"),
            confined.container(spec),
        ):
            pass


@pytest.mark.parametrize("executor", ["", "runc"])
@pytest.mark.parametrize("target", ["/etc", "/", "../../../../../..", "/proc/self/root"])
def test_a_link_in_the_layer_cannot_move_a_mount(
    confined: Harness, work: Path, target: str, executor: str
) -> None:
    """The user owns the home directory inside: a planted link must not become a mount point."""
    with make_spec(work=work, at="/home/sandbox/course/x", executor=executor) as spec:
        planted = Path(spec.rootfs.upper) / "home" / "sandbox" / "course"
        planted.symlink_to(target)
        before = set(os.listdir("/"))
        with pytest.raises(KernelStartFailed) as caught, confined.container(spec):
            pass
        assert caught.value.step == "mounts"
        assert set(os.listdir("/")) == before


@pytest.mark.parametrize(
    "step", [Step.CAPABILITIES, Step.NO_NEW_PRIVS, Step.SECCOMP, Step.CGROUP_NAMESPACE, Step.RLIMITS],
)  # fmt: skip
def test_outside_verification_finds_a_step_that_did_nothing(step: Step) -> None:
    # Landlock and the filter refuse to be installed without it.
    needs_it = [Step.LANDLOCK, Step.SECCOMP] if step is Step.NO_NEW_PRIVS else []
    dropped = [step, *needs_it]
    keep = step is Step.CAPABILITIES
    with (
        harness(dropped, keep_capabilities=keep) as running,
        make_spec() as spec,
        running.container(spec) as attempt,
        pytest.raises(VerifyError),
    ):
        attempt.verify()


def test_outside_verification_passes_what_is_confined(confined: Harness) -> None:
    with make_spec() as spec, confined.container(spec) as attempt:
        assert attempt.verify().status["Seccomp"].strip() == "2"

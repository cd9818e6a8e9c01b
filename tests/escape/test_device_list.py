"""The device allow-list of cgroup v2, on hosts of either generation: v1's is left aside here."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandboxkernel.errors import HostUnsupported
from sandboxruntime.cgroup import Cgroup, Limits, devices, layout, read_layout
from sandboxruntime.errors import VerifyError
from sandboxruntime.spec import Spec, to_json
from tests.escape.attacks.views import MOUNT_FLAGS
from tests.harness import ID_BASE, Harness, harness, make_spec
from tests.support import CGROUP_PARENT, SHARED_DATA

WITHOUT_V1 = """
from sandboxruntime.cgroup import devices, layout
layout._KNOWN_V1_CONTROLLERS -= {"devices"}
"""
NO_LIST = "devices.attach = lambda directory: None\n"
NODEV = MOUNT_FLAGS.format(flag="NODEV")
# What everybody may open where Linux has it: fuse, tun, the virtual console's memory.
OUTSIDE = ((10, 229), (10, 200), (7, 0))
INSIDE = """
import errno, os
for name in ("null", "zero", "full", "random", "urandom"):
    os.close(os.open("/dev/" + name, os.O_RDWR if name in ("null", "zero", "full") else os.O_RDONLY))
os.openpty()
try:
    os.open("/dev/tty", os.O_RDWR)
except OSError as error:
    assert error.errno == errno.ENXIO, error  # there is no terminal, which the device says itself
try:
    os.open("/home/sandbox/node", os.O_RDONLY | os.O_NONBLOCK)
    print("opened")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@pytest.fixture(autouse=True)
def by_program(monkeypatch: pytest.MonkeyPatch) -> None:
    known = layout._KNOWN_V1_CONTROLLERS - {"devices"}
    monkeypatch.setattr(layout, "_KNOWN_V1_CONTROLLERS", known)
    assert devices.is_supported()


@contextlib.contextmanager
def launcher(patch: str = "") -> Iterator[Harness]:
    with harness(patch=WITHOUT_V1 + patch) as running:
        assert "devices" not in running.layout.v1
        yield running


def openable_device() -> tuple[int, int]:
    """A device outside of the list that this host has, and lets everybody open."""
    with tempfile.TemporaryDirectory(dir=SHARED_DATA) as folder:
        os.chmod(folder, 0o755)
        for number in OUTSIDE:
            node = Path(folder, f"{number[0]}-{number[1]}")
            os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(*number))
            node.chmod(0o666)
            pid = os.fork()
            if pid == 0:
                with contextlib.suppress(OSError):
                    os.chdir(folder)
                    os.setresuid(12345, 12345, 12345)
                    os.open(node.name, os.O_RDONLY | os.O_NONBLOCK)
                    os._exit(0)
                os._exit(1)
            if os.waitpid(pid, 0)[1] == 0:
                return number
    raise AssertionError(f"this host has none of {OUTSIDE}")


@contextlib.contextmanager
def planted(executor: str = "") -> Iterator[Spec]:
    """A sandbox with a node of that device in its layer, which its user may open."""
    with make_spec(executor=executor) as spec:
        node = Path(spec.rootfs.upper) / "home/sandbox/node"
        os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(*openable_device()))
        node.chmod(0o666)
        os.chown(node, ID_BASE + 1000, ID_BASE + 1000)
        yield spec


def opens(running: Harness, spec: Spec) -> str:
    with running.container(spec) as attempt:
        status, output = attempt.run("python3", "-c", INSIDE)
    assert status == 0, output
    return output.strip()


def test_only_devices_of_the_list_can_be_opened() -> None:
    """Where nothing else is in the way: without nodev. The control is without the list, too."""
    with launcher(NODEV) as running, planted() as spec:
        assert opens(running, spec) == "EPERM"
    with launcher(NODEV + NO_LIST) as running, planted() as spec:
        assert opens(running, spec) == "opened"
    with launcher() as running, planted() as spec:
        assert opens(running, spec) == "EACCES"  # nodev answers first


@pytest.mark.parametrize("executor", ["", "runc"])
def test_a_sandbox_has_the_list_and_what_it_needs(executor: str) -> None:
    with launcher() as running, planted(executor) as spec:
        with running.container(spec) as attempt:
            attempt.verify()
            cgroup = Cgroup.attach(running.layout, spec.cgroups_path)
            assert cgroup.device_list == "bpf"
            directory = cgroup.directories[""]
            assert devices.PROGRAM_NAME in devices.attached(directory)
            assert attempt.run("python3", "-c", INSIDE) == (0, "EACCES\n")
        assert not Path(directory).exists()


@pytest.mark.parametrize("executor", ["", "runc"])
def test_a_launcher_that_leaves_it_out_is_found_out(executor: str) -> None:
    with launcher(NO_LIST) as running, make_spec(executor=executor) as spec:
        with running.container(spec) as attempt, pytest.raises(VerifyError) as caught:
            attempt.verify()
        assert caught.value.check == "devices"


def test_not_even_root_of_the_host_opens_or_makes_another(tmp_path: Path) -> None:
    """In the cgroup alone, with every capability: the list and nothing else is in the way."""
    group = Cgroup.create(read_layout(), f"{CGROUP_PARENT}/devices", Limits(), guard_devices=True)
    other, made = tmp_path / "other", tmp_path / "made"
    os.mknod(other, 0o600 | stat.S_IFCHR, os.makedev(*openable_device()))
    attempts: dict[str, Callable[[], object]] = {
        "null": lambda: os.open("/dev/null", os.O_RDWR),
        "other": lambda: os.open(other, os.O_RDONLY | os.O_NONBLOCK),
        "make": lambda: os.mknod(made, 0o600 | stat.S_IFCHR, os.makedev(1, 3)),
    }
    try:
        for inside, expected in ((False, {}), (True, {"other", "make"})):
            refused = set()
            for name, attempt in attempts.items():
                pid = os.fork()
                if pid == 0:
                    code = 0
                    try:
                        if inside:
                            group.enter(os.getpid())
                        attempt()
                    except OSError as exc:
                        code = exc.errno or 255
                    os._exit(code)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                assert code in (0, errno.EPERM), (name, code)
                refused |= {name} if code else set()
            made.unlink(missing_ok=True)
            assert refused == set(expected)
    finally:
        group.kill()
        group.remove()


def test_a_list_that_cannot_be_attached_refuses_the_start() -> None:
    fails = "def attach(directory):\n    raise OSError(1, 'no')\ndevices.attach = attach\n"
    with launcher(fails) as running, make_spec() as spec:
        with pytest.raises(HostUnsupported, match="device allow-list") as caught:
            running.create(spec)
        assert caught.value.feature == "cgroup:devices"


def test_the_next_launcher_gives_the_list_to_what_runs() -> None:
    """A container of an earlier version has none; taken over, it has."""
    with make_spec() as spec:
        former = Harness(patch=WITHOUT_V1 + NO_LIST)
        attempt = former.create(spec)
        attempt.start("sleep", "600")
        directory = Cgroup.attach(former.layout, spec.cgroups_path).directories[""]
        assert devices.attached(directory) == []
        former.kill()
        with launcher() as running:
            running.request("adopt", spec=to_json(spec), pid=attempt.pid1)
            assert devices.attached(directory) == [devices.PROGRAM_NAME]
            running.request(
                "delete", container_id=spec.container_id, cgroups_path=spec.cgroups_path
            )
        attempt.close()
        former.remove_staging()

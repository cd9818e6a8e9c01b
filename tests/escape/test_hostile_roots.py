"""A root file system with links where a container's set-up makes mounts, nodes and links."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxkernel.errors import KernelNotRunning, KernelStartFailed
from sandboxruntime.spec import Spec
from sandboxruntime.steps import Step
from tests.harness import ID_BASE, Harness, harness, make_spec
from tests.support import SHARED_DATA

CANARY = Path("/srv/sandboxkernel-tests/hostile-roots")


@pytest.fixture
def canary() -> Iterator[Path]:
    """A folder of the host's that root of the container may write to."""
    CANARY.mkdir(parents=True)
    for name in ("ptmx", "null", "fd", "log", "deeper/kept"):
        place = CANARY / name
        place.parent.mkdir(exist_ok=True)
        place.write_text("canary")
    for folder, _, files in os.walk(CANARY):
        for path in (folder, *(f"{folder}/{name}" for name in files)):
            os.chown(path, ID_BASE, ID_BASE)
    yield CANARY
    shutil.rmtree(CANARY)


def seen(folder: Path) -> dict[str, tuple[int, int, str]]:
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode, path.lstat().st_size,
            path.read_text() if path.is_file() and not path.is_symlink() else "",
        )
        for path in (folder, *folder.rglob("*"))
    }  # fmt: skip


def plant(spec: Spec, path: str, target: str) -> None:
    """Put a link in place of what the image has at a path."""
    link = Path(spec.rootfs.upper) / path
    for parent in [*link.parents][::-1]:
        if not parent.exists():
            parent.mkdir()
            os.chown(parent, ID_BASE, ID_BASE)
    if link.is_dir():
        shutil.rmtree(link)
    link.symlink_to(target)
    os.chown(link, ID_BASE, ID_BASE, follow_symlinks=False)


@pytest.mark.parametrize("executor", ["", "runc"])
@pytest.mark.parametrize(
    "target", [str(CANARY), f"../../../../../..{CANARY}", "/proc/self/root", "/home/sandbox"]
)
@pytest.mark.parametrize("path", ["dev", "proc", "run", "tmp"])
def test_a_link_of_the_image_leads_nowhere(
    confined: Harness, canary: Path, executor: str, path: str, target: str
) -> None:
    before = seen(canary)
    with make_spec(executor=executor) as spec:
        plant(spec, path, target)
        with pytest.raises(KernelStartFailed) as caught, confined.container(spec):
            pass
    assert caught.value.step == Step.MOUNTS
    assert seen(canary) == before


def test_without_the_check_runc_follows_a_link_at_dev(canary: Path) -> None:
    """The control. Newer versions of runc see to it themselves (CVE-2026-41579)."""
    before = seen(canary)
    with (
        harness(patch="oci._check_root = lambda context: None") as unchecked,
        make_spec(executor="runc") as spec,
    ):
        plant(spec, "dev", str(canary))
        with contextlib.suppress(KernelStartFailed, KernelNotRunning), unchecked.container(spec):
            pass
    mended = (1, 3, 6) <= runc_version() < (1, 4) or runc_version() >= (1, 4, 3)
    assert (seen(canary) == before) == mended
    assert mended == (not (canary / "stdin").is_symlink())


def runc_version() -> tuple[int, ...]:
    done = subprocess.run(["runc", "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"version (\d+)\.(\d+)\.(\d+)", done.stdout)
    assert found is not None
    return tuple(int(part) for part in found.groups())


LOOK = """
import json, os, stat
def kind(path):
    try:
        found = os.lstat(path)
    except OSError:
        return "nothing"
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(path)
    if stat.S_ISDIR(found.st_mode):
        return f"{len(os.listdir(path))} entries"
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
print(json.dumps({path: kind(path) for path in %r}))
"""


@pytest.mark.parametrize("executor", ["", "runc"])
def test_what_the_image_has_in_dev_and_proc_is_covered(
    confined: Harness, canary: Path, executor: str
) -> None:
    """A null device that is a link must mask nothing; a console that is one is not bound."""
    before = seen(canary)
    with make_spec(executor=executor) as spec:
        for name in ("null", "zero", "console", "pts", "ptmx", "shm", "mqueue", "fd"):
            plant(spec, f"dev/{name}", str(canary / name))
        (Path(spec.rootfs.upper) / "dev/null").unlink()
        plant(spec, "dev/null", "/proc/sys/kernel/core_pattern")
        plant(spec, "proc/self", str(canary))
        plant(spec, "proc/sys", str(canary))
        names = [
            *spec.masked_paths,
            "/dev/null",
            "/dev/zero",
            "/dev/console",
            "/dev/ptmx",
            "/dev/fd",
        ]
        with confined.container(spec) as attempt:
            attempt.verify()
            status, output = attempt.run("python3", "-c", LOOK % (names,))
    assert status == 0, output
    found = json.loads(output)
    assert {found[path] for path in spec.masked_paths} <= {"1:3", "0 entries", "nothing"}
    assert "1:3" in {found[path] for path in spec.masked_paths}
    assert found["/dev/null"] == "1:3" and found["/dev/zero"] == "1:5"
    assert found["/dev/console"] == "nothing"
    assert found["/dev/ptmx"] == "pts/ptmx" and found["/dev/fd"] == "/proc/self/fd"
    assert seen(canary) == before


LINKS_AND_EXCHANGES = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def renameat2(one, other, flags):
    if libc.renameat2(-100, one.encode(), -100, other.encode(), flags) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
os.link("/usr/bin/env", "/home/sandbox/linked")
with open("/home/sandbox/linked", "r+b") as file:
    file.write(b"changed")
with open("/home/sandbox/mine", "w") as file:
    file.write("mine")
renameat2("/home/sandbox/mine", "/usr/bin/id", 2)
os.link("/usr/bin/true", "/usr/bin/true-again")
os.truncate("/usr/bin/true-again", 0)
fd = os.open("/usr/bin", os.O_TMPFILE | os.O_RDWR)
os.link(f"/proc/self/fd/{fd}", "/usr/bin/named-later", src_dir_fd=fd)  # as linkat(2) follows
try:
    renameat2("/usr/bin/sort", "/usr/bin/sorted", 4)
except OSError as error:
    print(error.errno)
"""


def test_links_and_exchanges_change_the_layer_alone() -> None:
    """With every capability of the container and no filter, what they reach is a copy of one's own.

    The control is that they reach it: what was changed is in the layer.
    """
    lacking = [Step.CAPABILITIES, Step.SECCOMP, Step.LANDLOCK, Step.NO_NEW_PRIVS]
    with harness(lacking, keep_capabilities=True) as privileged, make_spec() as spec:
        upper = Path(spec.rootfs.upper)
        (image,) = (p for p in map(Path, spec.rootfs.lower) if (p / "usr/bin/env").exists())
        before = {name: digest(image / "usr/bin" / name) for name in os.listdir(image / "usr/bin")}
        with privileged.container(spec) as attempt:
            status, output = attempt.run("python3", "-c", LINKS_AND_EXCHANGES)
        assert status == 0, output
        assert output.strip() == str(errno.EINVAL)  # overlayfs has no such rename
        assert (upper / "home/sandbox/linked").read_bytes().startswith(b"changed")
        assert (upper / "usr/bin/id").read_text() == "mine"
        assert (upper / "usr/bin/true").stat().st_size == 0
        assert (upper / "usr/bin/named-later").exists()
        after = {name: digest(image / "usr/bin" / name) for name in os.listdir(image / "usr/bin")}
        assert after == before


def digest(path: Path) -> tuple[str, int]:
    """What a file holds, and how many names it has."""
    if path.is_symlink() or not path.is_file():
        return ("", path.lstat().st_nlink)
    return (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_nlink)


FOLLOWED = """
from sandboxruntime import rootfs
rootfs.OVERLAY_OPTIONS = {options!r}
"""
FOLLOWS = {"index": "off", "xino": "off"}
READS = """
import os
try:
    print({act})
except PermissionError as error:
    print("refused")
"""
REDIRECTED = "os.listdir('/home/sandbox/marked') == ['file']"
COPIED = "open('/home/sandbox/marked').read() == 'of the image'"
HIDDEN = "os.listdir('/of-the-image') == []"


@contextlib.contextmanager
def marked_spec(path: str, marks: dict[str, bytes]) -> Iterator[Spec]:
    """A layer with marks on a file or folder, over an image that also has /of-the-image/file."""
    lower = Path(tempfile.mkdtemp(prefix="lower-", dir=SHARED_DATA))
    lower.chmod(0o755)
    (lower / "of-the-image").mkdir()
    (lower / "of-the-image/file").write_text("of the image")
    with make_spec() as spec:
        place = Path(spec.rootfs.upper) / path
        if "trusted.overlay.metacopy" in marks:
            place.write_bytes(bytes(len("of the image")))
        else:
            place.mkdir()
        os.chown(place, ID_BASE + 1000, ID_BASE + 1000)
        for name, value in marks.items():
            os.setxattr(place, name, value)
        root = dataclasses.replace(spec.rootfs, lower=(str(lower), *spec.rootfs.lower))
        yield dataclasses.replace(spec, rootfs=root)
    shutil.rmtree(lower)


@pytest.mark.parametrize(
    ("act", "path", "marks", "options"),
    [(REDIRECTED, "home/sandbox/marked", {"trusted.overlay.redirect": b"/of-the-image"},
      {**FOLLOWS, "redirect_dir": "on", "metacopy": "off"}),
     (COPIED, "home/sandbox/marked",
      {"trusted.overlay.redirect": b"/of-the-image/file", "trusted.overlay.metacopy": b""},
      {**FOLLOWS, "redirect_dir": "on", "metacopy": "on"}),
     (HIDDEN, "of-the-image", {"user.overlay.opaque": b"y"}, {**FOLLOWS, "userxattr": None})],
    ids=["redirect", "metacopy", "a user's mark"],
)  # fmt: skip
@pytest.mark.parametrize("followed", [False, True])
def test_marks_in_a_layer_are_not_followed(
    act: str, path: str, marks: dict[str, bytes], options: dict[str, str | None], *, followed: bool
) -> None:
    """Of root's kind, as a layer from elsewhere may have them, and of the kind that a user can set.

    The control mounts the overlay so that it follows them.
    """
    patch = FOLLOWED.format(options=options) if followed else ""
    with (
        harness(patch=patch) as running,
        marked_spec(path, marks) as spec,
        running.container(spec) as attempt,
    ):
        status, output = attempt.run("python3", "-IS", "-c", READS.format(act=act))
    assert status == 0, output
    assert (output.strip() == "True") == followed

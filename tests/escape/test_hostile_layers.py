"""Root's programs that walk what a sandbox put into its layer: diff, usage, removal."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxkernel.images import layerdiff, treewalk
from sandboxkernel.images.layerdiff import DEPTH_MAX, diff_layer
from sandboxkernel.images.removal import remove_tree
from sandboxkernel.images.treewalk import TreeCursor, measure_tree
from sandboxkernel.models import UserLayerChange
from tests.harness import ID_BASE, Harness, make_spec
from tests.support import (
    DEADLINE_S,
    SHARED_DATA,
    RunningDaemon,
    python_inside,
    sandbox,
    wait_until,
)

HOME = "home/sandbox"
CANARY_BYTES = 64 << 20  # more than all that a sandbox puts into its layer here
RENAME_EXCHANGE = 2


@pytest.fixture
def canary() -> Iterator[Path]:
    """A folder of the host's in the file system of the layers, where a walk might go on."""
    SHARED_DATA.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="canary-", dir=SHARED_DATA))
    (folder / "deeper").mkdir()
    for name in ("canary-file", "deeper/canary-too"):
        with (folder / name).open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, CANARY_BYTES)
    yield folder
    shutil.rmtree(folder)


def seen(folder: Path) -> dict[str, tuple[int, ...]]:
    """What is in a folder, with all that a change or a deletion would change."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode, path.lstat().st_uid, path.lstat().st_size,
            path.lstat().st_mtime_ns, path.lstat().st_ctime_ns,
        )
        for path in (folder, *folder.rglob("*"))
    }  # fmt: skip


# All that a user without privilege can make; prints what could not be made.
FILL = """
import os, socket
os.chdir("/home/sandbox")
canary = {canary!r}
refused = set()
def attempt(what, act, *args):
    try:
        act(*args)
    except PermissionError:
        refused.add(what)
above = "../" * 40 + canary.lstrip("/")
for place in (".", "folder", "folder/inner"):
    os.makedirs(place, exist_ok=True)
    for name, target in (
        ("absolute", canary), ("relative", above), ("file", canary + "/canary-file"),
        ("root", "/proc/self/root" + canary), ("of-pid-1", "/proc/1/cwd"), ("myself", "myself"),
        ("nowhere", "/no/such/place"), ("up", ".."), ("long", "x/" * 2000 + "x"),
    ):
        os.symlink(target, place + "/link-" + name)
    for name in (".wh.link-absolute", ".wh..wh..opq", ".wh..", ".wh.", ".wh.../x", ".wh.usr"):
        os.makedirs(place + "/" + os.path.dirname(name), exist_ok=True)
        os.close(os.open(place + "/" + name, os.O_CREAT | os.O_WRONLY))
    os.mkfifo(place + "/pipe")
    socket.socket(socket.AF_UNIX).bind(place + "/socket")
    os.mkdir(place + "/unreadable")
    os.chmod(place + "/unreadable", 0)
    with open(place + "/sparse", "wb") as file:
        attempt("sparse", os.truncate, file.fileno(), 1 << 40)
    attempt("whiteout", os.mknod, place + "/whiteout", 0o020666, 0)
    for what, value in ((b"opaque", b"y"), (b"redirect", canary.encode()), (b"metacopy", b""),
                        (b"whiteout", b"y"), (b"origin", bytes(24)), (b"impure", b"y")):
        for path in (place, place + "/sparse"):
            os.setxattr(path, b"user.overlay." + what, value)
            attempt("trusted", os.setxattr, path, b"trusted.overlay." + what, value)
os.makedirs("odd")
for name in (b"\\n", b"a\\x1b[2Jb", b"\\xff\\xfe", b"...", b"-rf", b" ", b"\\\\x41", b"\\xe2\\x80\\xae",
             b"\\xed\\xa0\\x80", b"~", b"$(id)", b"%s%n", b"a" * 255, b"\\xc3\\xa4" * 127):
    os.close(os.open(b"odd/" + name, os.O_CREAT | os.O_WRONLY))
os.makedirs("wide")
os.close(os.open("wide/0", os.O_CREAT | os.O_WRONLY))
for number in range(1, 20000):
    os.link("wide/0", "wide/%d" % number)
for number in range(2000):
    os.mkdir("wide/d%d" % number)
os.makedirs("usr/bin")  # as the image has them, in another place
here = os.open(".", os.O_RDONLY)
for _ in range({depth}):
    os.mkdir("d" * 200)
    os.chdir("d" * 200)
os.symlink(canary, "link-at-the-bottom")
os.fchdir(here)
print(sorted(refused))
"""
# A directory and a link change places as fast as they can.
EXCHANGES = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
os.chdir("/home/sandbox")
if os.fork():
    os._exit(0)
os.setsid()
for fd in range(3):  # whose end the caller waits for
    os.dup2(os.open("/dev/null", os.O_RDWR), fd)
os.makedirs("a-swap/down/down")  # the first of their names: every walk meets them early
os.symlink({canary!r}, "a-link")
done = 0
while True:
    for one in (b"a-swap", b"a-swap/down"):
        assert libc.renameat2(-100, one, -100, b"a-link", 2) == 0
        if done % 64 == 0 and one == b"a-swap":
            os.close(os.open("exchanged", os.O_CREAT | os.O_WRONLY))
        assert libc.renameat2(-100, one, -100, b"a-link", 2) == 0
    done += 1
"""


def test_a_hostile_layer_is_told_and_removed_and_leads_nowhere(
    daemon: RunningDaemon, canary: Path
) -> None:
    """By the daemon, also while the tree changes. A hang, as at a pipe, is a client's time-out."""
    before = seen(canary)
    client = daemon.client()
    with sandbox(daemon) as kernel:
        source = FILL.format(canary=str(canary), depth=2 * DEPTH_MAX)
        code, output = python_inside(daemon, kernel, source)
        assert code == 0, output
        assert output.strip() == "['trusted', 'whiteout']"
        code, output = python_inside(daemon, kernel, EXCHANGES.format(canary=str(canary)))
        assert code == 0, output
        (layer,) = [one for one in client.layers() if one.in_use]
        upper = daemon.data_dir / "users/0" / layer.lineage / "upper"
        for _ in range(8):
            client.disk_usage()
            assert_is_the_layers_own(client.layer_diff(layer.lineage, limit=100_000).changes)
        assert (upper / HOME / "exchanged").exists()  # it has been at it
    (layer,) = client.layers()
    assert layer.size_bytes < CANARY_BYTES
    diff = client.layer_diff(layer.lineage, limit=100_000)
    assert not diff.truncated
    assert_is_the_layers_own(diff.changes)
    paths = {change.path: change for change in diff.changes}
    assert {change.change for change in diff.changes} == {"A"}  # no mark of the user's is one
    assert paths[f"/{HOME}/folder/sparse"].size_bytes == 1 << 40
    assert {f"/{HOME}/odd/{name}" for name in ("\\x0a", "\\xff\\xfe", "\\u202e")} <= paths.keys()
    assert sum(path.startswith(f"/{HOME}/wide/") for path in paths) == 22_000
    client.reset_layer(layer.lineage)
    assert not upper.exists()
    assert list((daemon.data_dir / "users/.trash").iterdir()) == []
    assert seen(canary) == before


def assert_is_the_layers_own(changes: list[UserLayerChange]) -> None:
    assert [change for change in changes if "canary-" in change.path.rpartition("/")[2]] == []


# What the two halves of the defence would be without: each look, and each opening.
def follow_at_a_look(patch: pytest.MonkeyPatch) -> None:
    """Every look at an entry follows a link."""
    scandir, stat = os.scandir, os.stat

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self._entry = entry.name, entry

        def stat(self, *, follow_symlinks: bool) -> os.stat_result:
            del follow_symlinks
            return self._entry.stat()

        def is_dir(self, *, follow_symlinks: bool) -> bool:
            del follow_symlinks
            return self._entry.is_dir()

    @contextlib.contextmanager
    def following(directory: int) -> Iterator[Iterator[Entry]]:
        with scandir(directory) as entries:
            yield map(Entry, entries)

    patch.setattr(os, "scandir", following)
    patch.setattr(layerdiff.os, "lstat", stat)


def follow_when_opening(patch: pytest.MonkeyPatch) -> None:
    """A directory is opened also through a link."""
    patch.setattr(treewalk, "_DIRECTORY", treewalk._DIRECTORY & ~os.O_NOFOLLOW)


def names_of(upper: Path) -> set[str]:
    changes = diff_layer(upper, [], host_uid_base=ID_BASE, limit=1000)
    return {name for change in changes for name in change.path.split("/")}


def diff_reaches(upper: Path, canary: Path) -> bool:
    return not names_of(upper).isdisjoint({"canary-file", "canary-too"})


def usage_reaches(upper: Path, canary: Path) -> bool:
    return measure_tree(upper).size_bytes >= CANARY_BYTES


def removal_reaches(upper: Path, canary: Path) -> bool:
    with contextlib.suppress(OSError):  # told as such, where the tree is not as it was listed
        remove_tree(upper)
    return not (canary / "canary-file").exists()


OPERATIONS = (diff_reaches, usage_reaches, removal_reaches)
Operation = Callable[[Path, Path], bool]
Lacking = Callable[[pytest.MonkeyPatch], None]
LINK = "import os; os.symlink({canary!r}, '/home/sandbox/link')"


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("lacking", "reached"),
    [((), False), ((follow_at_a_look,), False), ((follow_when_opening,), False),
     ((follow_at_a_look, follow_when_opening), True)],
)  # fmt: skip
def test_a_link_is_followed_only_without_both_defences(
    confined: Harness, canary: Path, monkeypatch: pytest.MonkeyPatch, *,
    operation: Operation, lacking: tuple[Lacking, ...], reached: bool,
) -> None:  # fmt: skip
    before = seen(canary)
    with make_spec() as spec:
        with confined.container(spec) as attempt:
            status, output = attempt.run("python3", "-c", LINK.format(canary=str(canary)))
            assert status == 0, output
        with monkeypatch.context() as patch:
            for defence in lacking:
                defence(patch)
            answer = operation(Path(spec.rootfs.upper), canary)
    assert answer == reached
    assert reached or seen(canary) == before


# Exchanges the two once, when it is told to.
EXCHANGES_ONCE = """
import ctypes, os, time
os.chdir("/home/sandbox")
os.mkdir("swap")
os.symlink({canary!r}, "link")
os.open({work!r} + "/ready", os.O_CREAT)
while not os.path.exists({work!r} + "/go"):
    time.sleep(0.001)
assert ctypes.CDLL(None).renameat2(-100, b"swap", -100, b"link", 2) == 0
os.open({work!r} + "/done", os.O_CREAT)
"""


@pytest.mark.parametrize("operation", [diff_reaches, usage_reaches])
@pytest.mark.parametrize("lacking", [False, True])
def test_a_directory_that_becomes_a_link_once_it_was_seen_is_not_entered(
    confined: Harness, canary: Path, monkeypatch: pytest.MonkeyPatch, *,
    operation: Operation, lacking: bool,
) -> None:  # fmt: skip
    """Exchanged by the sandbox right between the look and the opening, so that no luck decides."""
    before = seen(canary)
    work = Path(tempfile.mkdtemp(prefix="exchange-", dir="/srv"))
    work.chmod(0o777)
    enter = TreeCursor.enter

    def at_that_moment(self: TreeCursor, name: str) -> None:
        if name == "swap":
            (work / "go").touch()
            wait_until((work / "done").exists, timeout_s=DEADLINE_S)
        enter(self, name)

    with make_spec(work=work) as spec, confined.container(spec) as attempt:
        source = EXCHANGES_ONCE.format(canary=str(canary), work=str(work))
        attempt.start("python3", "-c", source)
        wait_until((work / "ready").exists, timeout_s=DEADLINE_S)
        with monkeypatch.context() as patch:
            patch.setattr(TreeCursor, "enter", at_that_moment)
            if lacking:
                follow_when_opening(patch)
            assert operation(Path(spec.rootfs.upper), canary) == lacking
        status, output = attempt.finish()
        assert status == 0, output
    shutil.rmtree(work)
    assert seen(canary) == before


@pytest.mark.parametrize("lacking", [False, True])
def test_a_removal_enters_no_link_although_something_still_changes_the_tree(
    canary: Path, monkeypatch: pytest.MonkeyPatch, lacking: bool
) -> None:
    """No process has the tree when the daemon removes it: here the test itself exchanges the two."""
    before = seen(canary)
    upper = Path(tempfile.mkdtemp(prefix="layer-", dir=SHARED_DATA))
    (upper / "swap").mkdir()
    (upper / "link").symlink_to(canary)
    enter, unlink = TreeCursor.enter, os.unlink

    def at_that_moment(self: TreeCursor, name: str) -> None:
        if name == "swap":
            exchange(upper / "swap", upper / "kept")
        enter(self, name)

    def keep(name: Any, *, dir_fd: int | None = None) -> None:
        if name == "link":
            os.rename(upper / "link", upper / "kept")
        else:
            unlink(name, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(TreeCursor, "enter", at_that_moment)
        patch.setattr(os, "unlink", keep)
        if lacking:
            follow_when_opening(patch)
        with pytest.raises(OSError, match="rearranged" if lacking else "Not a directory"):
            remove_tree(upper)
    assert (canary / "canary-file").exists() != lacking
    assert lacking or seen(canary) == before
    remove_tree(upper)
    assert not upper.exists()


def exchange(one: Path, other: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.renameat2(-100, bytes(one), -100, bytes(other), RENAME_EXCHANGE) == 0

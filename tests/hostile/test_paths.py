"""Work folders with any name that Linux takes, and what is no folder of the caller's."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sandboxkernel.errors import SandboxError
from sandboxkernel.models import KernelCreate
from tests.hostile.support import MALLORY, acting_as
from tests.support import RunningDaemon, run_inside

NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The caller's own; nothing outside of it is mounted."""
    path = Path(tempfile.mkdtemp(dir="/srv", prefix="sandboxkernel-tests-"))
    os.chown(path, MALLORY, MALLORY)
    yield path
    shutil.rmtree(path)


def start(daemon: RunningDaemon, work_folder: str) -> str:
    """What the folder of a sandbox holds, or the code of the refusal."""
    with acting_as(MALLORY):
        client = daemon.client()
        try:
            kernel = client.create(
                KernelCreate(
                    kernel_id="paths",
                    argv=["sleep", "60"],
                    work_folder=work_folder,
                    cwd=work_folder,
                )
            )
        except SandboxError as exc:
            return f"{exc.code}: {exc.message}"
        try:
            code, text = run_inside(daemon, kernel, "sh", "-c", "ls -A; touch written")
            assert code == 0, text
            return text
        finally:
            client.remove(kernel.id)


@settings(
    max_examples=12, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(NAMES.filter(lambda name: name not in (".", "..") and len(os.fsencode(name)) <= 255))
@example("new\nline")
@example("\r")
@example("a\x0bb\x0c\x1c\u2028c")
@example("back\\slash\\040")
@example(" space\ttab ")
@example("-rf")
@example("%s{0}$HOME`id`")
@example("lower=upper,workdir:")
@example("\u202e\U0001f600")
@example("x" * 255)
def test_any_name_is_mounted_as_it_is(daemon: RunningDaemon, folder: Path, name: str) -> None:
    path = folder / name
    path.mkdir()
    os.chown(path, MALLORY, MALLORY)
    (path / "mark").touch()
    try:
        assert start(daemon, str(path)) == "mark\n"
        assert (path / "written").stat().st_uid == MALLORY
    finally:
        shutil.rmtree(path)


@pytest.mark.parametrize(
    "path",
    [
        "{}/../..", "{}/.", "{}//", "{}/missing", "{}/file", "{}/fifo", "{}/link", "{}/away",
        "{}/private", "{}/" + "x" * 256, "{}" + "/x" * 2000, "{}/loop", "/", "/proc", "/root",
        "/proc/self/root", "/proc/1/cwd", "/dev", "/sys/fs/cgroup",
    ],
    ids=lambda path: path[:20],
)  # fmt: skip
def test_what_is_no_folder_of_the_callers_is_refused(
    daemon: RunningDaemon, folder: Path, path: str
) -> None:
    if not (folder / "file").exists():
        (folder / "file").touch()
        os.mkfifo(folder / "fifo")
        (folder / "link").symlink_to("/etc")
        (folder / "away").symlink_to("/root")
        (folder / "loop").symlink_to("loop")
        (folder / "private").mkdir(mode=0o700)
    code = start(daemon, path.format(folder)).partition(":")[0]
    assert code in ("work_folder", "invalid_request")


def test_a_folder_that_becomes_a_link_never_leads_away(daemon: RunningDaemon, folder: Path) -> None:
    """Swapped as fast as can be, for another user's folder, while sandboxes start."""
    racing, away = folder / "racing", folder / "private"
    away.mkdir(mode=0o700, exist_ok=True)
    (away / "secret").touch()
    racing.mkdir()
    os.chown(racing, MALLORY, MALLORY)
    (racing / "mark").touch()
    other, ended = folder / "other", threading.Event()
    other.symlink_to(away)

    def swap() -> None:
        spare = folder / "spare"
        while not ended.is_set():
            os.rename(racing, spare)
            os.rename(other, racing)
            os.rename(racing, other)
            os.rename(spare, racing)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        found = {_start_unprivileged(daemon, str(racing)) for _ in range(25)}
    finally:
        ended.set()
        thread.join()
    assert "mark" in found and "secret" not in found, found


def _start_unprivileged(daemon: RunningDaemon, path: str) -> str:
    """In a child: the thread that swaps is root's, and effective ids are the process's."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            text = start(daemon, path)
        except BaseException as exc:
            text = repr(exc)
        os.write(write_fd, text.replace("written\n", "").strip().encode())
        os._exit(0)
    os.close(write_fd)
    with open(read_fd, "rb") as stream:
        text = stream.read().decode()
    os.waitpid(pid, 0)
    return text

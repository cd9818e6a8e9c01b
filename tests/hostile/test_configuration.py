"""A configuration that cannot be used stops the start, and the error names file and line.

It must never be passed over: without the administrator's grants, everybody may do everything.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from traitlets.config import Config

from sandboxkernel.daemon.app import SandboxKernelDaemon
from sandboxkernel.daemon.configuration import load_configuration
from sandboxkernel.errors import SandboxError
from tests.support import DEADLINE_S, ROOT

GOOD = b"c.SandboxKernelDaemon.max_kernels = 7\n"
BROKEN = {
    "syntax": (GOOD + b"c.SandboxKernelDaemon.grants = [\n", "line 2: SyntaxError"),
    "exception": (GOOD + b"\n1 / 0\n", "line 3: ZeroDivisionError"),
    "exit": (b"raise SystemExit(0)\n", "line 1: SystemExit"),
    "no text": (b"x = '\xff'\n", "SyntaxError"),
    "null bytes": (b"c = 1\x00\n", "null bytes"),
    "name": (b"c.SandboxKernelDaemon.grantz = []\n", "grantz is not a setting"),
    "class": (b"c.SandboxKernelDeamon.max_kernels = 1\n", "SandboxKernelDeamon is not a setting"),
    "no class": (b"c.max_kernels = 1\n", "max_kernels is not a setting"),
    "type": (b"c.SandboxKernelDaemon.max_kernels = 'many'\n", "max_kernels"),
    "bounds": (b"c.SandboxKernelDaemon.max_kernels = 0\n", "max_kernels"),
}
JSON = {
    "syntax": (b'{"SandboxKernelDaemon":\n {"max_kernels": }}', "line 2: JSONDecodeError"),
    "list": (b"[1]", "SandboxKernelDaemon|AttributeError|TypeError|ValueError"),
    "name": (b'{"SandboxKernelDaemon": {"grantz": []}}', "grantz is not a setting"),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Root's alone all the way, which pytest's own need not be."""
    with tempfile.TemporaryDirectory(dir="/run", prefix="skt-") as name:
        yield Path(name)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o644)
    return path


def initialize(path: Path) -> SandboxKernelDaemon:
    daemon = SandboxKernelDaemon()
    daemon.initialize(["--config", str(path)])
    return daemon


def test_a_good_file_is_read(folder: Path) -> None:
    assert initialize(write(folder / "c.py", GOOD)).max_kernels == 7
    text = b'{"SandboxKernelDaemon": {"max_kernels": 8}}'
    assert initialize(write(folder / "c.json", text)).max_kernels == 8


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_python_file_is_refused(folder: Path, case: str) -> None:
    data, words = BROKEN[case]
    path = write(folder / "c.py", data)
    with pytest.raises(SandboxError, match=words) as caught:
        initialize(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("case", JSON)
def test_a_broken_json_file_is_refused(folder: Path, case: str) -> None:
    data, words = JSON[case]
    path = write(folder / "c.json", data)
    with pytest.raises(SandboxError, match=words) as caught:
        initialize(path)
    assert str(path) in caught.value.message


def test_a_file_that_others_could_have_written_is_refused(folder: Path) -> None:
    path = write(folder / "c.py", GOOD)
    path.chmod(0o666)
    with pytest.raises(SandboxError, match="not root's alone"):
        initialize(path)
    path.chmod(0o644)
    os.chown(path, 65534, 0)
    with pytest.raises(SandboxError, match="not root's alone"):
        initialize(path)


def test_a_file_that_others_could_replace_is_refused(folder: Path) -> None:
    path = write(folder / "c.py", GOOD)
    folder.chmod(0o777)
    with pytest.raises(SandboxError, match="can be replaced"):
        initialize(path)
    folder.chmod(0o1777)  # sticky: nobody renames what is another's
    assert initialize(path).max_kernels == 7


def test_no_file_beside_the_one_that_was_checked_is_read(folder: Path) -> None:
    path = write(folder / "c.py", GOOD)
    beside = write(folder / "c.json", b'{"SandboxKernelDaemon": {"max_kernels": 8}}')
    beside.chmod(0o666)
    assert initialize(path).max_kernels == 7


def test_what_is_no_file_is_refused(folder: Path) -> None:
    fifo = folder / "fifo.py"
    os.mkfifo(fifo)  # whose open would wait for ever
    link = folder / "link.py"
    link.symlink_to(folder / "nowhere.py")
    for path in (folder / "missing.py", folder, fifo, link):
        with pytest.raises(SandboxError, match="configuration file"):
            initialize(path)


@given(st.binary(max_size=60))
def test_any_bytes_are_settings_or_a_refusal(data: bytes) -> None:
    with tempfile.TemporaryDirectory(dir="/run", prefix="skt-") as name:
        path = write(Path(name) / "c.json", data)
        try:
            assert isinstance(load_configuration(path, SandboxKernelDaemon), Config)
        except SandboxError as exc:
            assert str(path) in exc.message


@pytest.mark.parametrize(
    "line",
    [
        "c.SandboxKernelDaemon.grants = [",
        "c.SandboxKernelDaemon.grants = [{'user': 'ada', 'profile': 'x'}]",
        "c.SandboxKernelDaemon.default_profile = 'bio'",
        "c.SandboxKernelDaemon.profiles = {'bio': {'min_spares': 1}}; "
        "c.SandboxKernelDaemon.grants = [{'user': '*', 'ceiling': {'memory': '1G'}}]",
    ],
)
def test_the_daemon_ends_with_one_line_and_serves_nobody(folder: Path, line: str) -> None:
    path = write(folder / "c.py", line.encode())
    done = subprocess.run(
        [sys.executable, "-m", "sandboxkernel.daemon", "--config", str(path)],
        env={"PATH": os.defpath, "SANDBOXKERNEL_RUN_DIR": str(folder / "run"),
             "SANDBOXKERNEL_DATA_DIR": str(folder / "data"),
             "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"},
        capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and str(path) in done.stderr
    assert not (folder / "run").exists()

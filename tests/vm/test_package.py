"""The Debian package, by the words of docs/first-hour.md, in a machine that systemd runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.first_hour import Command, commands, with_outputs

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/first-hour.md").read_text()
PACKAGES = Path("/srv/packages")
RESULTS = Path("/srv/results")
TIMEOUT_S = 600
# What the outputs must show, by the beginning of the command.
EXPECTED = {
    "systemctl is-active": r"\Aactive\n\Z",
    "sandboxkernel --version": r"0\.1\.0",
    "/opt/jupyter/bin/jupyter kernelspec list": r"sandboxed-python",
    "grep -A1": r"1000 /home/ada \[.*first\.ipynb",
    "jupyter execute --inplace large": r"memory limit 256\.0 MiB reached",
    "until sandboxkernel ps": r"ada +bio101 +running",
    "sandboxkernel ps": r"ada +bio101 +running",
    "sandboxkernel stats": r"/ 256\.0 MiB",
    "sandboxkernel inspect": r'"owner_name": "ada"(.|\n)*268435456',
    "sandboxkernel user layer ls": r"ada +host",
    "tail --pid": r"x is still 42",
    "ls /var/lib/sandboxkernel": r"users",
    "ls -d": r"\A3\n\Z",  # three times that it is not there
    "find /sys/fs/cgroup": r"\A0\n\Z",
}


@pytest.fixture
def fresh() -> Iterator[None]:
    """A machine that has never had it: the tests' environment has been given it from source."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "uninstall", "--quiet", "--yes", "sandboxkernel"], check=True)
    yield
    unpacked = RESULTS / "package"
    newest = max(PACKAGES.glob("*.deb"))
    subprocess.run(["dpkg-deb", "--extract", str(newest), str(unpacked)], check=True)
    (wheel,) = unpacked.glob("usr/share/sandboxkernel/*.whl")
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    shutil.rmtree(unpacked)
    subprocess.run(["sh", "tests/vm/guest/install-source"], cwd=ROOT, check=True)


def run(command: Command) -> str:
    """Run one command of the page; its output. Raises AssertionError for another end than said."""
    argv = ["bash", "-c", command.text]
    if command.user:
        argv = ["runuser", "--login", command.user, "--shell=/bin/bash", "--command",
                f"PATH=/opt/jupyter/bin:$PATH; {command.text}"]  # fmt: skip
    # A file: what stays in the background must not keep a pipe open.
    with (RESULTS / "output").open("w+") as output:
        done = subprocess.run(
            argv, cwd=PACKAGES, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            timeout=TIMEOUT_S, check=False,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                 "DEBIAN_FRONTEND": "noninteractive", "LANG": "C.UTF-8", "HOME": "/root"},
        )  # fmt: skip
        output.seek(0)
        text = output.read()
    assert (done.returncode != 0) == command.fails, f"{command.text}: {done.returncode}: {text}"
    return text


@pytest.mark.timeout(1500)
def test_the_first_hour(fresh: None) -> None:
    outputs: list[str] = []
    seen: set[str] = set()
    try:
        for command in commands(PAGE):
            outputs.append(run(command))
            for part, pattern in EXPECTED.items():
                if command.text.startswith(part):
                    seen.add(part)
                    assert re.search(pattern, outputs[-1]), (command.text, outputs[-1])
        assert seen == set(EXPECTED)
        (RESULTS / "first-hour.md").write_text(with_outputs(PAGE, outputs))
    finally:
        pairs = zip(commands(PAGE), outputs, strict=False)
        (RESULTS / "first-hour.log").write_text("".join(f"+ {c.text}\n{o}" for c, o in pairs))
    assert not Path("/usr/lib/sandboxkernel").exists()

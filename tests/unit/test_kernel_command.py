"""Commands of kernelspecs, and the environments of their interpreters."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sandboxkernel.errors import RequestError
from sandboxkernel.kernel_command import OwnKernel, PythonKernel, parse_command
from sandboxkernel.models import IPYKERNEL, PythonEnvironment
from sandboxkernel.python_environment import environment_of, running_environment

FILE = "/run/user/1000/jupyter/kernel-1.json"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["python", "-m", "ipykernel_launcher", "-f", FILE], PythonKernel("python", IPYKERNEL, ())),
        (
            ["/v/bin/python3", "-m", "ipykernel", "-f", FILE],
            PythonKernel("/v/bin/python3", IPYKERNEL, ()),
        ),
        (
            ["/v/bin/python3.12", "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", FILE],
            PythonKernel("/v/bin/python3.12", IPYKERNEL, ()),
        ),
        (
            ["python", "-X", "frozen_modules=off", "-m", "ipykernel", "--pylab", "-f", FILE, "-x"],
            PythonKernel("python", IPYKERNEL, ("--pylab", "-x")),
        ),
        (["python", "-m", "ipykernel", f"--f={FILE}"], PythonKernel("python", IPYKERNEL, ())),
        (
            ["python", "-m", "bash_kernel", "-f", FILE, "--debug"],
            PythonKernel("python", "bash_kernel", ("--debug",)),
        ),
        (["python", "-m", "a.b", "-f", FILE], PythonKernel("python", "a.b", ())),
        (["sandboxkernel", "launch", "-f", FILE], OwnKernel((), ())),
        (
            ["/o/bin/sandboxkernel", "launch", "-p", "a", "-f", FILE, "--debug"],
            OwnKernel(("-p", "a"), ("--debug",)),
        ),
    ],
)
def test_commands_that_are_understood(argv: list[str], expected: OwnKernel | PythonKernel) -> None:
    assert parse_command(argv, FILE) == expected


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["python"],
        ["python", "-m"],
        ["python", "-m", "ipykernel_launcher"],
        ["python", "-m", "ipykernel_launcher", "-f"],
        ["python", "-m", "ipykernel_launcher", "-f", "/another/file"],
        ["python", "-m", "octave_kernel", "--debug", "-f", FILE],
        ["python", "-m", "--f", "-f", FILE],
        ["python", "-m", "a..b", "-f", FILE],
        ["python", "-c", "import ipykernel_launcher", "-f", FILE],
        ["python", "script.py", "-f", FILE],
        ["python", "-E", "-m", "ipykernel_launcher", "-f", FILE],
        ["python2", "-m", "ipykernel_launcher", "-f", FILE],
        ["pypy3", "-m", "ipykernel_launcher", "-f", FILE],
        ["conda", "run", "-n", "x", "python", "-m", "ipykernel_launcher", "-f", FILE],
        ["sandboxkernel", "run", "-f", FILE],
    ],
)
def test_all_others_are_refused_with_the_command_and_what_to_do(argv: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        parse_command(argv, FILE)
    assert " ".join(argv) in caught.value.message
    assert "local-provisioner" in caught.value.hint
    assert caught.value.field == "argv"


def interpreter(path: Path, *, config: str | None = None) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    if config is not None:
        (path.parent.parent / "pyvenv.cfg").write_text(config)
    return path


def test_virtual_environment_is_its_prefix_and_names_its_base(tmp_path: Path) -> None:
    base = interpreter(tmp_path / "base/bin/python3.12")
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(base)
    (tmp_path / "venv/pyvenv.cfg").write_text("home = x\n")
    expected = PythonEnvironment(
        python=str(python), base=str(base), folders=[str(tmp_path / "venv")]
    )
    assert environment_of(str(python)) == expected
    (tmp_path / "link").symlink_to(tmp_path / "venv")
    assert environment_of(str(tmp_path / "link/bin/python")) == expected


def test_installation_of_its_own_is_its_prefix(tmp_path: Path) -> None:
    base = interpreter(tmp_path / "conda/bin/python3.12")
    (tmp_path / "conda/bin/python").symlink_to("python3.12")
    found = environment_of(str(tmp_path / "conda/bin/python"))
    assert (found.base, found.folders) == (str(base), [str(tmp_path / "conda")])


@pytest.mark.parametrize("value", ["true", "True", " TRUE "])
def test_environment_with_the_systems_packages_is_refused(tmp_path: Path, value: str) -> None:
    config = f"include-system-site-packages = {value}\n"
    python = interpreter(tmp_path / "v/bin/python", config=config)
    with pytest.raises(RequestError, match="includes the system's packages"):
        environment_of(str(python))


def test_interpreter_that_is_missing_or_no_program(tmp_path: Path) -> None:
    (tmp_path / "python").write_text("")
    for python in (str(tmp_path / "python"), str(tmp_path / "none"), "python9.9", "bin/python"):
        with pytest.raises(RequestError, match="no interpreter"):
            environment_of(python)


def test_system_python_that_does_not_run_us_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.realpath", lambda path: path)
    monkeypatch.setattr("os.access", lambda *_: True)
    with pytest.raises(RequestError, match="not the one that this Jupyter server runs on"):
        environment_of("/usr/bin/python3.99")


def test_running_environment_is_the_one_of_these_tests() -> None:
    found = running_environment()
    assert found.base == str(Path(sys.executable).resolve())
    assert found.folders[0] in (sys.prefix, str(Path(sys.prefix).resolve()))

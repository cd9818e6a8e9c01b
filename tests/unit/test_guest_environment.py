"""What a fork has to know of the Python environment that it becomes the interpreter of."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxruntime.guest.environment import Environment, environment_of, reason_for_exec

ROOT = Path(__file__).resolve().parents[2]
VERSION = "{}.{}".format(*sys.version_info)


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    (tmp_path / f"lib/python{VERSION}/site-packages").mkdir(parents=True)
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\n")
    return tmp_path


def found(venv: Path) -> Environment:
    return environment_of(f"{venv}/bin/python")


def test_virtual_environment_has_one_folder_of_packages(venv: Path) -> None:
    assert found(venv) == Environment(
        f"{venv}/bin/python", str(venv), (f"{venv}/lib/python{VERSION}/site-packages",)
    )


def test_any_other_has_the_interpreters_own(tmp_path: Path) -> None:
    assert environment_of(f"{tmp_path}/bin/python").prefix is None


def test_plain_environment_needs_no_interpreter_of_its_own(venv: Path) -> None:
    (venv / "etc/jupyter/nbconfig").mkdir(parents=True)  # for servers, not for kernels
    (venv / f"lib/python{VERSION}/site-packages/some.pth").write_text("/nowhere\n")
    assert reason_for_exec(found(venv)) is None


@pytest.mark.parametrize(
    "path",
    [
        "etc/ipython/ipython_config.py",
        "etc/ipython/ipython_kernel_config.json",
        "etc/jupyter/jupyter_config.py",
        f"lib/python{VERSION}/site-packages/sitecustomize.py",
        f"lib/python{VERSION}/site-packages/usercustomize.py",
    ],
)
def test_what_acts_at_an_interpreters_start_calls_for_one(venv: Path, path: str) -> None:
    (venv / path).parent.mkdir(parents=True, exist_ok=True)
    (venv / path).write_text("")
    reason = reason_for_exec(found(venv))
    assert reason is not None and str(venv) in reason


def test_an_interpreter_that_enters_an_environment_is_like_its_own(tmp_path: Path) -> None:
    """What decides where modules come from, against the environment's own interpreter."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (site_packages,) = venv.glob("lib/python3*/site-packages")
    (tmp_path / "editable").mkdir()
    (site_packages / "one.pth").write_text(
        f"{tmp_path}/editable\nimport sys; sys.ran_by_pth = True\n"
    )
    look = (
        "import site, sys, sysconfig; print([sys.executable, sys.prefix, sys.exec_prefix, "
        "sys.path[1:], site.ENABLE_USER_SITE, site.getsitepackages(), sysconfig.get_paths(), "
        "sys.ran_by_pth])"
    )
    enter = (
        "import sysconfig; sysconfig.get_paths(); import sys\n"  # what it knows is out of date then
        f"sys.path.insert(0, {str(ROOT / 'runtime')!r})\n"
        "from sandboxruntime.guest import environment; del sys.path[0]\n"
        f"environment.enter(environment.environment_of({str(venv / 'bin/python')!r}))\n"
    )
    base = os.path.realpath(sys.executable)

    def run(python: str, code: str) -> str:
        return subprocess.run(
            [python, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
        ).stdout

    assert run(base, enter + look) == run(str(venv / "bin" / "python"), look)

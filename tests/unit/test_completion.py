"""Completion scripts are scripts of their shells, and no daemon is no error."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = "from sandboxkernel.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}", "PATH": os.environ["PATH"], **environment},
    )  # fmt: skip


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_of_each_shell(shell: str) -> None:
    text = run("completion", shell).stdout
    assert "_SANDBOXKERNEL_COMPLETE" in text
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)


def complete(words: str, index: int) -> list[str]:
    done = run(
        _SANDBOXKERNEL_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(index),
        SANDBOXKERNEL_HOST="unix:///nonexistent/api.sock",
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


def test_commands_options_and_no_sandbox_without_a_daemon() -> None:
    assert complete("sandboxkernel ins", 1) == ["plain,inspect"]
    assert "plain,--memory" in complete("sandboxkernel run --mem", 2)
    assert complete("sandboxkernel inspect ", 2) == []

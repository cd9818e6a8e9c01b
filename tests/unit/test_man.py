"""The man pages: made of the help, without a warning of groff's."""

from __future__ import annotations

import subprocess

import pytest

from tools.build_man import pages

PAGES = {f"{name}.{section}": text for name, section, text in pages()}


def test_there_is_a_page_for_each_command() -> None:
    assert {"sandboxkernel.1", "sandboxkernel-run.1", "sandboxkernel-user.1", "sandboxkerneld.8",
            "sandboxkernel_config.py.5", "sandboxruntime.8"} <= set(PAGES)  # fmt: skip
    assert "sandboxkernel-launch.1" not in PAGES  # no command for people


@pytest.mark.parametrize("name", PAGES)
def test_groff_has_no_word_against_it(name: str) -> None:
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tascii", "-P-cbou"], input=PAGES[name], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stderr == ""
    for title in ("NAME", "SYNOPSIS" if not name.endswith("5") else "SETTINGS", "SEE ALSO"):
        assert title in done.stdout


def test_every_setting_and_subcommand_is_told() -> None:
    assert "SandboxKernelDaemon.orphan_timeout_s" in PAGES["sandboxkernel_config.py.5"]
    assert "sandboxkernel user layer" in PAGES["sandboxkernel-user.1"]
    assert ".SS update" in PAGES["sandboxruntime.8"]

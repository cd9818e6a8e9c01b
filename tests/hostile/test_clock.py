"""The clock of the host is set: nothing that runs, waits or is counted depends on it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxkernel.models import KernelRestart
from tests.support import DEADLINE_S, RunningDaemon, run_inside, running_daemon, sandbox, wait_until

YEARS = 10 * 365 * 24 * 3600
# A daemon whose wall clock is off by what a file says.
PROGRAM = """
import datetime, pathlib, time
from sandboxkernel.daemon import events, sandbox, views
from sandboxkernel.daemon.app import main
jump, real, base = pathlib.Path("{run_dir}/jump"), time.time, datetime.datetime
def shifted():
    return real() + int((jump.exists() and jump.read_text()) or 0)
class Shifted(base):
    @classmethod
    def now(cls, tz=None):
        return base.fromtimestamp(shifted(), tz)
events.datetime = sandbox.datetime = views.datetime = Shifted
time.time = shifted
main()
"""


@pytest.fixture(scope="module")
def shifted() -> Iterator[RunningDaemon]:
    config = "c.SandboxKernelDaemon.orphan_timeout_s = 3600\n"
    with running_daemon(config, program=("-c", PROGRAM)) as running:
        yield running


@pytest.mark.parametrize("seconds", [-YEARS, YEARS], ids=["back", "forth"])
def test_a_jump_of_the_clock_changes_only_what_is_shown(
    shifted: RunningDaemon, seconds: int
) -> None:
    client, jump = shifted.client(), Path(shifted.run_dir) / "jump"
    jump.write_text("0")
    try:
        with (
            sandbox(shifted, as_kernel=True) as kernel,
            sandbox(shifted, "sh", "-c", "sleep 1; exit 3") as brief,
        ):
            before = client.inspect(kernel.id)
            jump.write_text(str(seconds))
            off = (client.stats(kernel.id).time - before.created_at).total_seconds()
            assert abs(off - seconds) < DEADLINE_S * 10  # a control: it has jumped
            wait_until(lambda: client.inspect(brief.id).state == "exited", what="an end")
            assert client.inspect(brief.id).exit.code == 3  # type: ignore[union-attr]
            wait_until(lambda: client.inspect(kernel.id).state == "running", what="it runs")
            assert run_inside(shifted, kernel, "true") == (0, "")
            shifted.kill()
            shifted.start()
            assert client.inspect(kernel.id).created_at == before.created_at
            assert client.restart(kernel.id, KernelRestart()).state == "running"
            listed = subprocess.run(
                [sys.executable, "-m", "sandboxkernel.cli", "ps", "--all"],
                env=shifted.environment, capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert kernel.id in listed.stdout and "-" not in listed.stdout.split("running")[1][:20]
    finally:
        jump.write_text("0")


def test_no_module_of_ours_measures_with_the_wall_clock() -> None:
    root = Path(__file__).resolve().parents[2]
    files = [*(root / "sandboxkernel").rglob("*.py"), *(root / "runtime").rglob("*.py")]
    assert len(files) > 80
    assert [str(path) for path in files if "time.time()" in path.read_text()] == []

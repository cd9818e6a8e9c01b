"""Confinement does not depend on the path to a kernel: the attacks again, from a cell."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from tests.conformance.session import Session, profile_config, session
from tests.escape.attacks import ANYWHERE
from tests.support import RunningDaemon, sandbox, wait_until, warm_up

RUN = """
import subprocess, sys
print(subprocess.run([sys.executable, "-IS", "-c", {source!r}], capture_output=True, text=True).stdout)
"""


def await_zygote(daemon: RunningDaemon, profile: str, *, spare: bool) -> None:
    """Until the next kernel of a profile is a spare, or is forked on demand."""
    with sandbox(daemon, as_kernel=True, profile=profile):
        pass

    def ready() -> bool:
        answer = daemon.client().zygotes()
        mine = [z for z in answer.zygotes if z.domain == profile and not z.retired]
        return profile not in answer.starting and any(z.spares or not spare for z in mine)

    wait_until(ready, what=f"a zygote of {profile}")


def test_every_attack_is_refused_from_a_cell(
    daemon: RunningDaemon, work: Path, request: pytest.FixtureRequest
) -> None:
    """The controls are in tests/escape; here the kernel's process is a zygote's child, or not.

    In a daemon with zygotes a start finds a spare, or none and then it is forked on demand.
    """
    forks = "warm" in request.node.callspec.id
    for wanted in ("spare", "warm") if forks else ("cold",):
        profile = "on_demand" if wanted == "warm" else "default"
        if forks:
            await_zygote(daemon, profile, spare=wanted == "spare")
        with session(work, config=profile_config(profile)) as kernel:
            made = daemon.client().inspect(kernel.kernel_id)
            assert made.start_path == wanted, made.cold_reason
            assert attacks_that_get_through(kernel) == {}


def attacks_that_get_through(kernel: Session) -> dict[str, str]:
    """Each attack in a process of a cell; the outcomes that should not be."""
    escaped = {}
    for attack in ANYWHERE:
        with attack.arrange(None) if attack.arrange else contextlib.nullcontext({}) as values:
            text = kernel.run(RUN.format(source=attack.source(values))).text
        outcome = text.splitlines()[-1] if text else "no word"
        if outcome not in attack.outcomes():
            escaped[attack.name] = outcome
    return escaped


def test_a_zygote_has_no_power_and_is_out_of_reach(
    daemon: RunningDaemon, work: Path, request: pytest.FixtureRequest
) -> None:
    if "warm" not in request.node.callspec.id:
        return
    zygote = warm_up(daemon)
    # While it forks it holds the cgroup files of the child for a moment.
    processes = wait_until(lambda: _at_rest(zygote.id), what="the zygote rests")
    for entry in processes:
        status = dict(
            line.split(":\t", 1)
            for line in (entry / "status").read_text().splitlines()
            if ":\t" in line
        )
        assert {status[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        assert min(map(int, status["Uid"].split())) >= 65536
        assert (status["NoNewPrivs"], status["Seccomp"], status["Groups"].strip()) == ("1", "2", "")
        assert status["Threads"] == "1"
        for name in ("mnt", "pid", "net", "ipc", "uts"):
            assert (entry / "ns" / name).readlink() != Path(f"/proc/self/ns/{name}").readlink()
    with session(work) as kernel:
        # Its parent in the zygote's PID namespace is not in the kernel's.
        code = "import os; print(sorted(int(p) for p in os.listdir('/proc') if p.isdigit()), os.path.exists('/opt/sandboxkernel/sandboxruntime/spec.py'))"
        assert kernel.run(code).text == "[1, 2] False"


def _at_rest(zygote_id: str) -> list[Path]:
    """The zygote and its pid 1, if they hold nothing but pipes and sockets."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            lines = (entry / "cgroup").read_text().splitlines() if entry.name.isdigit() else []
            mine = [line for line in lines if line.endswith(f"/zygotes/{zygote_id}")]
            if not mine:
                continue
            held = {os.readlink(fd).partition(":")[0] for fd in (entry / "fd").iterdir()}
        except OSError:
            return []
        if not held <= {"/dev/null", "pipe", "socket"}:
            return []
        found.append(entry)
    return found if len(found) == 2 else []


# Signals everybody it sees, then opens all that it may.
STOPS = """
import os, resource, signal, subprocess
child = subprocess.Popen(["sleep", "600"])
for pid in (-1, 1, os.getppid()):
    for number in (signal.SIGSTOP, signal.SIGTSTP):
        try:
            os.kill(pid, number)
        except PermissionError:
            pass  # Landlock keeps signals among the kernel's own processes
stopped = os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    answer = os.strerror(error.errno)
for _ in range(64):  # the kernel has to answer
    os.close(held.pop())
print(stopped, answer)
child.kill()
"""


def test_a_fork_can_neither_stop_nor_exhaust_its_zygote(
    daemon: RunningDaemon, work: Path, request: pytest.FixtureRequest
) -> None:
    """The control is the kernel's own child, which stops, and its own descriptors, which end."""
    if "warm" not in request.node.callspec.id:
        return
    await_zygote(daemon, "on_demand", spare=False)

    def zygote() -> str:
        found = daemon.client().zygotes().zygotes
        (mine,) = [z.id for z in found if z.domain == "on_demand" and not z.retired]
        return mine

    parent = zygote()
    processes = wait_until(lambda: _at_rest(parent), what="the zygote rests")
    with session(work, config=profile_config("on_demand")) as kernel:
        assert daemon.client().inspect(kernel.kernel_id).start_path == "warm"
        assert kernel.run(STOPS).text == "True Too many open files"
        assert wait_until(lambda: _at_rest(parent), what="the zygote rests") == processes
        for entry in processes:
            assert "State:\tT" not in (entry / "status").read_text()
        with session(work, config=profile_config("on_demand")) as sibling:
            assert daemon.client().inspect(sibling.kernel_id).start_path == "warm"
            assert sibling.run("print(6 * 7)").text == "42"
    assert zygote() == parent

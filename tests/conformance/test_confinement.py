"""Confinement does not depend on the path to a kernel: the attacks again, from a cell."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conformance.session import session
from tests.escape.attacks import NEEDS_CAPABILITY, NO_PRIVILEGE_NEEDED, SECCOMP_ONLY
from tests.support import RunningDaemon, wait_until, warm_up

ALL = (*SECCOMP_ONLY, *NEEDS_CAPABILITY, *NO_PRIVILEGE_NEEDED)


def test_every_attack_is_refused_from_a_cell(
    daemon: RunningDaemon, work: Path, request: pytest.FixtureRequest
) -> None:
    """The controls are in tests/escape; here the kernel's process is a zygote's child, or not."""
    with session(work) as kernel:
        path = daemon.client().inspect(kernel.kernel_id).start_path
        assert (path == "cold") == ("warm" not in request.node.callspec.id)
        escaped = {}
        for attack in ALL:
            code = f"import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', {attack.source()!r}], capture_output=True, text=True).stdout)"
            outcome = kernel.run(code).text.splitlines()[-1]
            if outcome not in {f"refused {name}" for name in attack.expected}:
                escaped[attack.name] = outcome
        assert not escaped


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

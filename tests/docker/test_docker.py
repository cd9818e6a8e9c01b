"""The same `docker run` with our runtime and with runc: what comes out is compared."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxkernel.images.hostimage import ensure_host_image
from sandboxkernel.images.store import ImageStore
from tests.benchmarks.containers import dockerd, merged_rootfs
from tests.support import ROOT, SHARED_DATA, wait_until

TIMEOUT_S = 120


class Docker:
    def __init__(self, host: str, image: str) -> None:
        self._host, self.image = host, image

    def __call__(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["docker", "-H", self._host, *args],
            capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, (args, done)
        return done


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    image = ensure_host_image(ImageStore(SHARED_DATA / "images"), progress=lambda _: None)
    folder = SHARED_DATA / "bundles" / str(image.digest)[-16:]
    rootfs = merged_rootfs(tuple(image.layer_dirs), folder)
    program = tmp_path_factory.mktemp("runtime") / "sandboxruntime"
    program.write_text(
        f"#!/bin/sh\nPYTHONPATH={ROOT / 'runtime'} exec {sys.executable} "
        '-m sandboxruntime.bundles.command "$@"\n'
    )
    program.chmod(0o755)
    with dockerd(rootfs, "--add-runtime", f"sandboxruntime={program}") as (host, name):
        yield Docker(host, name)


STATUS = "grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status"
CASES = {
    "default": ([], f"id; {STATUS}; ls /dev; hostname | wc -c"),
    "limits": (
        ["-m", "256m", "--pids-limit", "50", "--cpus", "0.5"],
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max "
        "/sys/fs/cgroup/cpu/cpu.cfs_quota_us; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max",
    ),
    "user": (
        ["--user", "1000:100", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
         "--read-only", "-v", "/tmp:/mnt:ro", "-w", "/tmp"],
        f"id; pwd; touch /x; touch /mnt/x; {STATUS}",
    ),
    "terminal": (["-t"], "tty; stat -c '%t %T' /dev/console"),
    "sysctl": (["--sysctl", "net.ipv4.ip_forward=1"], "cat /proc/sys/net/ipv4/ip_forward; exit 7"),
    "tmpfs": (["--tmpfs", "/data:size=1m,mode=1770"], "grep ' /data ' /proc/mounts; ls -ld /data"),
    "ulimit": (["--ulimit", "nofile=100:200", "--hostname", "foo", "--env", "A=b"],
               "ulimit -n; hostname; env | grep -v ^PWD | sort"),
    "capability": (["--cap-add", "SYS_PTRACE", "--cap-drop", "CHOWN"], STATUS),
    "unconfined": (["--security-opt", "seccomp=unconfined"], STATUS),
    "device": (["--device", "/dev/zero:/dev/mine"], "stat -c '%t %T %a' /dev/mine; "
               "head -c 1 /dev/mine | wc -c; mknod /tmp/sda b 8 0 && cat /tmp/sda; echo $?"),
    "init": (["--init"], "ps -o comm= 1 || cat /proc/1/comm"),
    "out of memory": (["-m", "64m"], "python3 -c 'x = bytearray(200 << 20)'"),
    "signal": ([], "kill -SEGV $$; sh -c 'kill -9 $$'; echo $?"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_docker_run_is_as_with_runc(docker: Docker, case: str) -> None:
    options, script = CASES[case]
    found = []
    for runtime in ("sandboxruntime", "runc"):
        done = docker("run", "--rm", "--network=none", "--runtime", runtime, *options,
                      docker.image, "/bin/sh", "-c", script, check=False)  # fmt: skip
        text = re.sub(r"\b[0-9a-f]{12,}\b", "ID", done.stdout)
        found.append((done.returncode, text, done.stderr))
    assert found[0] == found[1]


@pytest.mark.parametrize(("program", "code"), [("/nope", 127), ("nope", 127), ("/etc/passwd", 126)])
def test_docker_knows_a_program_that_is_not_there(docker: Docker, program: str, code: int) -> None:
    done = docker("run", "--rm", "--network=none", "--runtime", "sandboxruntime", docker.image,
                  program, check=False)  # fmt: skip
    assert done.returncode == code


def test_the_life_of_a_container(docker: Docker) -> None:
    script = "trap 'exit 9' TERM; while :; do sleep 0.1; done"
    started = docker("run", "-d", "--network=none", "--runtime", "sandboxruntime", docker.image,
                     "/bin/sh", "-c", script)  # fmt: skip
    name = started.stdout.strip()

    def state() -> dict[str, object]:
        found: dict[str, object] = json.loads(docker("inspect", name).stdout)[0]["State"]
        return found

    try:
        done = docker("exec", "--user", "1000", "-w", "/tmp", "-e", "X=1", name,
                      "/bin/sh", "-c", "id -u; pwd; echo $X; exit 3", check=False)  # fmt: skip
        assert (done.returncode, done.stdout.split()) == (3, ["1000", "/tmp", "1"])
        assert docker("exec", "-t", name, "tty").stdout.strip() == "/dev/pts/0"
        docker("pause", name)
        assert state()["Paused"]
        docker("unpause", name)
        assert "sleep 0.1" in docker("top", name).stdout
        docker("update", "--memory", "200m", "--memory-swap", "200m", name)
        docker("stop", name)
        assert state()["ExitCode"] == 9
        docker("start", name)
        docker("kill", name)
        wait_until(lambda: not state()["Running"], what="it has ended")
        assert state()["ExitCode"] == 137
    finally:
        docker("rm", "-f", name)
    left = [p for p in Path("/sys/fs/cgroup").glob(f"*/docker/{name}*") if p.is_dir()]
    assert left == []

"""Other sandboxes with the same root file system: bubblewrap, runc, docker and gVisor's runsc.

The kernel's sockets lie in a directory of the host's that each of them gets bound at its own
path, so that one client reaches all of them in the same way.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.peers import Peer

__all__ = [
    "BwrapPeer",
    "DockerPeer",
    "RuncPeer",
    "RunscPeer",
    "connection",
    "dockerd",
    "merged_rootfs",
    "runsc_platform",
]

PORTS = ("shell", "iopub", "stdin", "control", "hb")
MEMORY_BYTES, PIDS, CPUS = 2 << 30, 512, 2  # as the default profile of ours
STOP_S = 20.0
DOCKERD_S = 60.0


def connection(ip: str, key: str) -> dict[str, Any]:
    """A connection file's content: five ipc sockets below one prefix."""
    return {
        "transport": "ipc",
        "ip": ip,
        "key": key,
        "signature_scheme": "hmac-sha256",
        "kernel_name": "",
        **{f"{name}_port": number for number, name in enumerate(PORTS, 1)},
    }


class ContainerPeer(Peer):
    """A program that runs the kernel in a container until it is told to end it."""

    def __init__(self, python: str) -> None:
        self._python = python
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._id = ""

    def start(self) -> dict[str, Any]:
        self._directory = Path(tempfile.mkdtemp(prefix="sk-bench-", dir="/run"))
        self._id = f"sk-bench-{uuid.uuid4().hex[:8]}"
        info = connection(str(self._directory / "s"), uuid.uuid4().hex)
        (self._directory / "connection.json").write_text(json.dumps(info))
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command(self._directory), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return {**info, "key": info["key"].encode()}

    def check(self) -> None:
        """It still runs."""
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"it has ended: {self.log()}")

    def log(self) -> str:
        """The end of what the program has said."""
        if self._directory is None or not (self._directory / "log").exists():
            return ""
        return (self._directory / "log").read_text(errors="replace")[-300:]

    def _argv(self, directory: Path) -> list[str]:
        return [self._python, "-m", "ipykernel_launcher", "-f", str(directory / "connection.json")]

    @abstractmethod
    def _command(self, directory: Path) -> list[str]: ...

    def _kill(self) -> None:
        assert self._process is not None
        self._process.kill()

    def _delete(self) -> None:
        """Remove what the program keeps of a container that has ended."""

    def stop(self) -> None:
        if self._process is not None:
            self._kill()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._delete()
            self._process = None
        if self._directory is not None:
            shutil.rmtree(self._directory)
            self._directory = None


def _quietly(*command: str) -> None:
    """Run a program whose failure means that there was nothing to do any more."""
    subprocess.run(command, capture_output=True, check=False)


class BwrapPeer(ContainerPeer):
    """`bwrap`, with every namespace and a root file system that cannot be written."""

    name = "bwrap"

    def __init__(self, python: str, rootfs: Path) -> None:
        super().__init__(python)
        self._rootfs = rootfs

    def _command(self, directory: Path) -> list[str]:
        return [
            "bwrap", "--unshare-all", "--die-with-parent", "--clearenv",
            "--ro-bind", str(self._rootfs), "/", "--proc", "/proc", "--dev", "/dev",
            "--tmpfs", "/tmp", "--tmpfs", "/run", "--bind", str(directory), str(directory),
            "--setenv", "PATH", "/usr/bin", "--setenv", "HOME", "/tmp", "--setenv", "LANG",
            "C.UTF-8", "--setenv", "JPY_PARENT_PID", "1", "--chdir", "/", *self._argv(directory),
        ]  # fmt: skip


class DockerPeer(ContainerPeer):
    """`docker run` with no network."""

    name = "docker"

    def __init__(self, python: str, image: str, host: str) -> None:
        super().__init__(python)
        self._image, self._docker = image, ["docker", "-H", host]

    def _command(self, directory: Path) -> list[str]:
        return [
            *self._docker, "run", "--rm", "--name", self._id, "--network=none",
            "-v", f"{directory}:{directory}", "-m", str(MEMORY_BYTES), f"--pids-limit={PIDS}",
            f"--cpus={CPUS}", self._image, *self._argv(directory),
        ]  # fmt: skip

    def _kill(self) -> None:
        _quietly(*self._docker, "kill", self._id)


class RuncPeer(ContainerPeer):
    """`runc run` of a bundle on the root file system, with the specification's default config."""

    name = "runc"
    program: tuple[str, ...] = ("runc",)

    def __init__(self, python: str, rootfs: Path) -> None:
        super().__init__(python)
        self._rootfs = rootfs
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["runc", "spec"], cwd=folder, check=True, capture_output=True)
            self._base = json.loads((Path(folder) / "config.json").read_text())

    def _spec(self, directory: Path) -> dict[str, Any]:
        spec: dict[str, Any] = json.loads(json.dumps(self._base))
        spec["root"] = {"path": str(self._rootfs), "readonly": True}
        spec["process"].update(
            terminal=False,
            args=self._argv(directory),
            env=["PATH=/usr/bin", "HOME=/tmp", "LANG=C.UTF-8", "JPY_PARENT_PID=1"],
            cwd="/",
        )
        for path in ("/tmp", "/run"):
            spec["mounts"].append({"destination": path, "source": "tmpfs", "type": "tmpfs",
                                   "options": ["nosuid", "nodev", "mode=1777"]})  # fmt: skip
        spec["mounts"].append({"destination": str(directory), "source": str(directory),
                               "type": "bind", "options": ["rbind", "rw"]})  # fmt: skip
        period_us = 100_000
        spec["linux"]["resources"] = {
            "memory": {"limit": MEMORY_BYTES},
            "pids": {"limit": PIDS},
            "cpu": {"quota": CPUS * period_us, "period": period_us},
        }
        return spec

    def _command(self, directory: Path) -> list[str]:
        bundle = directory / "bundle"
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(self._spec(directory)))
        return [*self.program, "run", "--bundle", str(bundle), self._id]

    def _kill(self) -> None:
        _quietly(*self.program, "kill", self._id, "KILL")

    def _delete(self) -> None:
        _quietly(*self.program, "delete", "--force", self._id)


class RunscPeer(RuncPeer):
    """gVisor: the same bundle. Its guest may make the sockets on the host (--host-uds)."""

    name = "runsc"

    def __init__(self, python: str, rootfs: Path, *, state: Path, platform: str) -> None:
        super().__init__(python, rootfs)
        self.program = (
            "runsc", f"--root={state}", f"--platform={platform}", "--network=none",
            "--host-uds=create", "--ignore-cgroups",
        )  # fmt: skip


def runsc_platform() -> str:
    """The platform that needs nothing of the host: systrap where this runsc has it, else ptrace.

    kvm would need an unnested /dev/kvm: where virtualisation is nested it may hang.
    """
    flags = subprocess.run(["runsc", "flags"], capture_output=True, text=True, check=False)
    return "systrap" if "systrap" in flags.stdout + flags.stderr else "ptrace"


def merged_rootfs(layers: tuple[Path, ...], target: Path) -> Path:
    """The image's layers copied over one another: what the other sandboxes run on."""
    rootfs = target / "rootfs"
    if not rootfs.is_dir():
        partial = target / "rootfs.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for layer in layers:
            subprocess.run(["cp", "-a", f"{layer}/.", str(partial)], check=True)
        partial.rename(rootfs)
    return rootfs


@contextlib.contextmanager
def dockerd(rootfs: Path, *arguments: str) -> Iterator[tuple[str, str]]:
    """A docker daemon of our own with the root file system imported; yields (host, image).

    Raises RuntimeError when it does not start.
    """
    directory = Path(tempfile.mkdtemp(prefix="sk-dockerd-", dir="/var/tmp"))
    host = f"unix://{directory}/docker.sock"
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            ["dockerd", "--host", host, "--data-root", str(directory / "data"),
             "--exec-root", str(directory / "exec"), "--pidfile", str(directory / "pid"),
             "--bridge=none", "--iptables=false", "--ip6tables=false", *arguments],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        _await_dockerd(host, process, directory / "log")
        with subprocess.Popen(["tar", "-C", str(rootfs), "-c", "."], stdout=subprocess.PIPE) as tar:
            subprocess.run(["docker", "-H", host, "import", "-", "sk-bench:latest"],
                           stdin=tar.stdout, check=True, capture_output=True)  # fmt: skip
        yield host, "sk-bench:latest"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            point = line.split(" ")[4]
            if point.startswith(str(directory)):
                _quietly("umount", point)
        shutil.rmtree(directory, ignore_errors=True)


def _await_dockerd(host: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + DOCKERD_S
    while subprocess.run(
        ["docker", "-H", host, "version"], capture_output=True, check=False
    ).returncode:
        if time.monotonic() > deadline or process.poll() is not None:
            raise RuntimeError(f"dockerd did not start: {log.read_text()[-2000:]}")
        time.sleep(0.2)

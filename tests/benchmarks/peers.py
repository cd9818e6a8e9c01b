"""The ways to start a kernel that are compared: each with the same interpreter and client."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager
from traitlets.config import Config

from sandboxkernel.client import SandboxClient
from sandboxkernel.models import Kernel

__all__ = ["DockerPeer", "LocalPeer", "Peer", "RuncPeer", "SandboxPeer", "dockerd", "merged_rootfs"]


def _pss_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.split("Pss:")[1].split()[0]) / 1024


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("PPid:")[1].split()[0])


class Peer(ABC):
    """One way to start a kernel."""

    name: str

    def prepare(self) -> None:  # noqa: B027  # most have nothing to wait for
        """Wait until it is as it should be before a start; not timed."""

    def check(self) -> None:  # noqa: B027
        """Raises RuntimeError if the start was not of the kind that is measured."""

    def memory_mib(self) -> float:
        """Proportional set size of the kernel's process (and its pid 1) in MiB."""
        raise NotImplementedError

    @abstractmethod
    def start(self) -> dict[str, Any]:
        """Start and return the connection info as soon as clients may connect."""

    @abstractmethod
    def stop(self) -> None:
        """End it and remove what it left."""


class _ManagedPeer(Peer):
    """Through jupyter_client's KernelManager, as every front end does."""

    kernel_name: str

    def __init__(self, work: Path) -> None:
        self._work = work
        self._manager: KernelManager | None = None

    def _make(self) -> KernelManager:
        return KernelManager(kernel_name=self.kernel_name)

    def start(self) -> dict[str, Any]:
        self._manager = self._make()
        self._manager.start_kernel(cwd=str(self._work))
        return self._manager.get_connection_info()

    def stop(self) -> None:
        assert self._manager is not None
        self._manager.shutdown_kernel(now=True)


class SandboxPeer(_ManagedPeer):
    """Ours, on one of its paths: a spare, a fork on demand (warm), or cold."""

    kernel_name = "sandboxed-python"

    def __init__(self, work: Path, client: SandboxClient, path: str) -> None:
        super().__init__(work)
        self.name = f"sandboxkernel, {path}"
        self._client, self._path = client, path
        self._profile = "default" if path == "spare" else path

    def _make(self) -> KernelManager:
        config = Config()
        config.SandboxProvisioner.profile = self._profile
        return KernelManager(kernel_name=self.kernel_name, config=config)

    def prepare(self) -> None:
        """Until the zygote, and for a spare as many as are wanted, are there."""
        if self._path == "cold":
            return
        deadline, before = time.monotonic() + 30, -1
        while time.monotonic() < deadline:
            found = [z for z in self._client.zygotes().zygotes if z.domain == self._profile]
            waiting = len(found[0].spares) if found else -1
            if found and (self._path == "warm" or waiting == before > 0):
                return
            before = waiting
            time.sleep(0.4)
        # The first kernel of a profile is cold and calls for its zygote: start_once() does one.

    def check(self) -> None:
        """The path is the one that was meant."""
        if self._warmed_up and self._kernel().start_path != self._path:
            raise RuntimeError(f"started {self._kernel().start_path}, not {self._path}")
        self._warmed_up = True

    _warmed_up = False

    def _kernel(self) -> Kernel:
        assert self._manager is not None and self._manager.kernel_id is not None
        return self._client.inspect(self._manager.kernel_id)

    def memory_mib(self) -> float:
        """The kernel's process and pid 1 of its namespace."""
        pid = self._kernel().pid
        assert pid is not None
        return _pss_mib(pid) + _pss_mib(_parent(pid))


class LocalPeer(_ManagedPeer):
    """The plain, unsandboxed ipykernel."""

    name = "plain local kernel"
    kernel_name = "python3"

    def _make(self) -> KernelManager:
        manager = KernelManager(kernel_name=self.kernel_name, transport="ipc")
        manager.ip = f"/run/sk-bench-{uuid.uuid4().hex[:8]}"
        return manager

    def memory_mib(self) -> float:
        """The kernel's process."""
        assert self._manager is not None
        provisioner: Any = self._manager.provisioner
        return _pss_mib(provisioner.pid)


class _ContainerPeer(Peer):
    """A container engine with the sockets in a bind-mounted directory."""

    def __init__(self, python: str) -> None:
        self._python = python
        self._directory: Path | None = None

    def start(self) -> dict[str, Any]:
        self._directory = Path(tempfile.mkdtemp(prefix="sk-bench-", dir="/run"))
        info = {
            "transport": "ipc",
            "ip": str(self._directory / "s"),
            "key": uuid.uuid4().hex,
            "signature_scheme": "hmac-sha256",
            "kernel_name": "",
            **{f"{name}_port": port for port, name in
               enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)},
        }  # fmt: skip
        (self._directory / "connection.json").write_text(json.dumps(info))
        self._launch(self._directory)
        return {**info, "key": info["key"].encode()}

    def _argv(self, directory: Path) -> list[str]:
        return [self._python, "-m", "ipykernel_launcher", "-f", str(directory / "connection.json")]

    @abstractmethod
    def _launch(self, directory: Path) -> None: ...

    def stop(self) -> None:
        assert self._directory is not None
        shutil.rmtree(self._directory)


class DockerPeer(_ContainerPeer):
    """`docker run` with no network."""

    name = "docker run"

    def __init__(self, python: str, image: str, host: str) -> None:
        super().__init__(python)
        self._image, self._docker = image, ["docker", "-H", host]
        self._process: subprocess.Popen[bytes] | None = None
        self._container = ""

    def _launch(self, directory: Path) -> None:
        self._container = f"sk-bench-{uuid.uuid4().hex[:8]}"
        self._process = subprocess.Popen(
            [*self._docker, "run", "--rm", "--name", self._container, "--network=none",
             "-v", f"{directory}:{directory}", "-m", "2g", "--pids-limit=512", "--cpus=2",
             self._image, *self._argv(directory)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def stop(self) -> None:
        subprocess.run([*self._docker, "kill", self._container], capture_output=True, check=False)
        assert self._process is not None
        self._process.wait()
        super().stop()


class RuncPeer(_ContainerPeer):
    """`runc run` of a bundle on the same root file system."""

    name = "runc run"

    def __init__(self, python: str, rootfs: Path) -> None:
        super().__init__(python)
        self._rootfs = rootfs
        self._id = ""
        self._process: subprocess.Popen[bytes] | None = None
        base = subprocess.run(["runc", "spec"], cwd=rootfs.parent, check=False, capture_output=True)
        del base
        self._base = json.loads((rootfs.parent / "config.json").read_text())

    def _launch(self, directory: Path) -> None:
        self._id = f"sk-bench-{uuid.uuid4().hex[:8]}"
        spec = json.loads(json.dumps(self._base))
        spec["root"] = {"path": str(self._rootfs), "readonly": False}
        spec["process"].update(
            terminal=False, args=self._argv(directory),
            env=["PATH=/usr/bin", "HOME=/home/sandbox", "JPY_PARENT_PID=1"], cwd="/",
        )  # fmt: skip
        spec["mounts"].append({"destination": str(directory), "source": str(directory),
                               "type": "bind", "options": ["rbind", "rw"]})  # fmt: skip
        spec["linux"]["resources"] = {
            "memory": {"limit": 2 << 30}, "pids": {"limit": 512},
            "cpu": {"quota": 200000, "period": 100000},
        }  # fmt: skip
        bundle = directory / "bundle"
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(spec))
        self._process = subprocess.Popen(
            ["runc", "run", "--bundle", str(bundle), self._id],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def stop(self) -> None:
        subprocess.run(["runc", "kill", self._id, "KILL"], capture_output=True, check=False)
        assert self._process is not None
        self._process.wait()
        subprocess.run(["runc", "delete", "--force", self._id], capture_output=True, check=False)
        super().stop()


def merged_rootfs(layers: tuple[Path, ...], target: Path) -> Path:
    """The image's layers copied over one another: what docker and runc run on."""
    rootfs = target / "rootfs"
    if not rootfs.is_dir():
        rootfs.mkdir(parents=True)
        for layer in layers:
            subprocess.run(["cp", "-a", f"{layer}/.", str(rootfs)], check=True)
    return rootfs


@contextlib.contextmanager
def dockerd(rootfs: Path) -> Any:
    """A docker daemon of our own with the root file system imported; yields (host, image)."""
    directory = Path(tempfile.mkdtemp(prefix="sk-dockerd-", dir="/var/tmp"))
    host = f"unix://{directory}/docker.sock"
    log = (directory / "log").open("wb")
    process = subprocess.Popen(
        ["dockerd", "--host", host, "--data-root", str(directory / "data"),
         "--exec-root", str(directory / "exec"), "--pidfile", str(directory / "pid"),
         "--bridge=none", "--iptables=false", "--ip6tables=false"],
        stdout=log, stderr=log,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while subprocess.run(
            ["docker", "-H", host, "version"], capture_output=True, check=False
        ).returncode:
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(
                    f"dockerd did not start:\n{(directory / 'log').read_text()[-2000:]}"
                )
            time.sleep(0.2)
        with subprocess.Popen(["tar", "-C", str(rootfs), "-c", "."], stdout=subprocess.PIPE) as tar:
            subprocess.run(["docker", "-H", host, "import", "-", "sk-bench:latest"],
                           stdin=tar.stdout, check=True, capture_output=True)  # fmt: skip
        yield host, "sk-bench:latest"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        log.close()
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            point = line.split(" ")[4]
            if point.startswith(str(directory)):
                subprocess.run(["umount", point], check=False)
        shutil.rmtree(directory, ignore_errors=True)


def precompile() -> None:
    """Bytecode for the plain kernel's interpreter and packages."""
    import compileall
    import sysconfig

    for name in ("stdlib", "purelib"):
        compileall.compile_dir(sysconfig.get_path(name), quiet=2, workers=os.cpu_count() or 1)

"""Runs the probe in our sandboxes, on every start path, and in those of others."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandboxkernel.client import SandboxClient
from sandboxkernel.daemon.plan import python_of
from sandboxkernel.images.hostimage import ensure_host_image
from sandboxkernel.images.store import ImageStore
from tests.benchmarks.containers import RunscPeer, dockerd, merged_rootfs, runsc_platform
from tests.conformance.session import Session, profile_config, session
from tests.support import SHARED_DATA, running_daemon, warm_up

__all__ = ["OURS", "Host", "Subject", "collect", "listening", "on_every_path"]

PROBE = Path(__file__).with_name("probe.py").read_text()
TIMEOUT_S = 300.0
MEMORY_BYTES, PIDS, CPUS = 2 << 30, 512, 2  # as the default profile of ours
NOBODY = 65534
WORK = Path("/srv")
# profile -> the path on which its kernels start
OURS = {"cold": "cold", "warm": "warm", "spare": "spare", "runc": "cold"}
CONFIG = """
c.SandboxKernelDaemon.profiles = {
    "cold": {"zygote": "off"},
    "warm": {"spares": 0},
    "spare": {},
    "runc": {"executor": "runc"},
}
"""


@dataclass(frozen=True, slots=True)
class Host:
    """What the probe is told of the host, and what of it must not be seen inside."""

    variables: Mapping[str, str]
    facts: Mapping[str, Any]


@dataclass(slots=True)
class Subject:
    """One sandbox with what its probe has reported, or why there is no report.

    `limits` is what the runtime itself says of its limits; null is none.
    """

    name: str
    how: str
    report: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, float | None] = field(default_factory=dict)
    failure: str = ""


@contextlib.contextmanager
def listening() -> Iterator[Host]:
    """Listeners on the host's loopback and abstract name, for the length of a block."""
    name = f"sk-audit-{secrets.token_hex(8)}"
    with (
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.socket(socket.AF_INET6) as six,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        port = four.getsockname()[1]
        six.bind(("::1", port))
        six.listen()
        abstract.bind(f"\0{name}")
        abstract.listen()
        variables = {
            "AUDIT_HOST_PIDNS": os.readlink("/proc/self/ns/pid"),
            "AUDIT_TCP": str(port),
            "AUDIT_ABSTRACT": name,
        }
        yield Host(variables, _host_facts())


def _host_facts() -> dict[str, Any]:
    """The same facts as the probe's `disclosed`, and more, of the host."""

    def read(path: str) -> str:
        try:
            return Path(path).read_text()
        except OSError:
            return ""

    spaces = Path("/proc/self/ns")
    return {
        "namespaces": {entry.name: os.readlink(entry) for entry in spaces.iterdir()},
        "hostname": socket.gethostname(),
        "boot_id": read("/proc/sys/kernel/random/boot_id").strip(),
        "cmdline": read("/proc/cmdline").strip(),
        "release": os.uname().release,
        "uptime": float(read("/proc/uptime").split()[0]),
        "init": read("/proc/1/comm").strip(),
        "partitions": [line.split()[3] for line in read("/proc/partitions").splitlines()[2:]],
        "memory": read("/proc/meminfo").partition("\n")[0],
        "processor": [x for x in read("/proc/cpuinfo").splitlines() if "model name" in x][:1],
        "addresses": sorted(
            {read(f"/sys/class/net/{name}/address").strip() for _, name in socket.if_nameindex()}
            - {"", "00:00:00:00:00:00"}
        ),
        # Where the sandboxes' own storage lies, which is nothing that their inside should know.
        "folders": [str(SHARED_DATA), "/var/tmp/", "/run/sk", "/docker", "/containers"],
    }


def collect(host: Host, only: set[str], say: Callable[[str], None]) -> list[Subject]:
    """The probe's reports from every sandbox, or of those named."""
    image = ensure_host_image(ImageStore(SHARED_DATA / "images"), progress=lambda _: None)
    python = python_of(image.labels)
    subjects: list[Subject] = []
    with _bound_rootfs(tuple(image.layer_dirs), str(image.digest)) as rootfs:
        groups: dict[str, Callable[[], list[Subject]]] = {
            "ours": lambda: ours(host),
            "bwrap": lambda: [bwrap(host, rootfs, python)],
            "docker": lambda: docker(host, rootfs, python),
            "runsc": lambda: [runsc(host, rootfs, python)],
        }
        for group, run in groups.items():
            if not only or group in only:
                say(group)
                subjects += run()
    return subjects


@contextlib.contextmanager
def _bound_rootfs(layers: tuple[Path, ...], digest: str) -> Iterator[Path]:
    """The image in one folder, at a path that an unprivileged bubblewrap can reach."""
    rootfs = merged_rootfs(layers, SHARED_DATA / "bundles" / digest[-16:])
    place = Path(tempfile.mkdtemp(prefix="sk-audit-", dir="/run"))
    place.chmod(0o755)
    try:
        subprocess.run(["mount", "--bind", str(rootfs), str(place)], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", str(place)], check=True)
    finally:
        place.rmdir()


def _parse(subject: Subject, done: subprocess.CompletedProcess[str]) -> Subject:
    if done.returncode:
        subject.failure = f"exit {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}"
        return subject
    subject.report = json.loads(done.stdout)
    return subject


def _run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        stdin=subprocess.DEVNULL, **options,
    )  # fmt: skip


# --- ours


def ours(host: Host) -> list[Subject]:
    """A subprocess of a cell, on each path; through the daemon and jupyter_client."""
    return [_ours(host, profile, kernel, client) for profile, kernel, client in on_every_path()]


def on_every_path(config: str = "") -> Iterator[tuple[str, Session, SandboxClient]]:
    """A kernel that has started on each path, one after the other, with the daemon's client.

    `config` is added to the daemon's, which has a profile of each name in OURS.
    """
    with (
        tempfile.TemporaryDirectory(prefix="audit-", dir=WORK) as work,
        running_daemon(CONFIG + config) as daemon,
    ):
        client = daemon.client()
        for _ in client.prepare_image("host"):
            pass
        os.environ["SANDBOXKERNEL_HOST"] = f"unix://{daemon.socket_path}"
        for profile, path in OURS.items():
            if profile == "spare":
                warm_up(daemon, profile)
            elif profile == "warm":
                _call_for_zygote(Path(work), client, profile)
            with session(Path(work), config=profile_config(profile)) as kernel:
                shown = client.inspect(kernel.kernel_id)
                if shown.start_path != path:
                    raise RuntimeError(
                        f"{profile}: started {shown.start_path}: {shown.cold_reason}"
                    )
                yield profile, kernel, client


def _call_for_zygote(work: Path, client: SandboxClient, profile: str) -> None:
    """Kernels of a profile until one is a fork: the first is a cold one and calls for the zygote."""
    for _ in range(60):
        with session(work, config=profile_config(profile)) as kernel:
            if client.inspect(kernel.kernel_id).start_path == "warm":
                return
    raise RuntimeError(f"profile {profile}: no kernel is forked")


CELL = """
import json, subprocess, sys
_ran = subprocess.run([sys.executable, "-c", {probe!r}], env={env!r}, capture_output=True, text=True)
print(json.dumps([_ran.returncode, _ran.stdout, _ran.stderr]))
"""


def _ours(host: Host, profile: str, kernel: Session, client: SandboxClient) -> Subject:
    name = f"ours, {profile}"
    subject = Subject(name, "a cell's subprocess in a kernel of its own")
    cell = CELL.format(probe=PROBE, env=dict(host.variables))
    code, out, error = json.loads(kernel.run(cell, timeout_s=TIMEOUT_S).text)
    shown = client.inspect(kernel.kernel_id)
    if shown.in_force is None:
        raise RuntimeError(f"{name}: nothing is in force")
    limits = shown.in_force.limits
    subject.limits = {
        "memory, bytes": limits.memory_bytes, "swap, bytes": limits.swap_bytes,
        "processes": limits.pids, "processors": limits.cpus,
    }  # fmt: skip
    return _parse(subject, subprocess.CompletedProcess([], code, out, error))


# --- others


def bwrap(host: Host, rootfs: Path, python: str, *, without: str = "") -> Subject:
    """As its manual advises: all namespaces, a new session, no further user namespaces.

    `without` leaves one option out.
    """
    options = [
        "--unshare-all", "--unshare-user", "--disable-userns", "--new-session",
        "--die-with-parent", "--cap-drop", "ALL", "--uid", "1000", "--gid", "1000",
        "--hostname", "sandbox", "--clearenv", "--ro-bind", str(rootfs), "/", "--proc", "/proc",
        "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/run", "--chdir", "/",
    ]  # fmt: skip
    options = [option for option in options if option != without]
    shown = [option if option != str(rootfs) else "ROOTFS" for option in options]
    subject = Subject("bwrap", f"run by an unprivileged user: bwrap {' '.join(shown)}")
    for name, value in host.variables.items():
        options += ["--setenv", name, value]
    done = _run(["bwrap", *options, python, "-c", PROBE], user=NOBODY, group=NOBODY,
                extra_groups=[], cwd="/")  # fmt: skip
    return _parse(subject, done)


HARDENED = (
    "--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only", "--user=1000:1000",
    f"--memory={MEMORY_BYTES}", f"--memory-swap={MEMORY_BYTES}", f"--pids-limit={PIDS}",
    f"--cpus={CPUS}", "--tmpfs=/tmp:rw,nosuid,nodev,size=256m",
)  # fmt: skip


def docker(host: Host, rootfs: Path, python: str) -> list[Subject]:
    """`docker run`, with nothing but no network, and with all that hardens it."""
    found = []
    try:
        with dockerd(rootfs) as (address, image):
            for name, options in (("docker", ()), ("docker, hardened", HARDENED)):
                flags = ["--network=none", *options]
                subject = Subject(name, f"docker run {' '.join(flags)}")
                found.append(_docker(subject, host, address, [*flags, image], python))
    except RuntimeError as error:  # no daemon on this machine
        found.append(Subject("docker", "docker run", failure=str(error)[-300:]))
    return found


def _docker(subject: Subject, host: Host, address: str, flags: list[str], python: str) -> Subject:
    docker = ["docker", "-H", address]
    name = f"sk-audit-{uuid.uuid4().hex[:8]}"
    variables = {**host.variables, "AUDIT_CONTAINER": "1"}
    env = [f"--env={key}={value}" for key, value in variables.items()]
    done = _run([*docker, "run", "--name", name, *env, *flags, python, "-c", PROBE])
    shown = _run([*docker, "inspect", name])
    _run([*docker, "rm", "--force", name])
    if not shown.returncode:
        config = json.loads(shown.stdout)[0]["HostConfig"]
        memory, swap = config["Memory"] or None, config["MemorySwap"]
        subject.limits = {
            "memory, bytes": memory, "swap, bytes": swap - memory if memory and swap > 0 else None,
            "processes": config["PidsLimit"] or None,
            "processors": config["NanoCpus"] / 1e9 if config["NanoCpus"] else None,
        }  # fmt: skip
    return _parse(subject, done)


class _ProbedRunsc(RunscPeer):
    """gVisor with the probe in place of a kernel."""

    def __init__(self, variables: Mapping[str, str], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._variables = variables

    def _argv(self, directory: Path) -> list[str]:
        return [self._python, "-c", PROBE]

    def _spec(self, directory: Path) -> dict[str, Any]:
        spec = super()._spec(directory)
        spec["process"]["env"] += [f"{name}={value}" for name, value in self._variables.items()]
        return spec

    def probe(self) -> subprocess.CompletedProcess[str]:
        """Run it in a container that is deleted at the end."""
        directory = Path(tempfile.mkdtemp(prefix="sk-audit-", dir="/run"))
        self._id = directory.name
        try:
            return _run(self._command(directory))
        finally:
            self._delete()
            shutil.rmtree(directory)


def runsc(host: Host, rootfs: Path, python: str) -> Subject:
    """gVisor's runsc on the OCI specification's default config, without a network."""
    platform = runsc_platform()
    how = f"runsc --platform={platform} --network=none --ignore-cgroups run, default config"
    subject = Subject("runsc", how)
    variables = {**host.variables, "AUDIT_CONTAINER": "1"}
    with tempfile.TemporaryDirectory(prefix="sk-audit-runsc-", dir="/run") as state:
        peer = _ProbedRunsc(variables, python, rootfs, state=Path(state), platform=platform)
        try:
            return _parse(subject, peer.probe())
        except subprocess.TimeoutExpired:
            subject.failure = f"no report within {TIMEOUT_S:g} s"
            return subject

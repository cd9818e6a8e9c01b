"""What privileged tests share: a real daemon, a leak check, and the wish to run."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from sandboxkernel.client import SandboxClient
from sandboxkernel.errors import SandboxError
from sandboxkernel.images.removal import remove_tree
from sandboxkernel.models import ExecExit, ExecOutput, Kernel, KernelCreate, Limits, Zygote
from sandboxruntime.cgroup import read_layout
from sandboxruntime.cgroup.layout import parse_others

ROOT = Path(__file__).resolve().parents[1]
MUST_RUN = bool(os.environ.get("SANDBOXKERNEL_TESTS_MUST_RUN"))
RANDOM = bool(os.environ.get("SANDBOXKERNEL_TEST_RANDOM"))
# An emulated processor is many times slower than ours (tests/vm).
SLOWDOWN = float(os.environ.get("SANDBOXKERNEL_TEST_SLOWDOWN", "1"))
DEADLINE_S = 30.0 * SLOWDOWN
LOG_SHOWN = 5_000  # characters of a daemon's log, with a test that fails
# The host image takes seconds to build: the daemons of the tests share one store of images, by a
# link. The rest of a data directory is one daemon's.
SHARED_DATA = Path(os.environ.get("SANDBOXKERNEL_TEST_DATA", "/var/tmp/sandboxkernel-tests"))
# Per session: two sessions on one machine must not take each other's sandboxes for leaks.
CGROUP_PARENT = f"sandboxkernel-tests-{os.getpid()}"
# What makes the containers of every profile of every daemon of the tests.
EXECUTOR = os.environ.get("SANDBOXKERNEL_TEST_EXECUTOR", "native")
# Whether the daemon that most tests share makes zygotes; other executors' containers have none.
ZYGOTES = EXECUTOR == "native" and os.environ.get("SANDBOXKERNEL_TEST_ZYGOTES", "1") != "0"
# Configuration of a daemon that makes none.
NO_ZYGOTES = "c.SandboxKernelDaemon.max_zygotes = 0\n"
_daemons: dict[Path, Path] = {}  # run directory and data directory of what is running
FIRST_ID = 0x70000000 - 65536  # of the zygotes' uids; the users' ranges follow


def wait_until(
    condition: Callable[[], Any], *, timeout_s: float = 30.0, what: str = "", every_s: float = 0.02
) -> Any:
    """Poll until true; the only place of the tests that sleeps."""
    timeout_s *= SLOWDOWN
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what or condition}")
        time.sleep(every_s)


def heed_signals() -> None:
    """A run in the background or under nohup ignores signals, and hands that down to children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for signum in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_DFL)


@dataclass
class RunningDaemon:
    """A daemon of the tests' own: own directories, own cgroups, shared image store."""

    run_dir: Path
    data_dir: Path
    config: Path
    env: dict[str, str]
    program: list[str]
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def log_path(self) -> Path:
        return self.run_dir / "daemon.log"

    @property
    def socket_path(self) -> Path:
        return self.run_dir / "api.sock"

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "SANDBOXKERNEL_HOST": f"unix://{self.socket_path}",
            "SANDBOXKERNEL_RUN_DIR": str(self.run_dir),
            "SANDBOXKERNEL_DATA_DIR": str(self.data_dir),
        }

    def client(self) -> SandboxClient:
        return SandboxClient(self.socket_path)

    @property
    def launcher(self) -> int:
        """The launcher's pid."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def kill(self) -> None:
        """SIGKILL: no chance to tidy up."""
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def start(self) -> None:
        """Start the daemon, or the next one after it was killed; returns when it serves."""
        ready_read, ready_write = os.pipe()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, "--config", str(self.config),
                 f"--ready-fd={ready_write}"],
                pass_fds=[ready_write],
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "SANDBOXKERNEL_RUN_DIR": str(self.run_dir),
                     "SANDBOXKERNEL_DATA_DIR": str(self.data_dir),
                     "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}", **self.env},
                cwd="/",
            )  # fmt: skip
        os.close(ready_write)
        with open(ready_read, "rb") as ready:
            if ready.read(1) != b"1":
                raise AssertionError(f"daemon did not start:\n{self.log_path.read_text()}")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # with its kernels
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def by_executor(name: str) -> str:
    """Configuration, the last of a daemon's: every profile has its containers made by `name`."""
    return f"""
_given = c.SandboxKernelDaemon.get("profiles", {{}})
_given = {{"default": {{}}, **(_given if isinstance(_given, dict) else {{}})}}
c.SandboxKernelDaemon.profiles = {{
    name: {{"executor": {name!r}, **members}} for name, members in _given.items()
}}
"""


@contextlib.contextmanager
def running_daemon(
    config: str = "",
    *,
    env: dict[str, str] | None = None,
    data_dir: Path | None = None,
    program: tuple[str, ...] = ("-m", "sandboxkernel.daemon"),
) -> Iterator[RunningDaemon]:
    """Start a daemon, wait until it serves, stop it at the end. `program` gets its run directory
    as {run_dir}. Without `data_dir` it has one of its own while it runs."""
    run_dir = Path(tempfile.mkdtemp(prefix="skt-", dir="/run"))
    run_dir.chmod(0o755)
    data = data_dir or make_data_dir(SHARED_DATA / "daemons" / run_dir.name)
    _daemons[run_dir] = data
    config_path = run_dir / "sandboxkernel_config.py"
    if EXECUTOR != "native":
        config += by_executor(EXECUTOR)
    config_path.write_text(f"c.SandboxKernelDaemon.cgroup_parent = {CGROUP_PARENT!r}\n" + config)
    config_path.chmod(0o644)
    daemon = RunningDaemon(
        run_dir, data, config_path, env or {}, [part.format(run_dir=run_dir) for part in program]
    )
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()
        del _daemons[run_dir]
        shutil.rmtree(run_dir)
        if data_dir is None:
            remove_tree(data)


def daemon_logs() -> Iterator[tuple[str, str]]:
    """Where the log of every daemon that runs is, and the end of it."""
    for run_dir in _daemons:
        for path in run_dir.glob("*.log"):
            yield str(path), path.read_text(errors="replace")[-LOG_SHOWN:]


def make_data_dir(path: Path) -> Path:
    """A data directory with the images of all daemons of the tests."""
    (SHARED_DATA / "images").mkdir(parents=True, exist_ok=True)
    path.mkdir(parents=True, exist_ok=True)
    (path / "images").symlink_to(SHARED_DATA / "images")
    return path


def warm_up(daemon: RunningDaemon, profile: str | None = None) -> Zygote | None:
    """Start a kernel of a profile, and wait for the zygote that it calls for and for its spare.

    None where every profile has its containers made by another executor: those have no zygotes.
    """
    with sandbox(daemon, as_kernel=True, profile=profile):
        pass
    if EXECUTOR != "native":
        return None
    domain = profile or "default"

    def ready() -> Zygote | None:
        found = daemon.client().zygotes().zygotes
        return next((z for z in found if z.domain == domain and z.spares), None)

    return wait_until(ready, what=f"a zygote of {domain} with a spare")


@contextlib.contextmanager
def sandbox(daemon: RunningDaemon, *argv: str, **members: Any) -> Iterator[Kernel]:
    """A sandbox that sleeps (or runs `argv`) and is removed at the end."""
    client = daemon.client()
    limits = members.pop("limits", Limits())
    program = None if members.pop("as_kernel", False) else list(argv) or ["sleep", "600"]
    kernel = client.create(
        KernelCreate(
            kernel_id=members.pop("kernel_id", f"test-{uuid.uuid4().hex[:12]}"),
            argv=program,
            limits=limits,
            **members,
        )
    )
    try:
        yield kernel
    finally:
        client.remove(kernel.id)


def run_inside(
    daemon: RunningDaemon, kernel: Kernel, *argv: str, stdin: str = ""
) -> tuple[int, str]:
    """Run a program in a sandbox; its exit code and merged output."""
    return output_of(daemon.client(), kernel.id, argv, stdin=stdin)


def output_of(
    client: SandboxClient, name: str, argv: Sequence[str], *, stdin: str = ""
) -> tuple[int, str]:
    """The same, of whichever daemon."""
    code, text = -1, ""
    for item in client.exec(name, list(argv), stdin=stdin):
        if isinstance(item, ExecOutput):
            text += item.data
        elif isinstance(item, ExecExit):
            code = item.exit_code
    return code, text


def python_inside(daemon: RunningDaemon, kernel: Kernel, source: str) -> tuple[int, str]:
    """Run Python source in a sandbox with the image's interpreter."""
    return run_inside(daemon, kernel, "python3", "-c", source)


def residents() -> set[str]:
    """Zygotes and waiting spares of our daemons: theirs, and nothing that a sandbox left."""
    found: set[str] = set()
    for run_dir in _daemons:
        with contextlib.suppress(SandboxError, OSError):
            for zygote in SandboxClient(run_dir / "api.sock").zygotes().zygotes:
                found |= {zygote.id, *zygote.spares}
    return found


def host_state() -> dict[str, Any]:
    """Everything that a sandbox could leave behind on this host."""
    kept = residents()
    cgroups = [
        folder
        for parent in _cgroup_parents()
        for folder, _, _ in os.walk(parent)  # which does not mind what goes meanwhile
        if len(os.path.basename(folder)) == 12 and os.path.basename(folder) not in kept
    ]
    processes, namespaces = _foreign_processes(kept)
    mounts = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return {
        "cgroups": sorted(cgroups),
        "processes": sorted(processes),
        "namespaces": sorted(namespaces),
        "mounts": sorted(mounts),
        "loop devices": sorted(p.name for p in Path("/sys/block").glob("loop*/loop")),
        "run directories": sorted(str(p) for run in _daemons for p in run.glob("k/*")),
        "scratch": sorted(
            p.name
            for data in (SHARED_DATA, *_daemons.values())
            for p in (data / "scratch").glob("*")
            if p.name not in kept
        ),
    }


def _foreign_processes(kept: set[str]) -> tuple[set[str], set[str]]:
    """Processes with a sandbox's uid, and namespaces other than ours, that processes hold."""
    processes, namespaces = set(), set()
    own = {n: os.readlink(f"/proc/self/ns/{n}") for n in ("net", "pid", "user", "ipc", "uts")}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            cgroups = (entry / "cgroup").read_text()
            if _of_another_session(cgroups) or _cgroup_names(cgroups) & kept:
                continue
            status = (entry / "status").read_text()
            if int(status.split("Uid:\t")[1].split("\t")[0]) >= FIRST_ID:
                processes.add(f"{entry.name} {status.splitlines()[0]}")
            namespaces |= {os.readlink(entry / "ns" / name) for name in own} - set(own.values())
        except (OSError, IndexError):
            continue  # it ended while we looked
    return processes, namespaces


def _cgroup_names(cgroups: str) -> set[str]:
    return {line.rpartition("/")[2] for line in cgroups.splitlines()}


def _of_another_session(cgroups: str) -> bool:
    return "/sandboxkernel" in cgroups and f"/{CGROUP_PARENT}/" not in cgroups


def cgroup_points() -> list[Path]:
    """Where every hierarchy is mounted: other executors use more of them than we do."""
    mountinfo = Path("/proc/self/mountinfo").read_text()
    layout = read_layout()
    points = {*layout.hierarchies().values(), *parse_others(mountinfo, layout)}
    return [Path(point) for point in sorted(points)]


def _cgroup_parents() -> list[Path]:
    return [path for point in cgroup_points() if (path := point / CGROUP_PARENT).is_dir()]


def remove_cgroups() -> None:
    """The parents that this session made: sandboxes leave them, for the next sandbox."""
    for parent in _cgroup_parents():
        for path in sorted((p for p in parent.rglob("*") if p.is_dir()), reverse=True):
            with contextlib.suppress(OSError):  # what a failed test left, which has been told
                path.rmdir()
        with contextlib.suppress(OSError):
            parent.rmdir()


def leaks(before: dict[str, Any]) -> dict[str, list[Any]]:
    """What is there now and was not there before."""
    after = host_state()
    found = {}
    for kind, items in after.items():
        extra = [item for item in items if item not in before[kind]]
        if extra:
            found[kind] = extra
    return found


def lasting_leaks(before: dict[str, Any], timeout_s: float) -> dict[str, list[Any]]:
    """leaks() after waiting for them to go: namespaces and dying processes do so asynchronously.

    Once without any is enough: at the next look a spare may be in the making.
    """
    found: dict[str, list[Any]] = {}

    def clean() -> bool:
        found.clear()
        found.update(leaks(before))
        return not found

    with contextlib.suppress(AssertionError):
        wait_until(clean, timeout_s=timeout_s)
    return found


def connect_unix(path: Path) -> socket.socket:
    """A raw connection to the API."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(DEADLINE_S)
    sock.connect(str(path))
    return sock


def decode(data: bytes) -> Any:
    """JSON."""
    return msgspec.json.decode(data)

"""A launcher whose operations can fail, what it holds, and what is asked of it."""

from __future__ import annotations

import array
import contextlib
import dataclasses
import functools
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandboxkernel.daemon.plan import CONNECTION_FILE
from sandboxkernel.errors import SandboxError
from sandboxruntime.channel import close_fds
from sandboxruntime.errors import ContainerError
from sandboxruntime.handover import Payload, encode_payload, read_result
from sandboxruntime.spec import Credentials, Spec
from tests.faults.injector import SIZE, VARIABLE, Switch
from tests.faults.record import Found
from tests.harness import Attempt, Harness, harness, make_spec
from tests.support import CGROUP_PARENT, DEADLINE_S, ROOT, cgroup_points, wait_until

__all__ = [
    "Scene", "delete", "name_of", "our_cgroups", "pass_on", "run_exec", "scene", "start", "tidy",
]  # fmt: skip

OWNER = Credentials(12345, 12345)
POLL_S = 0.002
STANDS = "exec sleep 600"
_SOCKETS = 5  # of a kernel
PATCH = f"""
import os
sys.path.insert(1, {str(ROOT)!r})
from tests.faults.injector import in_launcher
in_launcher(os.environ[{VARIABLE!r}])
"""


@dataclass
class Scene:
    """A launcher with the switch in it, the work folder and layer of its sandboxes, the findings.

    `spec` is one of a container that the launcher makes; `fresh` ones differ in their names only,
    so that the next start has the layer of the one that failed. `sockets` are a kernel's.
    """

    running: Harness
    switch: Switch
    switch_fd: int
    work: Path
    spec: Spec
    sockets: list[socket.socket]
    found: Found = field(default_factory=Found)
    created: bool = False  # the launcher has made a container since this was reset
    plans: Any = None  # a zygotes.Template, where zygotes are made
    zygote: Any = None  # a zygotes.Standing, where one serves

    @property
    def canary(self) -> Path:
        """What a program in a sandbox makes first of all."""
        return self.work / "ran"

    def fresh(self, **changes: Any) -> Spec:
        """A spec with a name of its own."""
        name = uuid.uuid4().hex[:12]
        return dataclasses.replace(
            self.spec, container_id=name, hostname=name,
            cgroups_path=f"{CGROUP_PARENT}/harness/{name}", **changes,
        )  # fmt: skip

    def held(self) -> dict[str, Any]:
        """Everything that the launcher holds, and whose rights it acts with."""
        pid = self.running.pid
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        mounts = Path(f"/proc/{pid}/mountinfo").read_text()
        held = {
            "children": _children(pid),
            "cgroups": our_cgroups(),
            "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
            "mounts": mounts.count(self.running.staging),
            "rights": [x for x in status if x.split(":")[0] in ("Uid", "Gid", "Groups", "Umask")],
            "staging": len(os.listdir(f"/proc/{pid}/root{self.running.staging}")),
            "records": os.path.exists(f"{self.running.staging}.oci"),
        }
        if self.zygote is not None:
            pid = self.zygote.pid
            held["the zygote's children"] = _children(pid)
            held["the zygote's descriptors"] = len(os.listdir(f"/proc/{pid}/fd"))
        return held


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def our_cgroups() -> dict[str, list[str]]:
    """Those of this run's sandboxes, in every hierarchy that is mounted, and their processes."""
    found = {}
    for point in _points():
        with contextlib.suppress(FileNotFoundError):  # one that is gone, or not there yet
            for entry in os.scandir(point / CGROUP_PARENT / "harness"):
                if entry.is_dir():
                    found[entry.path] = Path(entry.path, "cgroup.procs").read_text().split()
    return found


@functools.cache
def _points() -> list[Path]:
    return cgroup_points()


@contextlib.contextmanager
def scene(*, executor: str = "") -> Iterator[Scene]:
    """A launcher with the switch in it."""
    folder = Path(tempfile.mkdtemp(prefix="skt-faults-", dir="/srv"))
    work = folder / "work"
    work.mkdir()
    os.chown(work, OWNER.uid, OWNER.gid)
    folder.chmod(0o755)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        fd = os.memfd_create("faults")
        stack.callback(os.close, fd)
        os.ftruncate(fd, SIZE)
        switch = Switch(fd)
        sockets = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(_SOCKETS)]
        for number, each in enumerate(sockets):
            each.bind(str(folder / f"socket-{number}"))
            each.listen()
        spec = stack.enter_context(make_spec(work=work, owner=OWNER, executor=executor))
        env = {VARIABLE: f"/proc/{os.getpid()}/fd/{fd}"}
        running = stack.enter_context(harness(patch=PATCH, env=env))
        yield Scene(running, switch, fd, work, spec, sockets)


def pass_on(sock: socket.socket, payload: Payload, fds: list[int]) -> str:
    """Give a process its program; why it has not executed that, "" if it has."""
    frame = encode_payload(payload)
    try:
        sock.sendmsg([frame[:1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        sock.sendall(frame[1:])
        said = b""
        while chunk := sock.recv(65536):
            said += chunk
    except ConnectionError as exc:  # it has ended before it took anything
        return str(exc)
    failure = read_result(said).failure
    return failure[1] if failure is not None else ""


def _program(stage: Scene, then: str) -> Payload:
    return Payload(
        argv=["/bin/sh", "-c", f"echo ran > {stage.canary}; {then}"],
        env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
        cwd="/home/sandbox",
        files={CONNECTION_FILE: "{}"},
    )


def hand_over(stage: Scene, sock: socket.socket, then: str = STANDS) -> str:
    """Give a process its program, and a kernel's sockets; as start()."""
    failure = pass_on(sock, _program(stage, then), [each.fileno() for each in stage.sockets])
    return f"hand_over: {failure}" if failure else ""


def created(stage: Scene, spec: Spec, **source: str) -> Attempt | str:
    """A container that waits for its program, or who refused it."""
    try:
        attempt = stage.running.create(spec, timeout_s=DEADLINE_S, **source)
    except SandboxError as exc:
        return name_of(exc)
    except AssertionError:
        stage.created = True
        return "hand_over: ended without a greeting"
    stage.created = True
    return attempt


def start(stage: Scene, spec: Spec, **source: str) -> str:
    """Create, verify from outside, hand over; "" on success, otherwise who refused."""
    attempt = created(stage, spec, **source)
    if isinstance(attempt, str):
        return attempt
    try:
        refusal = judged(attempt)
        if not refusal and source and attempt.reply["path"] == "cold":
            return "unnamed: a cold start, and nobody asked for it"
        return refusal or hand_over(stage, attempt._hand)
    finally:
        attempt.close()


def judged(attempt: Attempt) -> str:
    """Outside verification; as start(). A process that has ended may show any part of itself."""
    try:
        attempt.verify()
    except (ContainerError, OSError) as exc:
        return f"step verify: {exc}"
    return ""


def run_exec(stage: Scene, spec: Spec) -> str:
    """One more process in a running container; as start()."""
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE_S)
    read, write = os.pipe()
    try:
        fds = [theirs.fileno(), write]
        reply = stage.running.request("exec", fds, container_id=spec.container_id)
        theirs.close()
        assert reply["exec_id"]
        if not ours.recv(64):
            return "hand_over: ended without a greeting"
        return hand_over(stage, ours, "true")
    except SandboxError as exc:
        return name_of(exc)
    finally:
        ours.close()
        theirs.close()
        close_fds([read, write])


def delete(stage: Scene, spec: Spec) -> str:
    """End and remove a container, and unmount its root; as start()."""
    try:
        stage.running.request(
            "delete", container_id=spec.container_id, cgroups_path=spec.cgroups_path
        )
        released = stage.running.request("forget", upper=spec.rootfs.upper)["released"]
        return "" if released else "unnamed: the layer is still in use"
    except SandboxError as exc:
        return name_of(exc)


def name_of(exc: SandboxError) -> str:
    """What an error names: its step, feature or field; "unnamed" where none."""
    facts = vars(exc)
    for name in ("step", "feature", "field"):
        if facts.get(name):
            return f"{name} {facts[name]}: {exc}"
    return f"unnamed: {type(exc).__name__}: {exc}"


def tidy(stage: Scene, spec: Spec) -> str:
    """Give everything back, as the daemon does after a failure: "" when that succeeded."""
    refused = delete(stage, spec)
    stage.running._events.clear()
    return refused


def appears(path: Path) -> bool:
    """A program that has been executed says so soon."""
    try:
        wait_until(path.exists, timeout_s=10, every_s=POLL_S)
    except AssertionError:
        return False
    return True

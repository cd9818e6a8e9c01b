"""A launcher of the tests' own, driven without a daemon, with any one defence taken away.

Only for programs that the tests bring along: a container without its seccomp filter is still in
namespaces of its own, and attack code checks that before it does anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sandboxkernel.daemon.plan import PACKAGES, WRITABLE, python_of
from sandboxkernel.daemon.problems import error_from_launcher
from sandboxkernel.images.hostimage import ensure_host_image
from sandboxkernel.images.store import ImageStore, StoredImage
from sandboxkernel.images.userlayers import UserLayers
from sandboxruntime.cgroup import Cgroup, Limits, read_layout
from sandboxruntime.channel import close_fds, recv_message, send_message
from sandboxruntime.handover import HELLO, Payload, encode_payload
from sandboxruntime.spec import (
    Bind,
    Credentials,
    Executor,
    IdMapping,
    Process,
    Rootfs,
    Spec,
    to_json,
)
from sandboxruntime.steps import Step
from sandboxruntime.verify import (
    NAMESPACES,
    Facts,
    count_filters,
    read_facts,
    verify,
    verify_alone,
    verify_init,
)
from tests.support import CGROUP_PARENT, DEADLINE_S, ROOT, SHARED_DATA

ID_BASE = 0x7F000000
_BOOTSTRAP = """
import sys
sys.path.insert(0, {runtime!r})
from sandboxruntime import container, init, launcher, oci, syscalls
oci.SEARCH_PATH = {executors!r} + oci.SEARCH_PATH
for step in {dropped!r}:
    init.CREATE_STEPS[init.Step(step)] = lambda context: None
    init.JOIN_STEPS.pop(init.Step(step), None)
if {keep_capabilities!r}:
    # CREDENTIALS also drops the bounding set and locks securebits: leave only the ids.
    def credentials(context):
        import os
        syscalls.prctl(8, 1)  # PR_SET_KEEPCAPS
        os.setresgid(*[context.spec.process.gid] * 3)
        os.setresuid(*[context.spec.process.uid] * 3)
        syscalls.capset((1 << 41) - 1, (1 << 41) - 1, (1 << 41) - 1)
        for capability in range(41):  # ambient: an exec as another uid keeps them
            syscalls.prctl(47, 2, capability)
    init.CREATE_STEPS[init.Step.CREDENTIALS] = credentials
{patch}
if {shared_mounts!r}:
    syscalls.unshare(syscalls.CloneFlag.NEWNS)
    syscalls.mount("none", "/", None, syscalls.MountFlag.REC | syscalls.MountFlag.PRIVATE)
    syscalls.mount("none", "/", None, syscalls.MountFlag.REC | syscalls.MountFlag.SHARED)
    import os
    os.open("/proc/self/ns/mnt", os.O_RDONLY)  # or it ends as the launcher leaves it
launcher.main()
"""


class Attempt:
    """A container that has been created; `run` hands over a program and waits for its end."""

    def __init__(
        self, harness: Harness, spec: Spec, reply: dict[str, Any], hand: socket.socket, log_fd: int
    ) -> None:
        self.harness, self.spec, self.reply = harness, spec, reply
        self.pid1 = int(reply["pid"])
        self._hand, self._log_fd = hand, log_fd
        data, ancillary, _, _ = hand.recvmsg(len(HELLO), 128)
        assert data == HELLO
        self.pid = struct.unpack("3i", ancillary[0][2])[0]

    def verify(self) -> Facts:
        """Outside verification, as the daemon does it."""
        cgroup = Cgroup.attach(self.harness.layout, self.spec.cgroups_path)
        host = {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in NAMESPACES}
        facts = read_facts(self.pid)
        # A zygote's child has the zygote's too, a container of another runtime the latter's.
        alone = self.reply["path"] == "cold" and self.spec.executor is None
        filters = count_filters() + (1 if alone else 2)
        verify(facts, self.spec, cgroup, host, filters=filters, root=self.reply["root"])
        pidfd = os.pidfd_open(self.pid1)
        try:
            verify_init(self.pid1, pidfd, self.spec, filters=filters)
        finally:
            os.close(pidfd)
        verify_alone(cgroup, (self.pid1, self.pid))
        return facts

    def run(self, *argv: str, env: dict[str, str] | None = None) -> tuple[int | None, str]:
        """Wait status and output of the program."""
        self.start(*argv, env=env)
        return self.finish()

    def start(self, *argv: str, env: dict[str, str] | None = None) -> None:
        """Hand over a program, which runs when this returns."""
        payload = Payload(
            argv=list(argv),
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/home/sandbox", **(env or {})},
            cwd="/home/sandbox",
        )
        self._hand.sendall(encode_payload(payload))
        failure = self._hand.recv(65536)
        assert not failure, failure

    def read_line(self) -> str:
        """The next line of the program's output."""
        text = b""
        while not text.endswith(b"\n"):
            text += os.read(self._log_fd, 1) or b"\n"
        return text.decode(errors="replace").strip()

    def finish(self) -> tuple[int | None, str]:
        """Wait for the program's end: wait status, and the output that was not read."""
        text = b""
        while chunk := os.read(self._log_fd, 65536):
            text += chunk
        event = self.harness.next_event()
        assert event["container_id"] == self.spec.container_id
        return event["wait_status"], text.decode(errors="replace")

    def close(self) -> None:
        self._hand.close()
        os.close(self._log_fd)


class Harness:
    """One launcher. `dropped` are set-up steps that do nothing in it.

    `shared_mounts`: its host's mounts propagate, as they do wherever systemd has booted.
    `executors` is a directory in which it looks first for other runtimes. `patch` is Python that
    changes the launcher's modules before it starts.
    """

    def __init__(
        self,
        dropped: Iterable[Step] = (),
        *,
        keep_capabilities: bool = False,
        shared_mounts: bool = False,
        executors: Path | None = None,
        patch: str = "",
        env: dict[str, str] | None = None,
    ) -> None:
        self.layout = read_layout()
        self.staging = tempfile.mkdtemp(prefix="skt-stage-", dir="/run")
        self._events: list[dict[str, Any]] = []
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(DEADLINE_S)
        code = _BOOTSTRAP.format(
            runtime=str(ROOT / "runtime"), dropped=[str(s) for s in dropped],
            keep_capabilities=keep_capabilities, shared_mounts=shared_mounts,
            executors=f"{executors}:" if executors else "", patch=patch,
        )  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", code, str(theirs.fileno()), self.staging],
            pass_fds=[theirs.fileno()],
            env={"PATH": os.defpath, **(env or {})},
        )
        theirs.close()
        assert recv_message(self._sock)[0] == {"event": "ready", "pid": self._process.pid}

    @property
    def pid(self) -> int:
        return self._process.pid

    def request(self, op: str, fds: list[int] | None = None, **members: Any) -> dict[str, Any]:
        """One request and its reply; raises the product's error."""
        send_message(self._sock, {"op": op, "serial": 1, **members}, fds)
        while True:
            message, reply_fds = recv_message(self._sock)
            assert message is not None, "the launcher has ended"
            close_fds(reply_fds)
            if "event" in message:
                self._events.append(message)
                continue
            if "error" in message:
                raise error_from_launcher(message["error"])
            return message

    def next_event(self) -> dict[str, Any]:
        """The next exit."""
        if self._events:
            return self._events.pop(0)
        message, fds = recv_message(self._sock)
        close_fds(fds)
        assert message is not None
        return message

    @contextlib.contextmanager
    def container(self, spec: Spec) -> Iterator[Attempt]:
        """Create, and delete at the end."""
        attempt = self.create(spec)
        try:
            yield attempt
            attempt.close()
        finally:
            self.request("delete", container_id=spec.container_id, cgroups_path=spec.cgroups_path)

    def create(self, spec: Spec, *, timeout_s: float = DEADLINE_S, **source: str) -> Attempt:
        """A container whose process waits; AssertionError where it ends without a greeting.

        `source` names a zygote, or a spare.
        """
        ours, theirs = socket.socketpair()
        ours.settimeout(timeout_s)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        log_read, log_write = os.pipe()
        try:
            reply = self.request(
                "create", [theirs.fileno(), log_write], spec=to_json(spec), **source
            )
            theirs.close()
            return Attempt(self, spec, reply, ours, log_read)
        except BaseException:
            ours.close()
            os.close(log_read)
            raise
        finally:
            theirs.close()
            os.close(log_write)

    def close(self) -> None:
        """End the launcher with everything it holds."""
        self._sock.close()
        self._process.wait(DEADLINE_S)
        self.remove_staging()

    def remove_staging(self) -> None:
        """What a launcher leaves in the run directory."""
        os.rmdir(self.staging)
        os.unlink(f"{self.staging}.lock")

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(DEADLINE_S)


@contextlib.contextmanager
def harness(dropped: Iterable[Step] = (), **options: Any) -> Iterator[Harness]:
    """A launcher for the length of a block."""
    running = Harness(dropped, **options)
    try:
        yield running
    finally:
        running.close()


@contextlib.contextmanager
def make_spec(
    *,
    work: Path | None = None,
    owner: Credentials | None = None,
    at: str = "",
    executor: str = "",
    id_base: int = ID_BASE,
    **changes: Any,
) -> Iterator[Spec]:
    """The spec of an ephemeral sandbox on the host image, with its layer for the length of a block.

    `work` is bound at `at`, by default at its own path, and opened with the rights of `owner`.
    Sandboxes of different users differ in `id_base`.
    """
    image = host_image()
    container_id = uuid.uuid4().hex[:12]
    scratch = SHARED_DATA / "scratch" / container_id
    layers = UserLayers(SHARED_DATA / "users").scratch(scratch, id_base)
    mapping = (IdMapping(0, id_base, 65536),)
    binds: tuple[Bind, ...] = ()
    if work is not None:
        binds = (Bind(str(work), at or str(work), owner or Credentials(0, 0)),)
    made_by = None
    if executor:
        made_by = Executor(executor, python_of(image.labels), PACKAGES)
        package = str(ROOT / "runtime" / "sandboxruntime")
        inside = f"{PACKAGES}/sandboxruntime"
        binds += (Bind(package, inside, Credentials(0, 0), read_only=True, own_inodes=True),)
    spec = Spec(
        container_id=container_id,
        hostname=container_id,
        rootfs=Rootfs(
            lower=tuple(str(p) for p in image.layer_dirs), upper=str(layers.upper),
            work=str(layers.work), volatile=True,
        ),
        process=Process(uid=1000, gid=1000),
        uid_mappings=mapping,
        gid_mappings=mapping,
        cgroups_path=f"{CGROUP_PARENT}/harness/{container_id}",
        limits=Limits(memory_bytes=512 << 20, pids=100),
        binds=binds,
        writable=(*WRITABLE, *(bind.destination for bind in binds if not bind.read_only)),
        executor=made_by,
    )  # fmt: skip
    try:
        yield dataclasses.replace(spec, **changes)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@functools.cache
def host_image() -> StoredImage:
    """Looked up once: it looks at every file of the environment."""
    return ensure_host_image(ImageStore(SHARED_DATA / "images"), progress=lambda _: None)

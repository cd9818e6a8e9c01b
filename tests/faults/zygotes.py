"""Zygotes, spares and what comes of them, in a launcher whose operations can fail.

The program of a zygote has the switch, too, and so have the containers that it forks: up to the
moment at which a kernel's process begins with the user's code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sandboxkernel.daemon.plan import (
    INSIDE_ID,
    PACKAGES,
    ZYGOTE_FILE,
    ZygoteGround,
    plan_zygote_payload,
    plan_zygote_spec,
)
from sandboxkernel.daemon.zygote import READY_BYTES, read_ready
from sandboxkernel.errors import SandboxError
from sandboxkernel.images.userlayers import UserLayers
from sandboxkernel.limits.profiles import DEFAULT_PROFILE
from sandboxruntime.cgroup import Limits
from sandboxruntime.handover import FIRST_FD, Payload
from sandboxruntime.spec import HAND_OVER_DIR, Spec, to_json
from tests.faults import injector
from tests.faults.scene import Scene, created, judged, name_of, pass_on, tidy
from tests.harness import ID_BASE, host_image
from tests.support import CGROUP_PARENT, ROOT, SHARED_DATA, SLOWDOWN

__all__ = [
    "Standing", "Template", "make", "park", "remove", "renew", "stand_in", "standing", "template", "unpark",
    "with_switch",
]  # fmt: skip

HOST_ID = ID_BASE + 0x10000 + INSIDE_ID
SPARES_LIMITS = Limits(memory_bytes=256 << 20, pids=64)
READY_S = 60 * SLOWDOWN
INJECTOR = f"{HAND_OVER_DIR}/faults_injector.py"
# Between `python` and the guest's own program: see there for what it expects of sys.path.
_GUEST = f"""
import sys
sys.path[:1] = [{HAND_OVER_DIR!r}, {PACKAGES!r}]
import faults_injector
faults_injector.in_zygote({FIRST_FD + 2})
del sys.path[1]
"""
# Takes the place of a zygote's program where that does not matter: it is ready, and stays.
_STAND_IN = f"""
import os, time
os.write({FIRST_FD + 1}, b'{{"ready": 0}}')
time.sleep(600)
"""


@dataclass(frozen=True, slots=True)
class Template:
    """How zygotes are made; `ground` differs from one to the next in the name only."""

    ground: ZygoteGround

    def fresh(self) -> Spec:
        """The spec of one more."""
        name = uuid.uuid4().hex[:12]
        cgroup = f"{CGROUP_PARENT}/harness/{name}"
        return plan_zygote_spec(dataclasses.replace(self.ground, container_id=name, cgroup=cgroup))


@dataclass(frozen=True, slots=True)
class Standing:
    """A zygote that serves. `pid` is its program's."""

    spec: Spec
    pid: int

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return bool(Path(f"/proc/{self.pid}/cmdline").read_bytes())
        return False


@contextlib.contextmanager
def template(stage: Scene) -> Iterator[None]:
    """A layer for zygotes, one after the other, and how they are made, for the length of a block."""
    image = host_image()
    scratch = SHARED_DATA / "scratch" / uuid.uuid4().hex[:12]
    layers = UserLayers(SHARED_DATA / "users").scratch(scratch, HOST_ID - INSIDE_ID)
    try:
        stage.plans = Template(
            ZygoteGround(
                container_id="",
                uid=HOST_ID,
                gid=HOST_ID,
                layers=tuple(str(path) for path in image.layer_dirs),
                upper=str(layers.upper),
                work=str(layers.work),
                cgroup="",
                image_env=image.environment,
                image_labels=image.labels,
                profile=DEFAULT_PROFILE,
                package=str(ROOT / "runtime" / "sandboxruntime"),
            )
        )
        yield
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def with_switch(planned: Payload) -> Payload:
    """The program of a zygote with the switch in it, which is its third descriptor."""
    guest = f"{_GUEST}exec(compile({planned.files[ZYGOTE_FILE]!r}, {ZYGOTE_FILE!r}, 'exec'))\n"
    added = {ZYGOTE_FILE: guest, INJECTOR: Path(injector.__file__).read_text()}
    return dataclasses.replace(planned, files={**planned.files, **added})


def _program(plans: Template) -> Payload:
    source = (ROOT / "runtime/sandboxruntime/guest/zygote.py").read_text()
    return with_switch(plan_zygote_payload(plans.ground, source))


def make(stage: Scene, spec: Spec) -> str:
    """A zygote that serves, as the daemon makes it; "" on success, otherwise who refused."""
    made = _make(stage, spec, _program(stage.plans))
    return made if isinstance(made, str) else ""


def stand_in(stage: Scene, spec: Spec) -> str:
    """A container as a zygote's, with a program that serves nobody; as make()."""
    made = _make(stage, spec, plan_zygote_payload(stage.plans.ground, _STAND_IN))
    return made if isinstance(made, str) else ""


def _make(stage: Scene, spec: Spec, program: Payload) -> str | Standing:
    control, control_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ready, ready_theirs = socket.socketpair()
    with contextlib.ExitStack() as stack:
        for each in (control, control_theirs, ready, ready_theirs):
            stack.enter_context(each)
        ready.settimeout(READY_S)
        attempt = created(stage, spec)
        if isinstance(attempt, str):
            return attempt
        stack.callback(attempt.close)
        if refusal := judged(attempt):
            return refusal
        fds = [control_theirs.fileno(), ready_theirs.fileno(), stage.switch_fd]
        if failure := pass_on(attempt._hand, program, fds):
            return f"hand_over: {failure}"
        control_theirs.close()
        ready_theirs.close()
        try:
            unfit = read_ready(ready.recv(READY_BYTES))
        except ConnectionError as exc:
            unfit = str(exc)
        if unfit is not None:
            return f"step hand_over (unfit): {unfit}"
        try:
            stage.running.request(
                "adopt_zygote", [control.fileno()], container_id=spec.container_id
            )
        except SandboxError as exc:
            return name_of(exc)
        return Standing(spec, attempt.pid)


@contextlib.contextmanager
def standing(stage: Scene) -> Iterator[None]:
    """A zygote for the length of a block."""
    with template(stage):
        stage.zygote = _stand(stage)
        yield
        _end(stage)


def renew(stage: Scene) -> None:
    """Another zygote in the place of the one that serves."""
    _end(stage)
    stage.zygote = _stand(stage)


def _stand(stage: Scene) -> Standing:
    made = _make(stage, stage.plans.fresh(), _program(stage.plans))
    assert isinstance(made, Standing), made
    return made


def _end(stage: Scene) -> None:
    spec, stage.zygote = stage.zygote.spec, None
    assert (refused := remove(stage, spec)) == "", refused


def remove(stage: Scene, spec: Spec) -> str:
    """Retire and delete it, as the daemon does; "" on success, otherwise who refused."""
    try:
        stage.running.request("retire_zygote", container_id=spec.container_id)
    except SandboxError as exc:
        return name_of(exc)
    return tidy(stage, spec)


def park(stage: Scene, spec: Spec) -> str:
    """A spare in the cgroup of a spec, with other limits than that has."""
    try:
        stage.running.request(
            "park", zygote=stage.zygote.spec.container_id, spare=spec.container_id,
            cgroups_path=spec.cgroups_path, limits=to_json(SPARES_LIMITS),
        )  # fmt: skip
        return ""
    except SandboxError as exc:
        return name_of(exc)


def unpark(stage: Scene, spec: Spec) -> str:
    """End it and remove its cgroup, as the daemon does."""
    try:
        stage.running.request("unpark", spare=spec.container_id)
        stage.running.request(
            "delete", container_id=spec.container_id, cgroups_path=spec.cgroups_path
        )
        return ""
    except SandboxError as exc:
        return name_of(exc)

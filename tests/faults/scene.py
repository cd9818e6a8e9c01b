"""One operation at a time: it fails, and what that did to the host is looked at."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandboxkernel.errors import SandboxError
from sandboxruntime.cgroup import read_layout
from sandboxruntime.channel import close_fds
from sandboxruntime.errors import VerifyError
from sandboxruntime.handover import Payload, encode_payload
from sandboxruntime.spec import Credentials, Spec
from tests.faults.injector import COUNT_ONLY, VARIABLE, Switch
from tests.faults.tolerated import ends_by_itself, may_leave, reason_for
from tests.harness import Harness, harness, make_spec
from tests.support import CGROUP_PARENT, ROOT, wait_until

ERRNOS = ("EPERM", "ENOSYS", "EINVAL", "ENOMEM", "EIO")
SCENARIOS = ("cold", "exec", "delete", "runc")
OWNER = Credentials(12345, 12345)
_PATCH = f"""
sys.path.insert(1, {str(ROOT)!r})
from tests.faults.injector import install
install()
"""


@dataclass(frozen=True)
class Fault:
    """One operation of a scenario, by number and by name, and what it failed with."""

    scenario: str
    number: int
    code: int
    label: str

    def __str__(self) -> str:
        name = errno.errorcode.get(self.code, "")
        return f"{self.scenario} {self.number} {name} {self.label}"


@dataclass
class Found:
    """What a run has seen. `problems` is empty where everything is as promised."""

    points: dict[str, int] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    tolerated: Counter[str] = field(default_factory=Counter)
    user_code_ran: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def is_clean(self) -> bool:
        return not (self.user_code_ran or self.leaks or self.problems)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "points": self.points,
            "faults": dict(self.faults),
            "refused at": dict(self.refused.most_common()),
            "tolerated": dict(sorted(self.tolerated.items())),
            "starts of user code": len(self.user_code_ran),
            "leaks": self.leaks,
            "problems": self.problems,
        }


@dataclass
class Scene:
    """A launcher whose operations can fail, the work folder of its sandboxes, and the findings."""

    running: Harness
    switch: Switch
    work: Path
    found: Found = field(default_factory=Found)

    @property
    def canary(self) -> Path:
        return self.work / "ran"

    def held(self) -> dict[str, Any]:
        """Everything that the launcher holds, and whose rights it acts with."""
        pid = self.running.pid
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {
            "children": Path(f"/proc/{pid}/task/{pid}/children").read_text().split(),
            "cgroups": our_cgroups(),
            "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
            "mounts": Path(f"/proc/{pid}/mountinfo").read_text().count(self.running.staging),
            "rights": [x for x in status if x.split(":")[0] in ("Uid", "Gid", "Groups", "Umask")],
            "staging": len(os.listdir(f"/proc/{pid}/root{self.running.staging}")),
            "records": os.path.exists(f"{self.running.staging}.oci"),
        }


def our_cgroups() -> list[str]:
    return [
        str(path)
        for base in read_layout().hierarchies().values()
        for path in (Path(base) / CGROUP_PARENT / "harness").glob("*")
        if path.is_dir()
    ]


@contextlib.contextmanager
def scene() -> Iterator[Scene]:
    """A launcher with the switch in it."""
    folder = Path(tempfile.mkdtemp(prefix="skt-faults-", dir="/srv"))
    work = folder / "work"
    work.mkdir()
    os.chown(work, OWNER.uid, OWNER.gid)
    folder.chmod(0o755)
    switch = Switch(folder / "switch")
    try:
        with harness(patch=_PATCH, env={VARIABLE: str(folder / "switch")}) as running:
            yield Scene(running, switch, work)
    finally:
        shutil.rmtree(folder)


def hand_over(stage: Scene, sock: socket.socket) -> bytes:
    """Give the process its program; what it says before its exec, nothing if that succeeded."""
    argv = ["/bin/sh", "-c", f"echo ran > {stage.canary}; exec sleep 600"]
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    try:
        sock.sendall(encode_payload(Payload(argv=argv, env=env, cwd="/home/sandbox")))
        return sock.recv(65536)
    except ConnectionError as exc:  # it has ended before it took anything
        return str(exc).encode()


def start(stage: Scene, spec: Spec) -> str:
    """Create, verify from outside, hand over; "" on success, otherwise who refused."""
    try:
        attempt = stage.running.create(spec, timeout_s=20)
    except SandboxError as exc:
        return name_of(exc)
    except AssertionError:
        return "hand_over: ended without a greeting"
    try:
        try:
            attempt.verify()
        except (VerifyError, OSError) as exc:
            return f"step verify: {exc}"
        failure = hand_over(stage, attempt._hand)
        return f"hand_over: {failure!r}" if failure else ""
    finally:
        attempt.close()


def run_exec(stage: Scene, spec: Spec) -> str:
    """One more process in a running container; as start()."""
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    read, write = os.pipe()
    try:
        fds = [theirs.fileno(), write]
        reply = stage.running.request("exec", fds, container_id=spec.container_id)
        theirs.close()
        assert reply["exec_id"]
        if not ours.recv(64):
            return "hand_over: ended without a greeting"
        failure = hand_over(stage, ours)
        return f"hand_over: {failure!r}" if failure else ""
    except SandboxError as exc:
        return name_of(exc)
    finally:
        ours.close()
        theirs.close()
        close_fds([read, write])


def delete(stage: Scene, spec: Spec) -> str:
    """End and remove; as start()."""
    try:
        stage.running.request(
            "delete", container_id=spec.container_id, cgroups_path=spec.cgroups_path
        )
        return ""
    except SandboxError as exc:
        return name_of(exc)


def name_of(exc: SandboxError) -> str:
    """What an error names: its step, feature or field; "unnamed" where none."""
    facts = vars(exc)
    for name in ("step", "feature", "field"):
        if facts.get(name):
            return f"{name} {facts[name]}"
    return f"unnamed: {type(exc).__name__}: {exc}"


def tidy(stage: Scene, spec: Spec) -> str:
    """Give everything back, as the daemon does after a failure: "" when that succeeded."""
    refused = delete(stage, spec)
    released = stage.running.request("forget", upper=spec.rootfs.upper)["released"]
    stage.running._events.clear()
    stage.canary.unlink(missing_ok=True)
    return refused or ("" if released else "the layer is still in use")


def appears(path: Path) -> bool:
    """A program that has been executed says so soon."""
    try:
        wait_until(path.exists, timeout_s=10)
    except AssertionError:
        return False
    return True


def at_point(stage: Scene, scenario: str, wanted: int, code: int, held: dict[str, Any]) -> bool:
    """Let one operation of a scenario fail; whether there is one of that number."""
    executor = "runc" if scenario == "runc" else ""
    with make_spec(work=stage.work, owner=OWNER, executor=executor) as spec:
        if scenario in ("exec", "delete"):
            assert start(stage, spec) == ""
            assert appears(stage.canary)
            stage.canary.unlink()
        act: Callable[[Scene, Spec], str] = {"exec": run_exec, "delete": delete}.get(
            scenario, start
        )
        stage.switch.arm(wanted, code)
        problem = ""
        try:
            outcome = act(stage, spec)
        except Exception as exc:
            outcome, problem = "harness", f"{type(exc).__name__}: {exc}"
        label = stage.switch.disarm()[1]
        if label:
            judge(stage, Fault(scenario, wanted, code, label), outcome, problem)
        refused = tidy(stage, spec)
    fault = Fault(scenario, wanted, code, label)
    if refused:
        stage.found.leaks.append(f"{fault}: cannot be removed afterwards: {refused}")
    if label:
        after(stage, fault, held)
    return bool(label)


def judge(stage: Scene, where: Fault, outcome: str, problem: str) -> None:
    """Hold the outcome of one fault against what is promised."""
    found, scenario, label = stage.found, where.scenario, where.label
    found.faults[scenario] += 1
    if problem:
        found.problems.append(f"{where}: {problem}")
    elif outcome == "":
        found.tolerated[f"{scenario}: {label}"] += 1
        if not reason_for(label, where.code):
            found.problems.append(f"{where}: tolerated without a reason")
        starts = scenario != "delete" and not ends_by_itself(label)
        if starts and not appears(stage.canary):
            found.problems.append(f"{where}: said to have started, but has not")
    else:
        found.refused[f"{scenario}: {outcome.partition(':')[0]}"] += 1
        if outcome.startswith("unnamed"):
            found.problems.append(f"{where}: {outcome}")
        if stage.canary.exists():
            found.user_code_ran.append(str(where))


def after(stage: Scene, where: Fault, held: dict[str, Any]) -> None:
    """The next start is good, and then everything is as it was."""
    with make_spec(work=stage.work, owner=OWNER) as spec:
        outcome = start(stage, spec)
        if outcome or not appears(stage.canary):
            stage.found.problems.append(f"{where}: the next start fails: {outcome}")
        if outcome := tidy(stage, spec):
            stage.found.leaks.append(f"{where}: the next start stays: {outcome}")
    now = stage.held()
    for kind, value in now.items():
        if value != held[kind]:
            if not may_leave(where.label, kind):
                stage.found.leaks.append(f"{where}: {kind}: {held[kind]} before, {value} after")
            held[kind] = value


def baseline(stage: Scene) -> dict[str, Any]:
    """What the launcher holds once it has done everything."""
    for _ in range(2):
        after(stage, Fault("none", 0, 0, ""), stage.held())
    stage.found.leaks.clear()  # the first start fills caches
    return stage.held()


def count(stage: Scene, scenario: str) -> int:
    """How many operations a scenario has."""
    executor = "runc" if scenario == "runc" else ""
    with make_spec(work=stage.work, owner=OWNER, executor=executor) as spec:
        if scenario in ("exec", "delete"):
            assert start(stage, spec) == ""
            stage.running._events.clear()
        stage.switch.arm(COUNT_ONLY)
        act: Callable[[Scene, Spec], str] = {"exec": run_exec, "delete": delete}.get(
            scenario, start
        )
        assert (outcome := act(stage, spec)) == "", outcome
        number, _ = stage.switch.disarm()
        tidy(stage, spec)
    stage.found.points[scenario] = number
    return number

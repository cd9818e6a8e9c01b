"""What stands by while daemon and launcher die, and what is asked of them meanwhile."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandboxkernel.errors import KernelNotFound, SandboxError
from sandboxkernel.models import KernelCreate, KernelRestart
from tests.conformance.session import Session, profile_config, session
from tests.support import (
    SLOWDOWN,
    RunningDaemon,
    host_state,
    lasting_leaks,
    running_daemon,
    warm_up,
)

PLAIN = ("-m", "sandboxkernel.daemon")
TRAPPED = ("-m", "tests.crashes.traps", "{run_dir}")
SETTLE_S = 0.05 * SLOWDOWN
COLD = {"PYTHONHASHSEED": "1"}  # CPython reads it at its start: an interpreter of its own
RUNC = "runc"
CONFIG = f'c.SandboxKernelDaemon.profiles = {{"default": {{}}, "{RUNC}": {{"executor": "runc"}}}}\n'
Operation = Callable[["Scene"], None]


@dataclass
class Found:
    """What came of the crashes. `lost` kernels, `leaks` of the host, `stuck` operations."""

    crashes: Counter[str] = field(default_factory=Counter)
    failed_clearly: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    leaks: list[dict[str, Any]] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)

    def errors(self) -> Counter[str]:
        """How often each error code came."""
        codes: Counter[str] = Counter()
        for where, count in self.failed_clearly.items():
            codes[where.rpartition(": ")[2]] += count
        return codes

    def document(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "crashes": dict(self.crashes),
            "failed_clearly": dict(self.errors()),
            "lost": self.lost,
            "leaks": self.leaks,
            "stuck": self.stuck,
        }

    def is_clean(self) -> bool:
        """Nothing lost, nothing left."""
        return not (self.lost or self.leaks or self.stuck)


@dataclass
class Scene:
    """A daemon that is started again whenever it has ended, and kernels with their clients."""

    daemon: RunningDaemon
    bystanders: list[Session]
    found: Found = field(default_factory=Found)

    def revive(self) -> None:
        """As a supervisor does."""
        if self.daemon.process.poll() is not None:
            self.daemon.start()

    def check_bystanders(self, after: str) -> None:
        """Each answers its old client, which did nothing to reconnect, and has its variables."""
        for number, one in enumerate(self.bystanders):
            try:
                reply = one.run("print(mine)", timeout_s=20 * SLOWDOWN)
                if reply.text != str(number) or not one.manager.is_alive():
                    self.found.lost.append(f"kernel {number} after {after}: {reply.iopub}")
            except Exception as exc:  # whatever it is, that kernel is lost to its user
                self.found.lost.append(f"kernel {number} after {after}: {exc!r}")

    def check_leaks(self, before: dict[str, Any], after: str) -> None:
        """Nothing on the host that was not there, once everything settled."""
        lasting = lasting_leaks(before, timeout_s=15)
        left = {kind: items[:2] for kind, items in lasting.items()}
        if left:
            self.found.leaks.append({"after": after, **left})

    def attempt(self, operation: Operation, name: str) -> None:
        """An operation that may fail, but only with an error of ours, and not hang."""
        try:
            operation(self)
        except SandboxError as exc:
            self.found.failed_clearly[f"{name}: {exc.code}"] += 1
        except Exception as exc:
            self.found.stuck.append(f"{name}: {exc!r}")


@contextlib.contextmanager
def scene(work: Path, *, trapped: bool) -> Iterator[Scene]:
    """Kernels with their clients: forked, of an interpreter of its own, in a container of runc's."""
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(running_daemon(CONFIG, program=TRAPPED if trapped else PLAIN))
        os.environ["SANDBOXKERNEL_HOST"] = f"unix://{daemon.socket_path}"
        stack.callback(os.environ.pop, "SANDBOXKERNEL_HOST")
        warm_up(daemon)
        sessions = []
        for number, (env, profile) in enumerate((({}, None), (COLD, None), ({}, RUNC))):
            config = profile_config(profile)
            one = stack.enter_context(session(work, config=config, env={**os.environ, **env}))
            assert one.run(f"mine = {number}").status == "ok"
            sessions.append(one)
        made = {k.kernel_id: (k.start_path, k.executor) for k in daemon.client().kernels()}
        ways = [made[one.kernel_id] for one in sessions]
        assert [path != "cold" for path, _ in ways] == [True, False, False], ways
        assert [executor for _, executor in ways] == ["native", "native", "runc"], ways
        yield Scene(daemon, sessions)


def _create(scene: Scene, env: dict[str, str], profile: str = "default") -> str:
    name = f"crash-{uuid.uuid4().hex[:8]}"
    request = KernelCreate(kernel_id=name, env=env, profile=profile)
    return scene.daemon.client().create(request).id


def start_warm(scene: Scene) -> None:
    """Fork a kernel."""
    _create(scene, {})


def start_cold(scene: Scene) -> None:
    """Start a kernel with an interpreter of its own."""
    _create(scene, COLD)


def start_runc(scene: Scene) -> None:
    """Start a kernel in a container that runc makes."""
    _create(scene, {}, RUNC)


def _newest(scene: Scene) -> str:
    known = {one.kernel_id for one in scene.bystanders}
    return [k.id for k in scene.daemon.client().kernels() if k.kernel_id not in known][-1]


def restart(scene: Scene) -> None:
    """Restart the kernel that was started last."""
    scene.daemon.client().restart(_newest(scene), KernelRestart())


def remove(scene: Scene) -> None:
    """Remove it."""
    scene.daemon.client().remove(_newest(scene))


PREPARED: dict[str, tuple[Operation, Operation | None]] = {
    "start_warm": (start_warm, None),
    "start_cold": (start_cold, None),
    "restart": (restart, start_warm),
    "remove_warm": (remove, start_warm),
    "remove_cold": (remove, start_cold),
    "start_runc": (start_runc, None),
    "restart_runc": (restart, start_runc),
    "remove_runc": (remove, start_runc),
}


def tidy(scene: Scene) -> None:
    """Remove every kernel but the bystanders'."""
    known = {one.kernel_id for one in scene.bystanders}
    for kernel in list(scene.daemon.client().kernels()):
        if kernel.kernel_id not in known:
            with contextlib.suppress(KernelNotFound):
                scene.daemon.client().remove(kernel.id)


def crash_at(scene: Scene, role: str, name: str, number: int) -> bool:
    """One operation with the trap at its `number`th effect; whether it went off."""
    operation, preparation = PREPARED[name]
    if preparation is not None:
        preparation(scene)
    trap = scene.daemon.run_dir / "trap"
    trap.write_text(f"{role} {number} {uuid.uuid4().hex}")
    supervisor = threading.Thread(target=_supervise, args=(scene, trap))
    supervisor.start()
    where = f"{role} at {number} of {name}"
    scene.attempt(operation, where)
    time.sleep(SETTLE_S)  # the last effects come after the answer
    sprung = not trap.exists()
    trap.unlink(missing_ok=True)
    supervisor.join()
    time.sleep(SETTLE_S)
    scene.revive()
    if sprung:
        where = f"{where} ({(scene.daemon.run_dir / 'trapped').read_text()})"
        scene.found.crashes[f"{role} in {name}"] += 1
    scene.check_bystanders(where)
    tidy(scene)
    return sprung


def _supervise(scene: Scene, trap: Path) -> None:
    """Start the daemon again as soon as the trap has killed it."""
    while trap.exists():
        time.sleep(0.01)
    with contextlib.suppress(Exception):
        scene.daemon.process.wait(0.5 * SLOWDOWN)
    scene.revive()


def crash_at_random(scene: Scene, seed: int) -> None:
    """Kernels come and go while daemon, launcher or both are killed at some moment."""
    dice = random.Random(seed)
    name = dice.choice(sorted(PREPARED))
    operation, preparation = PREPARED[name]
    if preparation is not None:
        preparation(scene)
    victims = dice.choice((("daemon",), ("launcher",), ("daemon", "launcher")))
    delay_s = dice.uniform(0, 0.25) * SLOWDOWN
    worker = threading.Thread(target=scene.attempt, args=(operation, f"random {name}"))
    worker.start()
    time.sleep(delay_s)
    launcher = scene.daemon.launcher
    for victim in victims:
        if victim == "daemon":
            scene.daemon.kill()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(launcher, signal.SIGKILL)
    scene.revive()
    worker.join(60 * SLOWDOWN)
    where = f"seed {seed}: {'+'.join(victims)} {delay_s * 1000:.0f} ms into {name}"
    if worker.is_alive():
        scene.found.stuck.append(where)
    scene.found.crashes["+".join(victims)] += 1
    scene.check_bystanders(where)
    tidy(scene)


__all__ = ["PREPARED", "Found", "Scene", "crash_at", "crash_at_random", "host_state", "scene"]

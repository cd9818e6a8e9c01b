"""A real daemon whose launcher and zygotes have operations that fail: no start does.

What a zygote cannot give, a cold start does, and says why; the fork's own fault is told by that
from one that was passed over.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from sandboxkernel.errors import SandboxError
from sandboxkernel.models import Kernel, KernelCreate
from tests.faults.injector import SIZE, Operation, Switch
from tests.faults.record import Fault, Found, fail_each
from tests.faults.tolerated import ends_by_itself, reason_for
from tests.support import (
    RunningDaemon,
    host_state,
    lasting_leaks,
    python_inside,
    running_daemon,
    sandbox,
    wait_until,
)

__all__ = ["SERVED", "run"]


@dataclass(frozen=True)
class Served:
    """Kernels of which profile, the path that their starts take, and what of them fails.

    A fork that fails costs the zygote, and seconds: of those, every `every`th operation fails,
    with one errno in turn.
    """

    profile: str
    path: str
    removal: bool = False
    every: int = 1


SERVED = {
    "served_fork": Served("bare", "warm", every=12),
    "served_claim": Served("default", "spare", every=12),
    "served_remove": Served("default", "spare", removal=True),
}
CONFIG = 'c.SandboxKernelDaemon.profiles = {"default": {"spares": 1}, "bare": {"spares": 0}}\n'
FELL_BACK = "the fork failed: "
REACH_S = 0.5
SETTLE_S = 15.0


@dataclass
class Serving:
    """A daemon, and which of its kernels' operations are let fail."""

    daemon: RunningDaemon
    switch: Switch
    name: str
    found: Found = field(default_factory=Found)

    @property
    def what(self) -> Served:
        """What is let fail."""
        return SERVED[self.name]

    def create(self) -> Kernel:
        """A kernel."""
        name = f"fault-{uuid.uuid4().hex[:12]}"
        return self.daemon.client().create(KernelCreate(kernel_id=name, profile=self.what.profile))

    def ready(self) -> None:
        """The next start finds its zygote, and its spare."""

        def stands() -> bool:
            answer = self.daemon.client().zygotes()
            return not answer.starting and any(
                z.domain == self.what.profile
                and not z.retired
                and (z.spares or self.what.path != "spare")
                for z in answer.zygotes
            )

        def asked() -> bool:
            if stands():
                return True
            with sandbox(self.daemon, as_kernel=True, profile=self.what.profile):
                pass
            with contextlib.suppress(AssertionError):
                wait_until(stands, timeout_s=10)
            return stands()

        wait_until(asked, timeout_s=60, what=f"a zygote of {self.what.profile}")

    def operations(self) -> list[Operation]:
        """Those of one start, or removal, in which nothing fails."""
        self.ready()
        if self.what.removal:
            kernel = self.create()
            self.switch.record()
            self.daemon.client().remove(kernel.id)
            self.switch.disarm()
        else:
            self.switch.record()
            kernel = self.create()
            self.switch.disarm()
            assert kernel.start_path == self.what.path, kernel
            self.daemon.client().remove(kernel.id)
        return self.switch.recorded()

    def fail(self, operation: Operation, code: int) -> None:
        """Let one operation fail, and look at what came of it."""
        fault = Fault(self.name, operation, code)
        self.ready()
        before = host_state()
        try:
            if self.what.removal:
                self._fail_removal(fault)
            else:
                self._fail_start(fault)
        except (SandboxError, AssertionError, OSError) as exc:
            self.switch.disarm()
            self.found.problems.append(f"{fault}: {type(exc).__name__}: {exc}")
        for kind, items in lasting_leaks(before, timeout_s=SETTLE_S).items():
            self.found.leaks.append(f"{fault}: {kind}: {items[:2]}")

    def _fail_start(self, fault: Fault) -> None:
        self.switch.arm(fault.operation, fault.code)
        kernel = self.create()
        with contextlib.suppress(AssertionError):
            wait_until(self.switch.has_fired, timeout_s=REACH_S)
        fired = self.switch.disarm()
        client = self.daemon.client()
        kernel = client.inspect(kernel.id)
        fell_back = kernel.start_path == "cold" and kernel.cold_reason.startswith(FELL_BACK)
        if not fired:
            self.found.missed[str(fault.operation)] += 1
        else:
            self.found.faults += 1
            if fell_back:
                # Without the paths, of which each host and start has its own.
                why = re.split("[:'/]", kernel.cold_reason.removeprefix(FELL_BACK))[0].strip()
                self.found.refused[f"fell back: {why}"] += 1
            else:
                self.found.tolerated[str(fault.operation)] += 1
                if not reason_for(fault):
                    self.found.problems.append(
                        f"{fault}: {kernel.start_path} without a reason: {kernel.cold_reason}"
                    )
        if fell_back != fired and not self.found.tolerated[str(fault.operation)]:
            self.found.problems.append(f"{fault}: {kernel.start_path}: {kernel.cold_reason}")
        if not ends_by_itself(fault):
            answer = python_inside(self.daemon, kernel, "print(6 * 7)")
            assert answer == (0, "42\n"), answer
        client.remove(kernel.id)

    def _fail_removal(self, fault: Fault) -> None:
        kernel = self.create()
        client = self.daemon.client()
        self.switch.arm(fault.operation, fault.code)
        try:
            client.remove(kernel.id)
            outcome = ""
        except SandboxError as exc:
            outcome = str(exc)
        if not self.switch.disarm():
            self.found.missed[str(fault.operation)] += 1
        else:
            self.found.faults += 1
            word = "removed all the same" if not outcome else outcome.partition(":")[0]
            self.found.refused[word] += 1
        if outcome:
            client.remove(kernel.id)


@contextlib.contextmanager
def serving(name: str) -> Iterator[Serving]:
    """A daemon with the switch in it."""
    fd = os.memfd_create("faults")
    try:
        os.ftruncate(fd, SIZE)
        path = f"/proc/{os.getpid()}/fd/{fd}"
        with running_daemon(CONFIG, program=("-m", "tests.faults.guarded", path)) as daemon:
            yield Serving(daemon, Switch(fd), name)
    finally:
        os.close(fd)


def run(
    name: str, codes: Sequence[int], *, every: int = 1, rotate: bool = False,
    until: Callable[[], bool] = lambda: False,
) -> Found:  # fmt: skip
    """As scenarios.run()."""
    with serving(name) as one:
        operations = one.operations()
        one.found.points = len(operations)
        fail_each(one, operations[::every], codes, rotate=rotate, until=until)
    return one.found

"""What is begun and ended, and how one operation after the other is let fail meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sandboxruntime.spec import Spec
from tests.faults.injector import Operation
from tests.faults.record import Fault, Found, fail_each
from tests.faults.scene import POLL_S, Scene, appears, delete, run_exec, scene, start, tidy
from tests.faults.tolerated import ends_by_itself, may_leave, reason_for
from tests.faults.zygotes import (
    make,
    park,
    remove,
    renew,
    stand_in,
    standing,
    template,
    unpark,
)  # fmt: skip
from tests.support import wait_until

__all__ = ["SCENARIOS", "Scenario", "playing", "run"]

SETTLE_S = 10.0  # what is about to end has ended by then
REST_S = 0.3
REACH_S = 0.5  # what comes after a start was said to have succeeded: pid 1's last calls
# So many faults share the next start. What is left behind is looked for after every one.
NEXT_AFTER = 8
CLEAN_PAUSES_S = (0.1, 1.0, 3.0, 10.0)
# Where the making of a zygote fails after its program has rightly been executed.
WITH_PROGRAM = ("step hand_over (unfit)", "step adopt_zygote")
# What a start that was refused may leave: the root file system is kept for the next one.
KEPT = ("mounts", "staging")
Step = Callable[[Scene, Spec], str]


def _nothing(_stage: Scene, _spec: Spec) -> str:
    return ""


def _fork(stage: Scene, spec: Spec) -> str:
    return start(stage, spec, zygote=stage.zygote.spec.container_id)


def _claim(stage: Scene, spec: Spec) -> str:
    return start(stage, spec, spare=spec.container_id, zygote=stage.zygote.spec.container_id)


def _tidy_spare(stage: Scene, spec: Spec) -> str:
    return unpark(stage, spec) or tidy(stage, spec)


@dataclass(frozen=True)
class Scenario:
    """`prepare` makes what must be there before `act`, and `clean` gives everything back.

    `has_program`: its success is that a program of the user's runs; `removes`: that all is gone, with
    nothing left to clean. `zygote`: one stands by.
    `of_zygotes`: the spec is a zygote's. `stands`: one container is there for every act.
    `proof` is the scenario whose act shows that all is well afterwards, if not this one's.
    """

    act: Step
    prepare: Step = _nothing
    clean: Step = tidy
    has_program: bool = False
    removes: bool = False
    zygote: bool = False
    of_zygotes: bool = False
    stands: bool = False
    executor: str = ""
    next_after: int = NEXT_AFTER
    proof: str = ""


SCENARIOS: dict[str, Scenario] = {
    "cold": Scenario(start, has_program=True),
    "runc": Scenario(start, has_program=True, executor="runc"),
    "exec": Scenario(run_exec, clean=_nothing, has_program=True, stands=True),
    "delete": Scenario(delete, prepare=start, removes=True),
    "delete_runc": Scenario(delete, prepare=start, removes=True, executor="runc"),
    "zygote": Scenario(make, clean=remove, of_zygotes=True, next_after=50),
    "retire": Scenario(remove, prepare=stand_in, clean=remove, removes=True, of_zygotes=True),
    "fork": Scenario(_fork, has_program=True, zygote=True),
    "park": Scenario(park, clean=_tidy_spare, zygote=True, proof="claim"),
    "claim": Scenario(_claim, prepare=park, clean=_tidy_spare, has_program=True, zygote=True),
    "unpark": Scenario(
        unpark, prepare=park, clean=_tidy_spare, removes=True, zygote=True, proof="claim"
    ),
    "delete_fork": Scenario(delete, prepare=_fork, removes=True, zygote=True),
}


@dataclass
class Playing:
    """One scenario in a launcher of its own. `held` is what that holds between two acts."""

    name: str
    scenario: Scenario
    stage: Scene
    container: Spec | None = None  # the one that stands
    held: dict[str, Any] = field(default_factory=dict)
    unproven: list[str] = field(default_factory=list)  # faults since the last good act

    @property
    def found(self) -> Found:
        """What it has found."""
        return self.stage.found

    def subject(self) -> Spec:
        """What the next act is about."""
        if self.container is not None:
            return self.container
        if self.scenario.of_zygotes:
            spec: Spec = self.stage.plans.fresh()
            return spec
        return self.stage.fresh()

    def operations(self) -> list[Operation]:
        """Those of one act in which nothing fails."""
        spec = self.subject()
        assert (why := self._prepare(self.scenario, spec)) == "", why
        self.stage.switch.record()
        assert (outcome := self.scenario.act(self.stage, spec)) == "", outcome
        if self.scenario.has_program:
            assert appears(self.stage.canary)
            self._await_pid_1()
        self.stage.switch.disarm()
        found = self.stage.switch.recorded()
        self._clean(self.scenario, spec)
        return found

    def _await_pid_1(self) -> None:
        """Its last operations, of which nobody is told, have come once no more come for a while."""
        seen = -1
        while seen != (now := len(self.stage.switch.recorded())):
            seen = now
            with contextlib.suppress(AssertionError):
                wait_until(partial(self._has_more, now), timeout_s=0.2)

    def _has_more(self, than: int) -> bool:
        return len(self.stage.switch.recorded()) > than

    def _prepare(self, scenario: Scenario, spec: Spec) -> str:
        why = scenario.prepare(self.stage, spec)
        if not why and scenario.prepare in (start, _fork):
            assert appears(self.stage.canary)
        self.stage.canary.unlink(missing_ok=True)  # of this, or of the last act
        return why

    def _clean(self, scenario: Scenario, spec: Spec) -> str:
        # As the daemon does: one that is asked for again waits for processes for a moment only.
        refused = scenario.clean(self.stage, spec)
        for pause_s in CLEAN_PAUSES_S:
            if not refused:
                break
            time.sleep(pause_s)
            refused = scenario.clean(self.stage, spec)
        self.stage.running._events.clear()
        return refused

    def good(self) -> str:
        """An act in which nothing fails: "" if it is good, and could be cleaned up after."""
        scenario = SCENARIOS[self.scenario.proof or self.name]
        spec = self.subject()
        outcome = self._prepare(scenario, spec) or scenario.act(self.stage, spec)
        if not outcome and scenario.has_program and not appears(self.stage.canary):
            outcome = "said to have started, but has not"
        self.found.next_starts += 1
        return outcome or self._clean(scenario, spec)

    def is_at_rest(self) -> bool:
        """Nothing has ended for a while; what is held now, is held between two acts."""
        self.held = self.stage.held()
        with contextlib.suppress(AssertionError):
            wait_until(lambda: self.stage.held() != self.held, timeout_s=REST_S)
        return self.stage.held() == self.held

    def fail(self, operation: Operation, code: int) -> None:
        """Let one operation of an act fail, and look at what came of it."""
        fault = Fault(self.name, operation, code)
        spec = self.subject()
        if why := self._prepare(self.scenario, spec):
            self.found.problems.append(f"before {fault}: {why}")
        self.stage.switch.guest_ran()
        self.stage.created = False
        self.stage.switch.arm(operation, code)
        try:
            outcome, problem = self.scenario.act(self.stage, spec), ""
        except Exception as exc:
            outcome, problem = "", f"{type(exc).__name__}: {exc}"
        if not outcome:
            with contextlib.suppress(AssertionError):
                wait_until(self.stage.switch.has_fired, timeout_s=REACH_S, every_s=POLL_S)
        fired = self.stage.switch.disarm()
        if problem:
            self.found.problems.append(f"{fault}: {problem}")
        elif fired:
            self.judge(fault, outcome)
        elif outcome:
            self.found.problems.append(f"{fault}: not reached, and yet: {outcome}")
        else:
            self.found.missed[str(fault.operation)] += 1
        if self.scenario.removes and not outcome:
            self.compare(fault)
        elif outcome and not self.stage.created and not self.scenario.removes:
            self.compare(fault, but=KEPT)
        if refused := self._clean(self.scenario, spec):
            self.found.leaks.append(f"{fault}: cannot be removed afterwards: {refused}")
        self.compare(fault)
        # Once more, now that all that was about to run has run.
        if fired and outcome and self.stage.canary.exists():
            self.found.user_code_ran.append(str(fault))
        self.unproven.append(str(fault))
        if len(self.unproven) >= self.scenario.next_after:
            self.prove()

    def judge(self, fault: Fault, outcome: str) -> None:
        """Hold the outcome of one fault against what is promised."""
        found, operation = self.found, fault.operation
        found.faults += 1
        if outcome == "":
            found.tolerated[str(operation)] += 1
            if not reason_for(fault):
                found.problems.append(f"{fault}: tolerated without a reason")
            runs = self.scenario.has_program and not ends_by_itself(fault)
            if runs and not appears(self.stage.canary):
                found.problems.append(f"{fault}: said to have started, but has not")
            return
        found.refused[outcome.partition(":")[0]] += 1
        if outcome.startswith("unnamed"):
            found.problems.append(f"{fault}: {outcome}")
        if self.stage.switch.guest_ran() and not outcome.startswith(WITH_PROGRAM):
            found.user_code_ran.append(str(fault))

    def compare(self, fault: Fault, but: Sequence[str] = ()) -> None:
        """Everything is as it was, some kinds of things left out."""
        if self.stage.zygote is not None and not self.stage.zygote.is_alive():
            self.found.problems.append(f"{fault}: the zygote has ended")
            renew(self.stage)

        left: dict[str, Any] = {}

        def is_as_it_was() -> bool:
            left.clear()
            left.update(self._differences(but))
            return all(self._may_stay(fault, kind, value) for kind, value in left.items())

        with contextlib.suppress(AssertionError):
            wait_until(is_as_it_was, timeout_s=SETTLE_S, every_s=POLL_S)
        for kind, value in left.items():
            gone = kind == "records" and not value  # what an earlier fault has left
            if not gone and not self._may_stay(fault, kind, value):
                self.found.leaks.append(f"{fault}: {kind}: {self.held[kind]} before, {value} after")
            self.held[kind] = value

    def _may_stay(self, fault: Fault, kind: str, value: Any) -> bool:
        """One thing that was to be removed."""
        now, held = (
            each if isinstance(each, int) else len(each) for each in (value, self.held[kind])
        )
        return now <= held + 1 and may_leave(fault, kind)

    def _differences(self, but: Sequence[str]) -> dict[str, Any]:
        now = self.stage.held().items()
        return {kind: value for kind, value in now if kind not in but and value != self.held[kind]}

    def prove(self) -> None:
        """The next start is good, whatever has failed before."""
        if self.unproven and (outcome := self.good()):
            faults = "; ".join(self.unproven)
            self.found.problems.append(f"the next start fails: {outcome}, after {faults}")
        self.unproven = []


@contextlib.contextmanager
def playing(name: str) -> Iterator[Playing]:
    """One scenario, ready to be played."""
    scenario = SCENARIOS[name]
    with contextlib.ExitStack() as stack:
        stage = stack.enter_context(scene(executor=scenario.executor))
        if scenario.zygote:
            stack.enter_context(standing(stage))
        elif scenario.of_zygotes:
            stack.enter_context(template(stage))
        one = Playing(name, scenario, stage)
        if scenario.stands:
            one.container = stage.fresh()
            assert start(stage, one.container) == ""
            assert appears(stage.canary)
            stack.callback(tidy, stage, one.container)
        for _ in range(2):  # the first ones fill caches
            assert (outcome := one.good()) == "", outcome
        one.found.next_starts = 0
        wait_until(one.is_at_rest)
        yield one
        one.prove()


def run(
    name: str, codes: Sequence[int], *, every: int = 1, rotate: bool = False,
    until: Callable[[], bool] = lambda: False,
) -> Found:  # fmt: skip
    """Every `every`th operation of a scenario fails, with each errno; with one in turn: `rotate`."""
    with playing(name) as one:
        operations = one.operations()
        one.found.points = len(operations)
        fail_each(one, operations[::every], codes, rotate=rotate, until=until)
    return one.found

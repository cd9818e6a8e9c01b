"""What an attack is: Python source that the image's interpreter runs inside a container.

It prints ESCAPED when it got what it must not get, or `refused <errno name>`. None does harm where it
succeeds: it aims at what the test made, and proves the primitive. A control runs it again in a
container that lacks a defence, where it must succeed: a test that cannot fail proves nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandboxruntime.steps import Step
from sandboxruntime.syscall_numbers import NUMBERS

__all__ = ["NO_FILTER", "PRIVILEGED", "Arrange", "Attack", "Control"]

PRELUDE = """
import ctypes, errno, os, socket, stat, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    # A plain int goes as 32 bits, and above them on the stack is whatever was there.
    args = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = libc.syscall(ctypes.c_long(number), *args)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result
# Attack code never runs on the bare host, nor in the host's user namespace.
assert open("/proc/self/uid_map").read().split() != ["0", "0", "4294967295"], "not confined"
{values}
def attack():
{body}
try:
    outcome = attack()
except OSError as error:
    print("refused", errno.errorcode.get(error.errno, error.errno))
else:
    print(outcome if isinstance(outcome, str) else
          "ESCAPED" if outcome is None or outcome else "refused nothing")
"""

# Given the container's layer on the host, if there is one of its own: makes what the attack aims
# at, and says what it is called.
Arrange = Callable[[Path | None], AbstractContextManager[Mapping[str, Any]]]


@dataclass(frozen=True)
class Control:
    """A container without a defence. Hashable: one launcher makes the containers of equal ones.

    `name` is what `patch`, Python that changes the launcher, and `spec`, which replaces members of
    the spec, take away. `steps` of its set-up do nothing; `keep_capabilities` leaves all of them, in
    its own user namespace.
    """

    name: str = ""
    steps: tuple[Step, ...] = ()
    keep_capabilities: bool = False
    patch: str = ""
    spec: tuple[tuple[str, Any], ...] = ()

    @property
    def missing(self) -> str:
        """All that it lacks, in words."""
        words = {**STEPS, Step.CAPABILITIES: CAPABILITIES[self.keep_capabilities]}
        return ", ".join([self.name] * bool(self.name) + [words[step] for step in self.steps])


STEPS = {
    Step.SECCOMP: "the filter",
    Step.LANDLOCK: "Landlock",
    Step.NO_NEW_PRIVS: "no_new_privs",
    Step.CGROUP_NAMESPACE: "the cgroup namespace",
}
CAPABILITIES = {True: "capabilities dropped and locked", False: "capabilities cleared"}
# The filter needs no_new_privs and nothing else; Landlock refuses some of the same calls.
NO_FILTER = Control(steps=(Step.SECCOMP, Step.LANDLOCK))
# What needs privilege has none without these; the filter would refuse it before Linux asks.
PRIVILEGED = Control(
    steps=(Step.CAPABILITIES, Step.SECCOMP, Step.LANDLOCK, Step.NO_NEW_PRIVS),
    keep_capabilities=True,
)


@dataclass(frozen=True)
class Attack:
    """`section` is where docs/security.md's catalogue of attacks has it.

    `control` is what must be missing for it to succeed, and `bites` the outcomes that show it; an
    attack without one has a reason, `uncontrolled`. `alone` are containers that lack some of what
    the control lacks, and still refuse it: each defence by itself. `plant` changes every launcher
    that it is tried on, before the defence: a leak that the defence must catch. `newer_than` is the
    Linux that brought what the control needs.
    """

    section: str
    name: str
    body: str
    expected: tuple[str, ...] = ("EPERM",)
    control: Control | None = NO_FILTER
    alone: tuple[Control, ...] = ()
    bites: tuple[str, ...] = ("ESCAPED",)
    uncontrolled: str = ""
    arrange: Arrange | None = field(default=None, compare=False)
    plant: str = ""
    needs_layer: bool = False
    newer_than: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if (self.control is None) != bool(self.uncontrolled):
            raise ValueError(f"{self.name}: a control, or the reason why there is none")

    @property
    def anywhere(self) -> bool:
        """Whether it can be tried in any sandbox, and not only in one of the tests' launchers."""
        return not self.plant and not self.needs_layer

    def source(self, values: Mapping[str, Any] | None = None) -> str:
        """The program; `values` are the names of what was arranged."""
        body = re.sub(r'call\("(\w+)"', lambda found: f"call({_number(found[1])}", self.body)
        lines = "\n".join("    " + line for line in body.strip().splitlines())
        given = "\n".join(f"{name} = {value!r}" for name, value in (values or {}).items())
        return PRELUDE.format(body=lines, values=given)

    def outcomes(self) -> frozenset[str]:
        """What a sandbox may answer."""
        return frozenset(f"refused {name}" for name in self.expected)


def _number(name: str) -> int:
    return NUMBERS["x86_64"][name]

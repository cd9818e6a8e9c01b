"""The catalogue of attacks as Markdown: `python -m tests.escape.table` writes docs/attacks.md."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tests.escape.attacks import ALL, ANYWHERE, Attack
from tests.escape.coverage import SECTIONS

PAGE = Path(__file__).resolve().parents[2] / "docs/attacks.md"
HEAD = """\
# Attacks

Generated from the tests by `python -m tests.escape.table`; a test compares it with them.

Each attack is a small program in tests/escape/attacks. It aims at something that the test made for it
(a file, a socket, a key, a device number), proves the primitive and not the damage, and refuses to
run in the host's user namespace. `test_the_attack_is_refused` runs it in a sandbox, where the answer
must be the one named here; `test_without_its_defence_the_attack_succeeds` runs it in a sandbox that
lacks what the third column names, all of it, where it must succeed; where several defences are in its
way, `test_what_is_left_of_its_defences_stops_it_alone` leaves out what the last column names, and one
that is left must refuse it.

{total} attacks, {controlled} with a control that bites, {alone} runs in which one defence is left.
{anywhere} of them need nothing of the tests' launcher and run again from a cell of a kernel that came
about as a parked spare, as a fork of a zygote on demand, with an interpreter of its own, and in a
container that runc made (`test_every_attack_is_refused_from_a_cell`, `test_every_attack_is_refused`).

On pure cgroup v2, under Debian's Linux, `make test-vm` runs the attacks and those controls in which more
than the filter is missing; `make test-vm-all` runs the filter's controls and the attacks from a cell, too.
What neither runs, the runs with one defence left above all, is in tests/vm/selection.py with its reason.

Each section begins with what must hold, and what shows it: attacks of its table, tests, another section,
or the reason why there is neither.

"""


def page() -> str:
    """The whole page."""
    text = HEAD.format(
        total=len(ALL),
        controlled=sum(attack.control is not None for attack in ALL),
        alone=sum(len(attack.alone) for attack in ALL),
        anywhere=len(ANYWHERE),
    )
    for section in SECTIONS:
        mine = [attack for attack in ALL if attack.section == section.name]
        names = [attack.name for attack in mine]
        text += f"## {section.name} {section.title}\n\n"
        text += "".join(f"* {claim.line(names)}\n" for claim in section.claims) + "\n"
        if mine:
            text += "| attack | answer | succeeds without | still refused without only |\n"
            text += "|---|---|---|---|\n" + "".join(_row(attack) for attack in mine) + "\n"
    return text.rstrip() + "\n"


def _row(attack: Attack) -> str:
    lacking = attack.control.missing if attack.control else f"no control: {attack.uncontrolled}"
    alone = "; ".join(control.missing for control in attack.alone)
    return f"| {attack.name} | {', '.join(attack.expected)} | {lacking} | {alone} |\n"


def mentioned_tests() -> Iterator[str]:
    """Names of test functions in what is said of the sections."""
    for section in SECTIONS:
        for claim in section.claims:
            yield from claim.tests


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"{PAGE}: {len(ALL)} attacks\n")

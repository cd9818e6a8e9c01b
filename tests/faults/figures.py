"""The record of `make faults`, and what docs/security.md says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.faults.record import ERRNOS

__all__ = ["NAMES", "dirty", "keep", "paragraphs", "put_into"]

Document = Mapping[str, Any]

# Scenarios of the launcher alone, in the order of the table.
NAMES = {
    "cold": "cold start",
    "runc": "start by runc",
    "exec": "exec",
    "delete": "removal",
    "delete_runc": "removal of what runc made",
    "zygote": "making of a zygote",
    "retire": "removal of a zygote",
    "fork": "fork on demand",
    "park": "parking of a spare",
    "claim": "claim of a spare",
    "unpark": "removal of a spare",
    "delete_fork": "removal of a fork",
}
BEGIN, END = "<!-- make faults -->\n", "<!-- end of make faults -->\n"
HEAD = """\
| | operations | errnos | faults | refused | went on, with a reason | user code ran | leaks |
|---|---|---|---|---|---|---|---|
"""


def keep(path: Path, name: str, found: Document) -> str:
    """Write one scenario's findings beside those of others; why not, or "".

    What is known is never replaced by less: by a run that was interrupted, or one of fewer errnos or
    fewer operations.
    """
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if found["interrupted"]:
        return "the run was interrupted"
    if name in known and (more := _more(known[name], found)):
        return f"the record has {more}"
    known[name] = found
    path.write_text(
        json.dumps({key: known[key] for key in sorted(known, key=_place)}, indent=1) + "\n"
    )
    return ""


def paragraphs(record: Document) -> str:
    """The table and what is said above and below it. Pure."""
    rows = "".join(_row(title, record[name]) for name, title in NAMES.items())
    faults = sum(record[name]["faults"] for name in NAMES)
    following = sum(record[name]["next starts"] for name in NAMES)
    fork, claim, removal = (record[f"served_{name}"] for name in ("fork", "claim", "remove"))
    return (
        f"Measured ([benchmarks/faults.json](benchmarks/faults.json)): {faults} faults, {following} next\n"
        f"starts, all of which were good.\n\n{HEAD}{rows}\n"
        "With a real daemon, whose launcher and zygotes are those above, no start failed:"
        f" {fork['faults']} faults in forks\nand {claim['faults']} in claims of spares each became a"
        " cold start which says so (`cold_reason`), and is told by that\nfrom one in which the fault was"
        f" passed over; of {removal['points']} operations of a removal {removal['faults']} failed once,"
        " and it succeeded.\n"
    )


def dirty(record: Document) -> list[str]:
    """The scenarios of which something is wrong. Pure."""
    return [
        name
        for name, found in record.items()
        if found["problems"] or found["leaks"] or found["user code ran"]
    ]


def put_into(text: str, record: Document) -> str:
    """A page with its paragraphs on faults replaced. Pure."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{paragraphs(record)}{END}{after}"


def _row(title: str, found: Document) -> str:
    errnos = "all" if set(found["errnos"]) == set(ERRNOS) else ", ".join(found["errnos"])
    cells = (
        title,
        found["points"],
        errnos,
        found["faults"],
        sum(found["refused at"].values()),
        sum(found["tolerated"].values()),
        len(found["user code ran"]),
        len(found["leaks"]),
    )
    return f"| {' | '.join(str(cell) for cell in cells)} |\n"


def _more(known: Document, found: Document) -> str:
    """What a known run has done that another has not, or ""."""
    if known["every"] < found["every"]:
        return "every operation" if known["every"] == 1 else f"one of {known['every']} operations"
    if not isinstance(known["errnos"], list):
        return ""  # one a point, in turn: less than each of them
    return ", ".join(each for each in known["errnos"] if each not in found["errnos"])


def _place(name: str) -> int:
    return list(NAMES).index(name) if name in NAMES else len(NAMES)

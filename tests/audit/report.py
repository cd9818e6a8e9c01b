"""Markdown and JSON of an audit. Pure: the same comparisons give the same text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.audit.compare import HELD_TO, Comparison, Row, Verdict

__all__ = ["document", "page"]

FILES = ("proc: ", "sys: ")
HEAD = """# Differential audit

One probe (`tests/audit/probe.py`) reports what the inside of a sandbox can see and do. It ran in
ours on every start path, and in others, on one machine and one root file system. A row is one
thing; on each, ours counts by its loosest path. `make audit` makes this page anew, and fails
when ours is looser than hardened docker or bubblewrap on a row without a reason.

System calls are called with arguments that are of no use: ENOSYS, EPERM and SIGSYS count as
refused, whoever said so (the filter or Linux), every other answer as reached. Files are opened and
closed; one that is covered by /dev/null counts as closed. Limits count as bounded or not.
"""


def document(
    facts: Mapping[str, Any],
    subjects: Sequence[Mapping[str, Any]],
    compared: Sequence[Comparison],
) -> dict[str, Any]:
    """For programs: facts, counts, and the rows that tell something.

    Left out are rows on which every sandbox has the strictest answer, and single files of /proc and
    /sys on which ours is as those that it is held to, or closed: those are counted.
    """
    return {
        "facts": dict(facts),
        "subjects": list(subjects),
        "summary": _summary(compared),
        "groups": _counts(compared),
        "rows": {
            row.name: {
                "values": {name: found.value for name, found in {**row.ours, **row.others}.items()},
                "verdicts": {name: str(verdict) for name, verdict in row.verdicts.items()},
                **({"reason": row.reason} if row.looser and row.reason else {}),
            }
            for row in compared if _is_listed(row)
        },
    }  # fmt: skip


def _is_listed(row: Comparison) -> bool:
    if not any(found.rank for found in (*row.ours.values(), *row.others.values())):
        return False
    held = {row.verdicts[name] for name in HELD_TO if name in row.verdicts}
    return Verdict.LOOSER in held or not row.name.startswith(("proc: read", "sys: "))


def _summary(compared: Sequence[Comparison]) -> dict[str, dict[str, int]]:
    found = {}
    for other in compared[0].others if compared else ():
        looser = [row for row in compared if row.verdicts[other] is Verdict.LOOSER]
        found[other] = {
            "rows": len(compared),
            "stricter": sum(row.verdicts[other] is Verdict.STRICTER for row in compared),
            "equal": sum(row.verdicts[other] is Verdict.EQUAL for row in compared),
            "looser, explained": sum(bool(row.reason) for row in looser),
            "looser, unexplained": sum(not row.reason for row in looser),
        }
    return found


def page(
    facts: Mapping[str, Any],
    subjects: Sequence[Mapping[str, Any]],
    compared: Sequence[Comparison],
) -> str:
    """The page: summary, every row that is looser, groups, and where ours is stricter."""
    summary = _summary(compared)
    apart = _summary([row for row in compared if not row.name.startswith(FILES)])
    parts = [HEAD, "## Summary\n", _totals(summary)]
    parts += ["Without the files of /proc and /sys, which are most of the rows (ours mounts no /sys):\n",
              _totals(apart)]  # fmt: skip
    parts.append(f"Ours is held to {' and '.join(HELD_TO)}.\n")
    parts += ["; ".join(f"{name} {value}" for name, value in facts.items()) + ".\n"]
    parts += ["\n".join(
        f"* **{each['name']}**: `{each['how']}`" + (f": no report: {each['failure']}" if each["failure"] else "")
        for each in subjects
    ) + "\n"]  # fmt: skip
    parts += ["## Rows on which ours is looser\n", _looser(compared)]
    parts += ["## Groups\n", "Number of rows that are not at their strictest.\n", _groups(compared)]
    parts += ["## Rows on which ours is stricter than hardened docker or bubblewrap\n",
              "Without files that can be read in /proc and /sys, and single capabilities; all values "
              "of the other rows are in [audit.json](benchmarks/audit.json).\n",
              _stricter(compared)]  # fmt: skip
    parts += ["## Rows on which the start paths differ\n", _paths(compared)]
    return "\n".join(parts)


def _totals(summary: Mapping[str, Mapping[str, int]]) -> str:
    columns = ("rows", "stricter", "equal", "looser, explained", "looser, unexplained")
    return _table(["ours beside", *columns], [
        [name, *(str(counts[column]) for column in columns)] for name, counts in summary.items()
    ])  # fmt: skip


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    if not body:
        return "None.\n"
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body]
    return "\n".join(lines) + "\n"


def _loosest(row: Comparison) -> str:
    return max(row.ours.values(), key=lambda found: found.rank).value or "no"


def _looser(compared: Sequence[Comparison]) -> str:
    """Rows of one reason and one folder are one line: /sys alone has thousands."""
    lines: dict[tuple[str, tuple[str, ...], str], list[Comparison]] = {}
    for row in compared:
        if row.looser:
            group = "/".join(row.name.split("/")[:3]) if "/" in row.name else row.name
            lines.setdefault((group, row.looser, row.reason), []).append(row)
    return _table(["row", "ours", "stricter are", "reason"], [
        [found[0].name if len(found) == 1 else f"{group}… ({len(found)} rows)", _loosest(found[0]),
         "; ".join(looser), reason or "**unexplained**"
         if set(looser) & set(HELD_TO) or reason else "not held to these"]
        for (group, looser, reason), found in lines.items()
    ])  # fmt: skip


def _counts(compared: Sequence[Comparison]) -> dict[str, dict[str, int]]:
    """For each group its rows, and how many of them are not at their strictest, by sandbox."""
    counts: dict[str, dict[str, int]] = {}
    for row in compared:
        group = counts.setdefault(row.name.partition(":")[0], {"rows": 0})
        group["rows"] += 1
        for name, found in {**row.ours, **row.others}.items():
            group[name] = group.get(name, 0) + int(found.rank > 0)
    return counts


def _groups(compared: Sequence[Comparison]) -> str:
    counts = _counts(compared)
    columns = list(next(iter(counts.values()), {}))
    return _table(["group", *columns], [
        [group, *map(str, found.values())] for group, found in sorted(counts.items())
    ])  # fmt: skip


def _stricter(compared: Sequence[Comparison]) -> str:
    held = [name for name in HELD_TO if compared and name in compared[0].others]
    chosen = [
        row for row in compared
        if any(row.verdicts[name] is Verdict.STRICTER for name in held)
        and not row.name.startswith(("proc: read", "sys: ", "capability: "))
    ]  # fmt: skip
    return _table(["row", "ours", *held], [
        [row.name, _loosest(row), *(_cell(row.others[name]) for name in held)] for row in chosen
    ])  # fmt: skip


def _cell(row: Row) -> str:
    return row.value or "no"


def _paths(compared: Sequence[Comparison]) -> str:
    chosen = [row for row in compared if len({found.rank for found in row.ours.values()}) > 1]
    names = list(compared[0].ours) if compared else []
    return _table(["row", *names], [
        [row.name, *(_cell(row.ours[name]) for name in names)] for row in chosen
    ])  # fmt: skip

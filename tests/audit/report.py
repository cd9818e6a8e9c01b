"""JSON of an audit, and Markdown of that record. Pure: the same comparisons give the same text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.audit.compare import HELD_TO, Comparison, Verdict, explain

__all__ = ["document", "page", "text_of", "unexplained"]

Record = Mapping[str, Any]
FILES = ("proc: ", "sys: ")
# Beside these two, which confine what is Linux's own, the rows are worth a table.
COMPARABLE = ("bwrap", "docker, hardened")
HEAD = """# Differential audit

One probe (`tests/audit/probe.py`) reports what the inside of a sandbox can see and do. It ran in
ours on every start path, and in others, on one machine and one root file system. A row is one
thing; on each, ours counts by its loosest path. `make audit` makes this page anew, and fails
when ours is looser than one of the others on a row without a reason.

System calls are called with arguments that are of no use: ENOSYS, EPERM and SIGSYS count as
refused, whoever said so (the filter or Linux), every other answer as reached. Files are opened and
closed; one that is covered by /dev/null counts as closed. Limits count as bounded or not.
"""


def document(
    facts: Mapping[str, Any],
    subjects: Sequence[Mapping[str, Any]],
    compared: Sequence[Comparison],
) -> dict[str, Any]:
    """For programs, and for the page: facts, counts, and the rows that tell something.

    Left out are rows on which every sandbox has the strictest answer, and single files of /proc and
    /sys on which no other is stricter: those are counted. Of a row, values of those that do not
    have it, and verdicts that are equal.
    """
    return {
        "facts": dict(facts),
        "subjects": list(subjects),
        "counts": _verdicts(compared),
        "counts without files": _verdicts(
            [row for row in compared if not row.name.startswith(FILES)]),
        "groups": _counts(compared),
        "rows": {
            row.name: {
                "values": {name: found.value for name, found in {**row.ours, **row.others}.items()
                           if found.value},
                "verdicts": {name: str(verdict) for name, verdict in row.verdicts.items()
                             if verdict is not Verdict.EQUAL},
                "loosest": _loosest(row),
                **({"paths differ": True} if _paths_differ(row) else {}),
            }
            for row in compared if _is_listed(row)
        },
    }  # fmt: skip


def text_of(record: Record) -> str:
    """The JSON of a record, each row on a line of its own."""
    rows = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in record["rows"].items()
    )
    return f"{json.dumps({**record, 'rows': {}}, indent=1)[:-4]}{{\n{rows}\n }}\n}}\n"


def _is_listed(row: Comparison) -> bool:
    if not any(found.rank for found in (*row.ours.values(), *row.others.values())):
        return False
    if row.looser or _paths_differ(row):
        return True
    return not row.name.startswith(("proc: read", "sys: "))


def _paths_differ(row: Comparison) -> bool:
    return len({found.rank for found in row.ours.values()}) > 1


def _loosest(row: Comparison) -> str:
    return max(row.ours.values(), key=lambda found: found.rank).value or "no"


def _verdicts(compared: Sequence[Comparison]) -> dict[str, dict[str, int]]:
    return {
        other: {
            "rows": len(compared),
            **{str(v): sum(row.verdicts[other] is v for row in compared) for v in Verdict},
        }
        for other in (compared[0].others if compared else ())
    }


def unexplained(record: Record) -> list[str]:
    """The rows on which ours is looser than one of those that it is held to, without a reason."""
    return [
        name
        for name, row in record["rows"].items()
        if set(looser := _looser_than(row)) & set(HELD_TO) and not explain(name, looser)
    ]


def _looser_than(row: Record) -> list[str]:
    return [name for name, verdict in row["verdicts"].items() if verdict == Verdict.LOOSER]


def page(record: Record) -> str:
    """The page: summary, every row that is looser, groups, and where ours is stricter."""
    rows = record["rows"]
    apart = {name: row for name, row in rows.items() if not name.startswith(FILES)}
    parts = [HEAD, "## Summary\n", _totals(record["counts"], rows)]
    parts += ["Without the files of /proc and /sys, which are most of the rows (ours mounts no /sys):\n",
              _totals(record["counts without files"], apart)]  # fmt: skip
    parts.append(f"Ours is held to all of them: {'; '.join(HELD_TO)}.\n")
    parts += ["; ".join(f"{name} {value}" for name, value in record["facts"].items()) + ".\n"]
    parts += ["\n".join(
        f"* **{each['name']}**: `{each['how']}`" + (f": no report: {each['failure']}" if each["failure"] else "")
        for each in record["subjects"]
    ) + "\n"]  # fmt: skip
    parts += ["## Rows on which ours is looser\n", _looser(rows)]
    parts += ["## Groups\n", "Number of rows that are not at their strictest.\n",
              _groups(record["groups"])]  # fmt: skip
    parts += ["## Rows on which ours is stricter than hardened docker or bubblewrap\n",
              "Without files that can be read in /proc and /sys, and single capabilities; all values "
              "of the other rows are in [audit.json](benchmarks/audit.json).\n",
              _stricter(record)]  # fmt: skip
    parts += ["## Rows on which the start paths differ\n", _paths(record)]
    return "\n".join(parts)


def _totals(counts: Record, rows: Record) -> str:
    columns = ("rows", "stricter", "equal", "looser, explained", "looser, unexplained")
    body = []
    for other, count in counts.items():
        looser = [name for name, row in rows.items() if other in _looser_than(row)]
        explained = sum(bool(explain(name, _looser_than(rows[name]))) for name in looser)
        found = [count["rows"], count["stricter"], count["equal"], explained,
                 count["looser"] - explained]  # fmt: skip
        body.append([other, *map(str, found)])
    return _table(["ours beside", *columns], body)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    if not body:
        return "None.\n"
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body]
    return "\n".join(lines) + "\n"


def _looser(rows: Record) -> str:
    """Rows of one reason and one folder are one line: /proc/sys alone has hundreds."""
    lines: dict[tuple[str, tuple[str, ...], str], list[str]] = {}
    for name, row in rows.items():
        if looser := tuple(_looser_than(row)):
            group = "/".join(name.split("/")[:3]) if "/" in name else name
            lines.setdefault((group, looser, explain(name, looser)), []).append(name)
    return _table(["row", "ours", "stricter are", "reason"], [
        [names[0] if len(names) == 1 else f"{group}… ({len(names)} rows)",
         rows[names[0]]["loosest"], "; ".join(looser), reason or "**unexplained**"]
        for (group, looser, reason), names in lines.items()
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


def _groups(counts: Record) -> str:
    columns = list(next(iter(counts.values()), {}))
    return _table(["group", *columns], [
        [group, *map(str, found.values())] for group, found in sorted(counts.items())
    ])  # fmt: skip


def _stricter(record: Record) -> str:
    held = [name for name in COMPARABLE if name in record["counts"]]
    return _table(["row", "ours", *held], [
        [name, row["loosest"], *(row["values"].get(other, "no") for other in held)]
        for name, row in record["rows"].items()
        if any(row["verdicts"].get(other) == Verdict.STRICTER for other in held)
        and not name.startswith(("proc: read", "sys: ", "capability: "))
    ])  # fmt: skip


def _paths(record: Record) -> str:
    names = [each["name"] for each in record["subjects"] if each["name"].startswith("ours")]
    return _table(["row", *names], [
        [name, *(row["values"].get(each, "no") for each in names)]
        for name, row in record["rows"].items() if "paths differ" in row
    ])  # fmt: skip

"""Markdown and JSON of the tools' results. Pure: the same results give the same text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.third_party.tools import Result, table

__all__ = ["document", "merged", "page"]

HEAD = """# Tools of others

Packaged programs that others wrote to examine or to torment a Linux system, run inside our
sandboxes. `make third-party` makes this page anew, and fails when a tool finds what it must not
find. The figures with all details are in [third-party.json](benchmarks/third-party.json).
"""

# What the figures of a tool need said beside them, whenever they were made.
REMARKS: Mapping[str, str] = {
    "trinity": 'In "both tables" trinity calls by the 32-bit table, too: the filter kills whichever of its '
    "children does so, trinity waits for them for ever, and its sandbox is removed after that round's "
    "seconds. So no call is counted there. In all rounds but that of one family no sockets are "
    "made beforehand: where there are none of a family, trinity crashes as it makes them.",
}


def document(facts: Mapping[str, Any], results: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """For programs."""
    return {
        "facts": dict(facts),
        "tools": {
            name: [
                {
                    "tool": each.tool, "version": each.version, "how": each.how,
                    "head": list(each.head), "rows": each.rows, "notes": each.notes,
                    "problems": each.problems, "details": each.details,
                }
                for each in found
            ]
            for name, found in results.items()
        },
    }  # fmt: skip


def merged(old: Mapping[str, Any], new: dict[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """A new document with the tools of an old one that did not run again."""
    tools = {**old.get("tools", {}), **new["tools"]}
    return {**new, "tools": {name: tools[name] for name in order if name in tools}}


def page(found: Mapping[str, Any]) -> str:
    """The page of a document."""
    facts = "; ".join(f"{name} {value}" for name, value in found["facts"].items())
    parts = [HEAD, f"{facts}.\n"]
    for results in found["tools"].values():
        for each in results:
            parts += [f"## {each['tool']}\n", f"{each['version']}. {each['how']}.\n"]
            parts.append(table(each["head"], each["rows"]))
            remarks = [REMARKS[each["tool"]]] if each["tool"] in REMARKS else []
            parts += [f"{note}\n" for note in (*each["notes"], *remarks)]
            parts += [f"* **Not as it should be:** {text}\n" for text in each["problems"]]
    return "\n".join(parts)

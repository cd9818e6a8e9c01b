"""The record of `make fuzz-guided`, and what docs/security.md says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["ROWS", "found_something", "keep", "paragraphs", "put_into"]

Document = Mapping[str, Any]

# Rows of the table, with their targets in the order of the last column.
ROWS: Mapping[str, tuple[str, ...]] = {
    "bundles: `config.json`, filters, our profiles": (
        "bundle_config", "seccomp_filter", "own_profile"),
    "specs, messages to the launcher": ("spec", "launcher_message"),
    "words of processes inside: set-up, hand-over, of a zygote": (
        "setup_status", "handover_result", "zygote_word"),
    "cgroups: mountinfo, paths": ("mountinfo", "cgroup_path"),
    "outside verification: status of pid 1, mounts": ("init_status", "own_mounts"),
    "images: documents, store, ELF objects": ("image_documents", "image_store", "elf"),
    "connection files, commands, sizes, limits": (
        "connection_file", "command", "sizes", "limits"),
    "the daemon's answers, as a client reads them: refusals, answers": ("problem", "answer"),
}  # fmt: skip
BEGIN, END = "<!-- make fuzz-guided -->\n", "<!-- end of make fuzz-guided -->\n"
HEAD = """\
| reader | inputs | seconds | points of the code reached | findings |
|---|---|---|---|---|
"""


def keep(path: Path, found: Document) -> str:
    """Write a run's record; why not, or "". A longer run is not replaced by a shorter one."""
    known = json.loads(path.read_text()) if path.exists() else {"seconds": 0}
    if known["seconds"] > found["seconds"]:
        return f"the record is of {known['seconds']} s, this run of {found['seconds']} s"
    path.write_text(json.dumps(found, indent=1) + "\n")
    return ""


def found_something(record: Document) -> list[str]:
    """The readers of which something was found. Pure."""
    return [name for name, each in record["readers"].items() if each["finding"]]


def paragraphs(record: Document) -> str:
    """The table and what is said above it. Pure."""
    readers = record["readers"]
    rows = "".join(_row(title, [readers[name] for name in names]) for title, names in ROWS.items())
    inputs, seconds = (sum(each[key] for each in readers.values()) for key in ("inputs", "seconds"))
    bad = len(found_something(record))
    versions = ", ".join(f"{name} {text}" for name, text in record["versions"].items())
    return (
        f"`make fuzz-guided` ([benchmarks/fuzz.json](benchmarks/fuzz.json), {record['date']},"
        f" {versions}): {inputs:,} inputs for {len(readers)} readers\n"
        f"in {seconds} s, seed {record['seed']}, {bad or 'no'} finding{'s' * (bad > 1)}."
        f" Points are those of the reader's Python, as atheris counts them.\n\n{HEAD}{rows}"
    )


def put_into(text: str, record: Document) -> str:
    """A page with its paragraphs on guided fuzzing replaced. Pure."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{paragraphs(record)}{END}{after}"


def _row(title: str, found: list[Document]) -> str:
    cells = (
        title,
        f"{sum(each['inputs'] for each in found):,}",
        sum(each["seconds"] for each in found),
        ", ".join(str(each["points"]) for each in found),
        sum(bool(each["finding"]) for each in found),
    )
    return f"| {' | '.join(str(cell) for cell in cells)} |\n"

"""docs/first-hour.md: its commands, and the page with the outputs that they have now. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Command", "commands", "with_outputs"]

_BLOCK = re.compile(r"(<!-- fails -->\n)?```console\n(.*?)```\n", re.DOTALL)
_PROMPT = re.compile(r"(# |ada\$ )")
_PROGRESS = re.compile(r"\(Reading database \.\.\.( \d+%)?")
LINES_MAX = 14


@dataclass(frozen=True, slots=True)
class Command:
    """One command of the page. `user` is "" for root; `fails` is what the page says of it."""

    text: str
    user: str
    fails: bool


def commands(page: str) -> list[Command]:
    """Every command, in order. Lines up to the next prompt are its here-document or its output."""
    return [command for block in _BLOCK.finditer(page) for command in _in_block(block)]


def _in_block(block: re.Match[str]) -> Iterator[Command]:
    lines = block[2].splitlines()
    while lines:
        line = lines.pop(0)
        prompt = _PROMPT.match(line)
        if prompt is None:
            continue  # output
        text = line[prompt.end() :]
        if "<<'EOF'" in text:
            end = lines.index("EOF") + 1
            text = "\n".join([text, *lines[:end]])
            del lines[:end]
        yield Command(text, prompt[1].partition("$")[0].strip("# "), bool(block[1]))


def with_outputs(page: str, outputs: list[str]) -> str:
    """The page with these outputs, one for each command."""
    remaining = iter(outputs)

    def block(match: re.Match[str]) -> str:
        text = ""
        for command in _in_block(match):
            text += f"{command.user}$ " if command.user else "# "
            text += f"{command.text}\n{_shortened(next(remaining))}"
        return f"{match[1] or ''}```console\n{text}```\n"

    return _BLOCK.sub(block, page)


def _shortened(output: str) -> str:
    # Of a line that was written over and over, what was there in the end.
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in output.split("\n")]
    lines = [line for line in lines if line and not _PROMPT.match(line)]
    lines = [line for line in lines if not _PROGRESS.fullmatch(line)]
    if len(lines) > LINES_MAX:
        lines = [*lines[: LINES_MAX // 2], "...", *lines[-LINES_MAX // 2 :]]
    return "".join(f"{line}\n" for line in lines)

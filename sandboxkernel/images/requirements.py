"""Requirements of distributions and their markers (PEP 508), as far as a closure needs. Pure.

Own code, because `packaging` is not a dependency and what is installed must not depend on it.
Versions are not checked: the closure is taken from an environment that its installer made whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sandboxkernel.errors import ImageError

__all__ = ["Requirement", "canonical_name", "evaluate_marker", "parse_requirement"]

_NAME = re.compile(r"\s*([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[([^\]]*)\])?")
_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>'[^']*'|"[^"]*")|(?P<operator>===|==|~=|!=|<=|>=|<|>|\(|\))|(?P<word>[A-Za-z_.]+))"""
)
_MARKER_MAX = 4096
_VERSION_VARIABLES = frozenset({"python_version", "python_full_version", "implementation_version"})


@dataclass(frozen=True, slots=True)
class Requirement:
    """A distribution that another one needs, when `marker` holds."""

    name: str
    extras: tuple[str, ...]
    marker: str


def canonical_name(name: str) -> str:
    """The normalised name of a distribution (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse_requirement(text: str) -> Requirement:
    """Parse a Requires-Dist value. Raises ImageError."""
    match = _NAME.match(text)
    if match is None:
        raise ImageError(f"cannot read requirement {text[:200]!r}")
    extras = tuple(canonical_name(e.strip()) for e in (match[2] or "").split(",") if e.strip())
    marker = text.partition(";")[2].strip()
    return Requirement(canonical_name(match[1]), extras, marker)


def evaluate_marker(marker: str, environment: Mapping[str, str], extras: frozenset[str]) -> bool:
    """Whether a marker holds; `extras` are those asked for. Raises ImageError."""
    if not marker:
        return True
    if len(marker) > _MARKER_MAX:
        raise ImageError("cannot read marker: too long")
    tokens = _tokens(marker)
    parser = _MarkerParser(tokens, environment, extras)
    value = parser.any_of()
    if parser.tokens:
        raise ImageError(f"cannot read marker {marker[:200]!r}: unexpected {parser.tokens[0]!r}")
    return value


def _tokens(marker: str) -> list[str]:
    tokens, at = [], 0
    while marker[at:].strip():
        match = _TOKEN.match(marker, at)
        if match is None:
            raise ImageError(f"cannot read marker {marker[:200]!r}")
        tokens.append(match[0].strip())
        at = match.end()
    return tokens


class _MarkerParser:
    """Recursive descent over `or`, `and`, parentheses and comparisons."""

    def __init__(
        self, tokens: list[str], environment: Mapping[str, str], extras: frozenset[str]
    ) -> None:
        self.tokens = tokens
        self._environment = environment
        self._extras = extras

    def _take(self) -> str:
        if not self.tokens:
            raise ImageError("cannot read marker: it ends too early")
        return self.tokens.pop(0)

    def _skip(self, token: str) -> bool:
        if self.tokens[:1] == [token]:
            self.tokens.pop(0)
            return True
        return False

    def any_of(self) -> bool:
        value = self._all_of()
        while self._skip("or"):
            other = self._all_of()
            value = value or other
        return value

    def _all_of(self) -> bool:
        value = self._comparison()
        while self._skip("and"):
            other = self._comparison()
            value = value and other
        return value

    def _comparison(self) -> bool:
        if self._skip("("):
            value = self.any_of()
            if not self._skip(")"):
                raise ImageError("cannot read marker: a parenthesis is not closed")
            return value
        left, operator = self._take(), self._take()
        if operator == "not":
            operator = f"not {self._take()}"
        right = self._take()
        return self._compare(left, operator, right)

    def _compare(self, left: str, operator: str, right: str) -> bool:
        if "extra" in (left, right):
            name = canonical_name((right if left == "extra" else left).strip("'\""))
            return (name in self._extras) == (operator != "!=")
        a, b = self._value(left), self._value(right)
        if operator in ("in", "not in"):
            return (a in b) == (operator == "in")
        if left in _VERSION_VARIABLES or right in _VERSION_VARIABLES:
            return _compare_versions(a, operator, b)
        if operator in ("==", "==="):
            return a == b
        if operator == "!=":
            return a != b
        return {"<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}.get(operator, False)

    def _value(self, token: str) -> str:
        if token[:1] in ("'", '"'):
            return token[1:-1]
        # PEP 508: an undefined variable is an error; later specs add some that we do not know,
        # and then the requirement is not ours.
        return self._environment.get(token, "")


def _compare_versions(a: str, operator: str, b: str) -> bool:
    if b.endswith(".*"):
        same = _release(a)[: len(_release(b[:-2]))] == _release(b[:-2])
        return same == (operator == "==")
    left, right = _release(a), _release(b)
    width = max(len(left), len(right))
    x, y = left + (0,) * (width - len(left)), right + (0,) * (width - len(right))
    if operator == "~=":
        return x >= y and left[: len(right) - 1] == right[:-1]
    return {
        "==": x == y, "===": x == y, "!=": x != y,
        "<": x < y, "<=": x <= y, ">": x > y, ">=": x >= y,
    }.get(operator, False)  # fmt: skip


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\s*v?(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in match[1].split(".")) if match else (0,)

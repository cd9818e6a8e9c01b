"""Sizes as people write them. Pure."""

from __future__ import annotations

import re

from sandboxkernel.errors import LimitError

__all__ = ["format_size", "parse_cpus", "parse_size", "shown"]

_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\Z", re.IGNORECASE | re.ASCII)
_SIZE_MAX = 1 << 60
_BITS_SHOWN, _TEXT_SHOWN = 128, 100


def parse_size(text: str | int, *, field: str = "size") -> int:
    """Bytes of "512M", "2GiB", "1.5g" or a whole number. K, M, G and T are powers of 1024."""
    if isinstance(text, int) and not isinstance(text, bool):
        value = text
    else:
        match = _SIZE.match(text.strip()) if isinstance(text, str) and len(text) < 64 else None
        if match is None:
            raise LimitError(
                f"{field} is {str(text)[:64]!r}, not a size",
                hint="Write bytes, or a number with K, M, G or T.",
                field=field,
            )
        value = int(float(match.group(1)) * _SUFFIXES[match.group(2).upper()])
    if not 0 <= value <= _SIZE_MAX:
        raise LimitError(f"{field} is {shown(value)}, outside 0 to {_SIZE_MAX} bytes", field=field)
    return value


def shown(value: object) -> str:
    """A value for an error's message. Python refuses to write whole numbers of 4300 digits out."""
    if isinstance(value, int) and value.bit_length() > _BITS_SHOWN:
        return f"a number of {value.bit_length()} bits"
    return repr(value)[:_TEXT_SHOWN]


def parse_cpus(text: str | float, *, field: str = "cpus") -> float:
    """Cores, as "0.5" or 2."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        raise LimitError(
            f"{field} is {str(text)[:64]!r}, not a number of cores",
            hint="Write 0.5 or 2.",
            field=field,
        ) from None
    if isinstance(text, bool) or not 0 < value <= 4096:
        raise LimitError(f"{field} is {text!r}, outside 0 to 4096 cores", field=field)
    return value


def format_size(size: int) -> str:
    """Bytes for people: "1.5 GiB"."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"

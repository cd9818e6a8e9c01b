"""Wishes for limits: refused when they make no sense, lowered when they ask for too much. Pure.

A kernelspec is its user's own file, so what it says is a wish. A wish above the profile's
maximum is lowered to it without an error: the notebook runs, with what its owner may have.
"""

from __future__ import annotations

from typing import TypeVar

from sandboxkernel.errors import LimitError
from sandboxkernel.models import IoLimit, Limits
from sandboxkernel.units import format_size, shown

__all__ = ["BOUNDS", "IO_BOUNDS", "check_wish", "clamp", "most"]

MIB = 1 << 20
# name -> (least, most, unit). The least is what a Python kernel needs to start and to say why
# it stops; the most is far above any machine and keeps arithmetic inside 64 bits.
BOUNDS: dict[str, tuple[float, float, str]] = {
    "memory_bytes": (64 * MIB, 1 << 50, "bytes"),
    "swap_bytes": (0, 1 << 50, "bytes"),
    "cpus": (0.01, 4096, "cores"),
    "cpu_weight": (1, 10000, ""),
    "pids": (16, 4194304, "tasks"),
    "shm_bytes": (64 * 1024, 1 << 50, "bytes"),
    "tmp_bytes": (MIB, 1 << 50, "bytes"),
}
IO_BOUNDS = (4096, 1 << 50)  # a page per second, or operations per second
IO_OPS_MIN = 1

Number = TypeVar("Number", int, float)


def check_wish(limits: Limits, *, where: str = "limits") -> None:
    """Raise LimitError for a value outside its bounds; the message names value and bounds."""
    for name, (least, greatest, unit) in BOUNDS.items():
        _check(getattr(limits, name), f"{where}.{name}", least, greatest, unit)
    if limits.io is not None:
        for name in IoLimit.__struct_fields__:
            least = IO_OPS_MIN if "ops" in name else IO_BOUNDS[0]
            _check(
                getattr(limits.io, name), f"{where}.io.{name}", least, IO_BOUNDS[1], "per second"
            )


def _check(value: float | None, field: str, least: float, greatest: float, unit: str) -> None:
    if value is None:
        return
    if not least <= value <= greatest:  # nan is not, either
        bounds = f"{_amount(least, unit)} to {_amount(greatest, unit)}"
        raise LimitError(
            f"{field} is {shown(value)}, outside {bounds}",
            hint=f"Ask for at least {_amount(least, unit)}, or leave it out for the default.",
            field=field,
        )


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return format_size(int(value))
    return f"{value:.10g} {unit}".rstrip()


def _lower(wish: Number | None, default: Number | None, maximum: Number | None) -> Number | None:
    value = default if wish is None else wish
    if maximum is None or value is None:
        return value if value is not None else maximum
    return min(value, maximum)


def clamp(wish: Limits, default: Limits, maximum: Limits) -> Limits:
    """The limits in force: the wish, else the default, never above the maximum."""
    values = {
        name: _lower(*(getattr(limits, name) for limits in (wish, default, maximum)))
        for name in BOUNDS
    }
    sources = [limits.io or IoLimit() for limits in (wish, default, maximum)]
    io = IoLimit(
        **{name: _lower(*(getattr(s, name) for s in sources)) for name in IoLimit.__struct_fields__}
    )
    return Limits(**values, io=None if io == IoLimit() else io)


def most(*maxima: Limits) -> Limits:
    """The strictest of several maxima, member by member."""
    result = Limits()
    for maximum in maxima:
        result = clamp(maximum, Limits(), result) if result != Limits() else maximum
    return result

"""Sizes and cores, as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxkernel.errors import LimitError
from sandboxkernel.units import format_size, parse_cpus, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1", 1), (512, 512), ("512M", 512 << 20), ("2GiB", 2 << 30), ("1.5g", 3 << 29),
     (" 64 K ", 64 << 10), ("1T", 1 << 40), ("3kb", 3 << 10)],
)  # fmt: skip
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "x", "-1", -1, "1E3", "1e400", "0x10", "1 000", "1PB", "²", "9" * 63, 1 << 61, True,
     "1" * 10_000, "nan", "inf", "1..5", None, 1.5],
)  # fmt: skip
def test_what_is_no_size_is_refused_with_its_field(text: object) -> None:
    with pytest.raises(LimitError) as error:
        parse_size(text, field="limits.memory")  # type: ignore[arg-type]
    assert error.value.field == "limits.memory"
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(("text", "cores"), [("0.5", 0.5), (2, 2.0), ("4096", 4096.0)])
def test_cores(text: str | float, cores: float) -> None:
    assert parse_cpus(text) == cores


@pytest.mark.parametrize("text", ["0", 0, -1, "nan", "inf", "", "two", True, 4097])
def test_what_is_no_number_of_cores_is_refused(text: object) -> None:
    with pytest.raises(LimitError):
        parse_cpus(text)  # type: ignore[arg-type]


@given(st.integers(0, 1 << 50))
def test_formatted_sizes_read_back_within_rounding(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= max(1, size * 0.06)

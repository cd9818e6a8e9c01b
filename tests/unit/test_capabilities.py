from __future__ import annotations

from sandboxruntime.capabilities import SECUREBITS, nonzero_sets

EMPTY = "Name:\tx\n" + "".join(
    f"{name}:\t0000000000000000\n" for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
)


def test_securebits_lock_everything_and_keep_nothing() -> None:
    assert SECUREBITS == 0b1110_1111


def test_empty_sets() -> None:
    assert nonzero_sets(EMPTY) == []


def test_a_set_that_is_not_empty_is_named() -> None:
    text = EMPTY.replace("CapBnd:\t0000000000000000", "CapBnd:\t0000000000000400")
    assert nonzero_sets(text) == ["CapBnd"]


def test_a_set_that_is_missing_counts_as_not_empty() -> None:
    assert nonzero_sets(EMPTY.replace("CapAmb", "CapX")) == ["CapAmb"]

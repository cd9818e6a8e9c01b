"""Which tests run in the virtual machine, and why others do not."""

from __future__ import annotations

__all__ = ["arguments"]

SELECTED = ("tests/vm", "tests/integration/test_cgroup_real.py")
LEFT_OUT: dict[str, str] = {}


def arguments() -> list[str]:
    """For pytest."""
    return [*SELECTED, *(f"--deselect={name}" for name in LEFT_OUT)]

"""The groups of measurements, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.benchmarks import starts
from tests.benchmarks.bench import Bench

__all__ = ["GROUPS", "Group"]


@dataclass(frozen=True, slots=True)
class Group:
    """What `--only` names. `blocks` is its own number of blocks, `usual` whether it runs unasked."""

    name: str
    summary: str
    measure: Callable[[Bench], None]
    blocks: int = 1
    usual: bool = True


GROUPS = (
    Group("starts", "first reply, shutdown, what it leaves", starts.measure_starts, 40),
    Group("imports", "a first cell that imports preloaded packages", starts.measure_imports, 20),
    Group("restart", "restart to the first reply", starts.measure_restarts, 20),
    Group("peers", "first reply beside bwrap, runc, docker, runsc", starts.measure_peers, 25, False),
)

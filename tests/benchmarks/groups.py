"""The groups of measurements, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.benchmarks import files, frontends, load, memory, scale, starts, steady
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
    Group("cell", "cell round trips", steady.measure_round_trips),
    Group("starts", "first reply, shutdown, what it leaves", starts.measure_starts, 200),
    Group("imports", "a first cell that imports preloaded packages", starts.measure_imports, 20),
    Group("restart", "restart to the first reply", starts.measure_restarts, 20),
    Group("ready", "start_kernel and wait_for_ready", frontends.measure_ready, 20),
    Group("server", "a first reply through jupyter_server", frontends.measure_server, 20),
    Group("cpu-start", "processor time of a start", load.measure_cpu_of_starts, 5),
    Group("bell", "30 starts at once", load.measure_bells, 5),
    Group("memory", "memory of idle kernels", memory.measure_memory, 1),
    Group("output", "messages and bytes per second", steady.measure_output, 6),
    Group("files", "files of the user layer and of the image", files.measure_files, 5),
    Group("cpu", "processor-bound cells", files.measure_cells, 5),
    Group("peers", "first reply beside bwrap, runc, docker, runsc", starts.measure_peers, 25,
          usual=False),
    Group("scale", "first reply among up to 500 kernels, and 1000 alive", scale.measure_scale,
          usual=False),
)  # fmt: skip

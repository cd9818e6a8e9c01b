"""What is to be reached: one table of metrics, each computed from a series of a run. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from tests.benchmarks.results import Results, Series
from tests.benchmarks.summary import (
    Estimate,
    bootstrap,
    geometric_mean,
    median,
    quantile,
    ratio,
)

__all__ = ["METRICS", "PLAIN", "Kind", "Measured", "Metric", "measure"]

PLAIN, TCP, WARM, SPARE, COLD = "plain", "tcp", "warm", "spare", "cold"
CPU_CELLS = ("nbody", "json", "regex", "objects", "sorting")


class Kind(StrEnum):
    """How a metric is made of samples."""

    RATIO = "ratio of medians"
    RATIO_P99 = "ratio of p99"
    OWN_TAIL = "p99 / own p50"
    MEDIAN = "median"
    P99 = "p99"
    GEOMEAN = "geometric mean of the ratios of medians"


@dataclass(frozen=True, slots=True)
class Metric:
    """A target. `ours` and `theirs` are peers of `series`; with `at_least`, more is better."""

    key: str
    definition: str
    target: float
    series: str
    ours: str = WARM
    theirs: str = PLAIN
    kind: Kind = Kind.RATIO
    at_least: bool = False
    unit: str = ""  # of a metric that is no ratio


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run says about a metric."""

    metric: Metric
    estimate: Estimate
    samples: int
    failures: int

    @property
    def met(self) -> bool:
        """The value, not its interval, is on the target's side."""
        if self.metric.at_least:
            return self.estimate.value >= self.metric.target
        return self.estimate.value <= self.metric.target


METRICS: tuple[Metric, ...] = (
    Metric("start.warm.p50", "first reply, forked on demand", 0.10, "start"),
    Metric("start.spare.p50", "first reply, a spare waits", 0.05, "start", SPARE),
    Metric("start.warm.tail", "first reply, forked on demand, p99 of its own p50", 2.0, "start",
           kind=Kind.OWN_TAIL),
    Metric("start.warm.managed", "the same through KernelManager, which sleeps 10 ms", 0.10,
           "managed"),
    Metric("start.spare.managed", "the same of a spare", 0.05, "managed", SPARE),
    Metric("start.docker", "first reply, forked on demand, of docker run", 0.06, "peers",
           theirs="docker"),
    Metric("start.runc", "first reply, forked on demand, of runc", 0.11, "peers", theirs="runc"),
    Metric("start.runsc", "first reply, forked on demand, of gVisor's runsc", 0.03, "peers",
           theirs="runsc"),
    Metric("start.imports", "first reply of a cell that imports numpy, pandas and pyplot, which "
           "the profile preloads", 0.05, "imports"),
    Metric("start.imports.spare", "the same of a spare, as in the default profile", 0.05, "imports",
           SPARE),
    Metric("start.server", "POST /api/kernels to the first reply on the websocket", 0.35, "server",
           "sandboxed"),
    Metric("start.ready", "start_kernel and wait_for_ready, jupyter_client's own client", 0.5,
           "ready"),
    Metric("start.cpu", "processor time of all processes for one start", 0.12, "cpu_start"),
    Metric("bell.30", "30 starts at once, until all have replied; as many wait (min_spares)", 0.12,
           "bell", "class"),
    Metric("bell.30.default", "the same with the default profile, of which 4 wait", 0.12, "bell",
           SPARE),
    Metric("restart", "restart to the first reply", 0.12, "restart"),
    Metric("restart.spare", "the same with a spare, as in the default profile", 0.12, "restart",
           SPARE),
    Metric("stop.returns", "shutdown returns", 0.1, "stop"),
    Metric("stop.complete", "nothing is left after the shutdown has returned, p99", 250.0, "gone",
           kind=Kind.P99, unit="ms"),
    Metric("memory.pss", "proportional set size of an idle kernel among 50", 0.2, "pss"),
    Metric("memory.available", "MemAvailable that each of 50 kernels takes", 0.3, "available"),
    Metric("cell.p50", "cell round trip, p50", 1.0, "cell"),
    Metric("cell.p99", "cell round trip, p99", 1.05, "cell", kind=Kind.RATIO_P99),
    Metric("iopub.rate", "messages of a cell that prints and flushes, per second", 1.0, "iopub",
           at_least=True),
    Metric("stdout.rate", "1 GB of stdout, per second", 1.0, "stdout", at_least=True),
    Metric("cell.p50.tcp", "cell round trip, p50, of a plain kernel over TCP", 1.0, "cell",
           theirs=TCP),
    Metric("cell.p99.tcp", "cell round trip, p99, of a plain kernel over TCP", 1.05, "cell",
           theirs=TCP, kind=Kind.RATIO_P99),
    Metric("iopub.rate.tcp", "messages per second, of a plain kernel over TCP", 1.0, "iopub",
           theirs=TCP, at_least=True),
    Metric("stdout.rate.tcp", "1 GB of stdout, of a plain kernel over TCP", 1.0, "stdout",
           theirs=TCP, at_least=True),
    Metric("scale.500", "first reply among 500 kernels, of that with one", 1.25, "scale",
           "500 kernels", "1 kernels"),
    Metric("scale.alive", "kernels that are alive and answer within 24 GiB", 1000.0, "alive",
           kind=Kind.MEDIAN, at_least=True),
    Metric("scale.idle_cpu", "daemon and launcher with 500 idle kernels", 0.2, "idle_cpu",
           kind=Kind.MEDIAN, unit="% of a core"),
    Metric("files.metadata", "create, stat, rename and unlink in the user layer", 1.25,
           "files_metadata"),
    Metric("files.data", "write, fsync and read 256 MB in the user layer", 1.05, "files_data"),
    Metric("files.base", "open and stat of 10,000 files of the image", 1.15, "files_base"),
    Metric("cpu.cells", "processor-bound cells", 1.02, "cpu", kind=Kind.GEOMEAN),
)  # fmt: skip


def measure(metric: Metric, results: Results) -> Measured | None:
    """A metric of a run; None if the run has no samples for it."""
    if metric.kind is Kind.GEOMEAN:
        return _geomean(metric, results)
    series = results.series.get(metric.series)
    ours = _samples(series, metric.ours)
    if not ours or series is None:
        return None
    if metric.kind in (Kind.RATIO, Kind.RATIO_P99):
        theirs = _samples(series, metric.theirs)
        if not theirs:
            return None
        of = median if metric.kind is Kind.RATIO else _p99
        estimate = bootstrap(lambda a, b: _compare(metric, of(a), of(b)), ours, theirs)
    elif metric.kind is Kind.OWN_TAIL:
        estimate = bootstrap(lambda a: ratio(_p99(a), median(a)), ours)
    else:
        estimate = bootstrap(median if metric.kind is Kind.MEDIAN else _p99, ours)
    return Measured(metric, estimate, len(ours), sum(map(math.isinf, ours)))


def _samples(series: Series | None, peer: str) -> list[float]:
    return series.values.get(peer, []) if series is not None else []


def _p99(values: Sequence[float]) -> float:
    return quantile(values, 0.99)


def _compare(metric: Metric, ours: float, theirs: float) -> float:
    """The ratio. Where more is better a failed sample of ours counts as nothing done."""
    if metric.at_least and math.isinf(ours):
        return 0.0
    return ratio(ours, theirs)


def _geomean(metric: Metric, results: Results) -> Measured | None:
    """Over the series `SERIES_CELL`, resampled together: each block runs every cell."""
    found = [results.series.get(f"{metric.series}_{cell}") for cell in CPU_CELLS]
    pairs = [(_samples(s, metric.ours), _samples(s, metric.theirs)) for s in found]
    if not all(ours and theirs for ours, theirs in pairs):
        return None
    flat = [sample for pair in pairs for sample in pair]

    def statistic(*drawn: Sequence[float]) -> float:
        halves = zip(drawn[::2], drawn[1::2], strict=True)
        return geometric_mean([ratio(median(a), median(b)) for a, b in halves])

    failures = sum(math.isinf(value) for ours, _ in pairs for value in ours)
    return Measured(metric, bootstrap(statistic, *flat), len(flat[0]), failures)

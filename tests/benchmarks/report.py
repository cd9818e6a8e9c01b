"""Markdown of runs, and the place in the documentation that it is written to.

    python -m tests.benchmarks.report FILE.json ... [--page docs/performance.md]

Replaces what stands between the page's two markers, and draws the chart beside the first file.
The same files give the same text: nothing here asks the clock or the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os.path
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.chart import draw
from tests.benchmarks.results import Results, Series, from_document
from tests.benchmarks.summary import bootstrap, median, quantile, ratio
from tests.benchmarks.targets import METRICS, PLAIN, Kind, Measured, Metric, measure

__all__ = ["BEGIN", "END", "main", "number", "replace_between", "summarise"]

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
CHART = "chart.svg"
NAMES = {
    "spare": "a spare waits",
    "warm": "forked on demand",
    "class": "a spare waits for each",
    "cold": "cold: the sandbox without a zygote",
    "plain": "plain local kernel",
    "tcp": "plain local kernel over TCP, jupyter_client's default",
    "bare": "control: a zygote without a sandbox",
    "sandboxed": "sandboxed",
    "bwrap": "bubblewrap",
    "docker": "docker run",
    "runsc": "gVisor, runsc",
}


def number(value: float) -> str:
    """Three significant digits, or more before the point; a failure is infinite."""
    if math.isinf(value):
        return "∞"
    if value == 0:
        return "0"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 4)}f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def targets_table(runs: Sequence[Results]) -> str:
    """Every metric: measured, interval, target, verdict. The last run that has it counts."""
    rows = []
    for metric in METRICS:
        found, run = None, None
        for candidate in runs:
            if (measured := measure(metric, candidate)) is not None:
                found, run = measured, candidate
        rows.append(_target_row(metric, found, run))
    return _table(("metric", "of", "measured", "95 % interval", "target", "verdict"), rows)


def _target_row(metric: Metric, found: Measured | None, run: Results | None) -> list[str]:
    unit = f" {metric.unit}" if metric.unit else ""
    target = f"{'≥' if metric.at_least else '≤'} {number(metric.target)}{unit}"
    definition = f"{metric.definition} ({metric.series}: {metric.ours})"
    versus = {
        Kind.RATIO: metric.theirs, Kind.RATIO_P99: f"{metric.theirs}, p99",
        Kind.GEOMEAN: f"{metric.theirs}, geometric mean",
    }.get(metric.kind, metric.kind.value)  # fmt: skip
    if found is None or run is None:
        return [definition, versus, "", "", target, "not measured"]
    estimate = found.estimate
    interval = f"{number(estimate.low)} to {number(estimate.high)}"
    if estimate.low == estimate.high:
        interval = ""
    failures = f", {found.failures} of {found.samples} failed" if found.failures else ""
    verdict = no_verdict(run) or ("met" if found.met else "**missed**")
    return [definition, versus, f"{number(estimate.value)}{unit}", interval, target,
            verdict + failures]  # fmt: skip


def no_verdict(run: Results) -> str:
    """Why figures of a run decide nothing; empty if they do."""
    if run.facts.get("disturbed"):
        return "none: busy machine"
    return "none: quick run" if run.facts.get("quick") else ""


def series_table(series: Series) -> str:
    """Every peer of a series with its failures, and its ratio to the plain kernel."""
    rows = []
    plain = series.values.get(PLAIN)
    for peer, values in series.values.items():
        of_plain = ""
        if plain and peer != PLAIN:
            estimate = bootstrap(lambda a, b: ratio(median(a), median(b)), values, plain)
            of_plain = number(estimate.value)
            if estimate.low != estimate.high:
                of_plain += f" ({number(estimate.low)} to {number(estimate.high)})"
        rows.append([
            NAMES.get(peer, peer), str(len(values)), str(sum(map(math.isinf, values)) or ""),
            number(median(values)), number(quantile(values, 0.9)),
            number(quantile(values, 0.99)), number(min(values)), of_plain,
        ])  # fmt: skip
    head = ("", "n", "failed", "median", "p90", "p99", "min", "of plain (95 % interval)")
    text = f"{series.title}, {series.unit}:\n\n{_table(head, rows)}\n"
    for peer, reasons in series.failures.items():
        for reason, count in sorted(reasons.items()):
            text += f"\n- {count} failed, {NAMES.get(peer, peer)}: `{reason.replace('`', '')}`"
    return text + "".join(f"\n- {note}" for note in series.notes)


def facts_text(run: Results) -> str:
    """One paragraph: on what the run was made."""
    facts: dict[str, Any] = run.facts
    if not facts:
        return ""
    versions = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    programs = "; ".join(facts["programs"].values())
    knobs = ", ".join(f"{name} {value}" for name, value in facts["knobs"].items())
    zygotes = ", ".join(f"{d} {mib:g} MiB" for d, mib in facts.get("zygotes_mib", {}).items())
    lines = [
        f"Linux {facts['linux']} ({facts['machine']}), {facts['processors']} processors "
        f"({facts['processor']}), {facts['memory_mib'] / 1024:.0f} GiB, {facts['cgroups']} "
        f"control groups; {knobs}.",
        f"Python {facts['python']}, {versions}" + (f"; {programs}." if programs else "."),
        f"Commit {facts['commit']}, image {facts['image_digest'][:19]} ({facts['image_mib']} MiB), "
        f"zygotes: {zygotes or 'none'}; the hypervisor took "
        f"{facts.get('steal_percent', 0):g} % of the time.",
    ]
    lines += [f"Disturbed, {group}: {reason}." for group, reason in facts["disturbed"].items()]
    return "\n".join(lines)


def summarise(run: Results) -> str:
    """One run: targets, every series, facts."""
    tables = "\n\n".join(series_table(series) for series in run.series.values() if series.values)
    return f"{targets_table([run])}\n\n{tables}\n\n{facts_text(run)}\n"


def page_text(runs: dict[str, Results], chart: str) -> str:
    """What stands between the markers: all runs, `runs` by the paths of their files."""
    parts = [f"![First reply, median and p99]({chart})", targets_table(list(runs.values()))]
    for path, run in runs.items():
        parts.append(f"### {Path(path).stem}\n\nAll samples: [{path}]({path}).")
        parts += [series_table(series) for series in run.series.values() if series.values]
        parts.append(facts_text(run))
    return "\n\n".join(parts)


def replace_between(page: str, text: str) -> str:
    """The page with `text` between its markers. Raises ValueError if it does not have both."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} followed by {END}")
    return f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}"


def main(argv: list[str] | None = None) -> int:
    """Write the report; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.report",
        description="Write runs' figures and chart into a page.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args(argv)
    runs = {}
    for path in given.files:
        document = json.loads(path.read_text())
        if "series" in document:  # what an older benchmark has left is none of ours
            relative = os.path.relpath(path.resolve(), given.page.resolve().parent)
            runs[relative] = from_document(document)
    if not runs:
        sys.stderr.write("no run among the files\n")
        return 1
    chart = given.files[0].with_name(CHART)
    chart.write_text(draw(list(runs.values())))
    text = page_text(runs, os.path.relpath(chart.resolve(), given.page.resolve().parent))
    given.page.write_text(replace_between(given.page.read_text(), text))
    return 0


if __name__ == "__main__":
    sys.exit(main())

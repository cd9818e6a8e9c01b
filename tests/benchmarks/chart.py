"""The chart of first replies: a bar to each peer's median, a line to its p99. Pure; SVG 1.1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from tests.benchmarks.results import Results
from tests.benchmarks.summary import median, quantile

__all__ = ["draw"]

LEFT, RIGHT, ROW, BAR, TOP, WIDTH = 150, 90, 30, 18, 46, 760
OURS, OTHERS, INK, GRID = "#2b5b84", "#b8b8b8", "#222222", "#e2e2e2"
OUR_PEERS = ("spare", "warm", "cold")
LABELS = {
    "spare": "ours, spare",
    "warm": "ours, forked",
    "cold": "ours, cold",
    "plain": "plain kernel",
    "bare": "zygote, no sandbox",
    "docker": "docker run",
    "runsc": "gVisor (runsc)",
}
STEPS = (1, 2, 5)


def draw(runs: Sequence[Results]) -> str:
    """An SVG of the first replies of all runs; each peer once, from the run with most peers."""
    samples = _samples(runs)
    rows = sorted(samples.items(), key=lambda row: median(row[1]))
    finite = [quantile(v, 0.99) for _, v in rows if math.isfinite(quantile(v, 0.99))]
    finite += [median(v) for _, v in rows if math.isfinite(median(v))]
    top = max(finite, default=1.0)
    height = TOP + ROW * len(rows) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">',
        "<title>Time to the first reply</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" fill="{INK}" font-size="15">'
        "Time to the first reply, ms: median, and p99 as a line</text>",
    ]
    parts += _grid(top, height)
    for index, (peer, values) in enumerate(rows):
        parts += _row(peer, values, TOP + ROW * index, top)
    return "\n".join([*parts, "</svg>", ""])


def _samples(runs: Sequence[Results]) -> dict[str, list[float]]:
    found = [run.series[key] for run in runs for key in ("start", "peers") if key in run.series]
    merged: dict[str, list[float]] = {}
    for series in sorted(found, key=lambda one: len(one.values)):
        merged.update({peer: values for peer, values in series.values.items() if values})
    return merged


def _x(value: float, top: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * min(value, top) / top


def _grid(top: float, height: int) -> list[str]:
    power = 10.0 ** math.floor(math.log10(top / 4))
    step = max(power * factor for factor in STEPS if power * factor <= top / 4 or factor == 1)
    parts = []
    for tick in range(int(top / step) + 1):
        x = _x(tick * step, top)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{height - 28}" '
                     f'stroke="{GRID}"/>')  # fmt: skip
        parts.append(f'<text x="{x:.1f}" y="{height - 12}" fill="{INK}" text-anchor="middle">'
                     f"{tick * step:g}</text>")  # fmt: skip
    return parts


def _row(peer: str, values: Sequence[float], y: int, top: float) -> list[str]:
    middle, tail = median(values), quantile(values, 0.99)
    colour = OURS if peer in OUR_PEERS else OTHERS
    label = escape(LABELS.get(peer, peer))
    end, line_end = _x(middle, top), _x(tail, top)
    said = f"{middle:.0f}" if math.isfinite(middle) else "fails"
    return [
        f'<text x="{LEFT - 10}" y="{y + 14}" fill="{INK}" text-anchor="end">{label}</text>',
        f'<rect x="{LEFT}" y="{y}" width="{end - LEFT:.1f}" height="{BAR}" fill="{colour}"/>',
        f'<line x1="{end:.1f}" y1="{y + BAR / 2:g}" x2="{line_end:.1f}" y2="{y + BAR / 2:g}" '
        f'stroke="{INK}"/>',
        f'<text x="{line_end + 6:.1f}" y="{y + 14}" fill="{INK}">{said}</text>',
    ]

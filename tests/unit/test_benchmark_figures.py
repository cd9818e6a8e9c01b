"""Figures of the benchmarks: statistics, targets, report and chart. No kernel, no clock."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.chart import draw
from tests.benchmarks.report import (
    BEGIN,
    END,
    main,
    number,
    replace_between,
    summarise,
    targets_table,
)
from tests.benchmarks.results import Results, from_document, to_document
from tests.benchmarks.summary import (
    bootstrap,
    geometric_mean,
    median,
    quantile,
    ratio,
    slope,
)
from tests.benchmarks.targets import METRICS, Kind, Metric, measure

INF = math.inf
samples = st.lists(st.floats(min_value=0.001, max_value=1e6), min_size=1, max_size=40)


def run(**peers: list[float]) -> Results:
    results = Results()
    series = results.open("start", "First reply", "ms")
    for peer, values in peers.items():
        for value in values:
            if math.isinf(value):
                series.fail(peer, "it did not start")
            else:
                series.add(peer, value)
    return results


@given(samples)
def test_a_quantile_is_one_of_the_samples_and_not_below_the_median(values: list[float]) -> None:
    assert quantile(values, 0.99) in values
    assert quantile(values, 0.5) <= quantile(values, 0.9) <= quantile(values, 0.99) <= max(values)


def test_the_99th_of_100_samples_leaves_one_above_it() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (quantile(values, 0.99), quantile(values, 0.9)) == (99, 90)
    assert quantile([3.0, 1.0, 2.0], 0.99) == 3


def test_a_quantile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        quantile([], 0.5)


def test_failed_starts_make_the_tail_infinite_before_the_median() -> None:
    values = [1.0, 1.0, 1.0, INF]
    assert (median(values), quantile(values, 0.99)) == (1.0, INF)
    assert median([1.0, INF, INF]) == INF


def test_a_failure_never_flatters_us() -> None:
    assert ratio(INF, 1.0) == INF
    assert ratio(INF, INF) == INF
    assert ratio(1.0, INF) == 0
    assert ratio(1.0, 4.0) == 0.25
    assert ratio(0.0, 0.0) == 1
    assert ratio(1.0, 0.0) == INF


@given(samples)
def test_the_interval_holds_the_ratio_of_a_peer_to_itself(values: list[float]) -> None:
    estimate = bootstrap(lambda a, b: ratio(median(a), median(b)), values, values)
    # Resampled together, block by block: what hits both does not widen the interval.
    assert (estimate.value, estimate.low, estimate.high) == (1, 1, 1)


def test_the_same_samples_give_the_same_interval() -> None:
    ours, theirs = [1.0, 1.2, 1.1, 0.9], [2.0, 2.2, 2.1]
    statistic = lambda a, b: ratio(median(a), median(b))  # noqa: E731
    first = bootstrap(statistic, ours, theirs)
    assert first == bootstrap(statistic, ours, theirs)
    assert first.low <= first.value <= first.high


def test_slope_and_geometric_mean() -> None:
    assert slope([(0, 100), (10, 80), (20, 60)]) == pytest.approx(-2)
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1)
    assert geometric_mean([1.0, INF]) == INF


def test_results_survive_json_with_their_failures() -> None:
    results = run(warm=[1.5, INF], plain=[10.0, 20.0])
    again = from_document(json.loads(json.dumps(to_document(results), allow_nan=False)))
    assert again.series["start"] == results.series["start"]
    assert again.series["start"].failures == {"warm": {"it did not start": 1}}


def test_a_metric_says_what_was_measured_and_whether_the_target_is_met() -> None:
    metric = Metric("k", "d", 0.5, "start")
    fast = measure(metric, run(warm=[1.0, 1.0], plain=[4.0, 4.0]))
    slow = measure(metric, run(warm=[3.0, INF], plain=[4.0, 4.0]))
    assert fast is not None and fast.met and fast.estimate.value == 0.25
    assert slow is not None and not slow.met and slow.failures == 1
    assert measure(metric, run(warm=[1.0])) is None


def test_where_more_is_better_a_failure_counts_as_nothing() -> None:
    metric = Metric("k", "d", 1.0, "start", at_least=True)
    found = measure(metric, run(warm=[INF], plain=[4.0]))
    assert found is not None and not found.met


def test_the_tail_of_a_metric_is_of_its_own_median() -> None:
    found = measure(Metric("k", "d", 2, "start", kind=Kind.OWN_TAIL), run(warm=[1.0, 1.0, 3.0]))
    assert found is not None and found.estimate.value == 3


def test_metrics_have_keys_of_their_own() -> None:
    assert len({metric.key for metric in METRICS}) == len(METRICS)


def test_a_disturbed_or_quick_run_gets_no_verdict() -> None:
    results = run(warm=[1.0], plain=[100.0])
    assert "| met |" in targets_table([results])
    for facts in ({"quick": True}, {"disturbed": {"starts": "others work"}}):
        results.facts = facts
        text = targets_table([results])
        assert "| met |" not in text and "| none: " in text


def test_numbers_have_three_digits() -> None:
    assert [number(v) for v in (0, 0.0512, 1.256, 49.04, 1234.5, INF)] == [
        "0", "0.0512", "1.26", "49.0", "1,234", "∞"
    ]  # fmt: skip


def test_a_failure_is_reported_with_its_reason() -> None:
    assert "1 failed, forked on demand: `it did not start`" in summarise(run(warm=[1.0, INF]))


def test_only_what_is_between_the_markers_is_replaced() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = replace_between(page, "new")
    assert once == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert replace_between(once, "new") == once
    with pytest.raises(ValueError, match="the page has no"):
        replace_between("nothing", "new")


def test_the_chart_is_xml_and_shows_failures() -> None:
    text = draw([run(warm=[1.0, 2.0], plain=[200.0, 210.0], cold=[INF, INF])])
    ElementTree.fromstring(text)
    assert ">fails<" in text and text == draw(
        [run(warm=[1.0, 2.0], plain=[200.0, 210.0], cold=[INF, INF])]
    )
    ElementTree.fromstring(draw([Results()]))


def test_the_report_writes_page_and_chart(tmp_path: Path) -> None:
    page, data = tmp_path / "page.md", tmp_path / "benchmarks" / "bench.json"
    page.write_text(f"# P\n{BEGIN}\n{END}\n")
    data.parent.mkdir()
    data.write_text(json.dumps(to_document(run(warm=[1.0, 1.0], plain=[4.0, 4.0]))))
    arguments = [str(data), "--page", str(page)]
    assert main(arguments) == 0
    text = page.read_text()
    assert "benchmarks/chart.svg" in text and "[benchmarks/bench.json]" in text
    assert main(arguments) == 0 and page.read_text() == text
    assert (data.parent / "chart.svg").is_file()

"""What processes report adds up to what they counted, whatever gets lost on the way."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.metrics import CATALOGUE, Histogram, Increases, Report, Sample, decode_report, encode_report, one

EPOCHS = "galvanic_epochs_total"
LAG = "electric_postgres_replication_transaction_received_receive_lag"


def increase(report: Report, name: str) -> tuple[float, ...]:
    (found,) = [sample.values for sample in report.increases if sample.name == name]
    return found


def test_a_histogram_counts_each_value_in_the_first_bucket_that_holds_it() -> None:
    histogram = Histogram(LAG)
    bounds = CATALOGUE[LAG].bounds
    for value in (-3.0, 0.0, bounds[0], bounds[0] + 0.1, bounds[-1], bounds[-1] + 1):
        histogram.add(value)
    *counts, total = histogram.sample().values
    assert counts == [3, 1, *[0] * (len(bounds) - 3), 1, 1]
    assert total == pytest.approx(2 * bounds[0] + 0.1 + 2 * bounds[-1] + 1)


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=30))
def test_what_was_not_sent_comes_with_the_next_report(steps: list[tuple[int, bool]]) -> None:
    increases, counted, received = Increases(), 0, 0.0
    for more, arrives in [*steps, (0, True)]:
        counted += more
        report, totals = increases.report("w00", [one(EPOCHS, counted)])
        if arrives:
            increases.sent(totals)
            received += sum(value for sample in report.increases for value in sample.values)
    assert received == counted


def test_a_counter_that_has_counted_nothing_is_told_once() -> None:
    increases = Increases()
    samples = [one(EPOCHS, 0), one("galvanic_workers", 2)]
    report, totals = increases.report("ingester", samples)
    assert report.increases == (one(EPOCHS, 0),)
    assert report.gauges == (one("galvanic_workers", 2),)
    increases.sent(totals)
    report, _ = increases.report("ingester", samples)
    assert report.increases == ()
    assert report.gauges == (one("galvanic_workers", 2),)


def test_labels_are_counted_apart() -> None:
    name = "electric_plug_serve_shape_requests_count"
    increases = Increases()
    _, totals = increases.report("g0", [one(name, 3, "200")])
    increases.sent(totals)
    report, _ = increases.report("g0", [one(name, 4, "200"), one(name, 2, "404")])
    assert report.increases == (one(name, 1, "200"), one(name, 2, "404"))


def test_histograms_grow_bucket_by_bucket() -> None:
    histogram, increases = Histogram(LAG), Increases()
    histogram.add(1.5)
    _, totals = increases.report("ingester", [histogram.sample()])
    increases.sent(totals)
    histogram.add(1.5)
    histogram.add(7)
    report, _ = increases.report("ingester", [histogram.sample()])
    assert sum(increase(report, LAG)[:-1]) == 2
    assert increase(report, LAG)[-1] == pytest.approx(8.5)
    assert decode_report(encode_report(report)) == report


@pytest.mark.parametrize(
    "sample",
    [("no_such_metric", (1.0,), ()), (EPOCHS, (1.0,), ("x",)), (EPOCHS, (1.0, 2.0), ()), (LAG, (1.0,), ())],
)
def test_what_is_not_in_the_catalogue_is_neither_made_nor_read(
    sample: tuple[str, tuple[float, ...], tuple[str, ...]],
) -> None:
    with pytest.raises(ValueError, match=sample[0]):
        Sample(*sample)
    text = msgspec.msgpack.encode({"process": "w00", "increases": [list(sample)], "gauges": []})
    with pytest.raises(msgspec.DecodeError):
        decode_report(text)


def test_every_metric_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs/operations.md").read_text()
    assert [name for name in CATALOGUE if f"`{name}" not in text] == []
    named = re.findall(r"^\| `((?:electric|galvanic)_\w+)", text, re.MULTILINE)
    assert [name for name in named if name not in CATALOGUE] == []


def test_names_are_valid_for_prometheus() -> None:
    for name, metric in CATALOGUE.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert all(re.fullmatch(r"[a-z_]+", label) for label in metric.labels)
        assert list(metric.bounds) == sorted(set(metric.bounds))
        assert bool(metric.bounds) == (metric.kind == "histogram")
        # Prometheus warns of counters without it; the reference's names are as they are.
        assert name.startswith("electric_") or name.endswith("_total") == (metric.kind == "counter")

"""What Prometheus reads: valid text, sums that never go back, nothing of who is gone."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from common.metrics import CATALOGUE, Histogram, Increases, Report, Sample, one
from ingester.exposition import FRESH, Exposition

REQUESTS = "electric_plug_serve_shape_requests_count"
SHAPES = "electric_shapes_total_shapes_count"
LAG = "electric_postgres_replication_transaction_received_receive_lag"


def values(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample as a Prometheus client reads it, which gives all counters the suffix that the reference's lack."""
    return {
        (_named(sample.name), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _named(name: str) -> str:
    return name if name in CATALOGUE else name.removesuffix("_total")


def report(process: str, *samples: Sample) -> Report:
    return Increases().report(process, samples)[0]


def test_counters_add_up_over_processes_and_outlive_them() -> None:
    exposition = Exposition()
    exposition.take(0, report("g0", one(REQUESTS, 3, "200"), one(REQUESTS, 1, "404")))
    exposition.take(0, report("g1", one(REQUESTS, 2, "200")))
    # Killed, and started again.
    exposition.take(5, report("g1", one(REQUESTS, 4, "200")))
    text = exposition.text(100)
    assert values(text) == {(REQUESTS, (("status", "200"),)): 9, (REQUESTS, (("status", "404"),)): 1}
    assert f'{REQUESTS}{{status="200"}} 9\n' in text
    assert f"# TYPE {REQUESTS} counter\n" in text


def test_gauges_are_sums_over_those_that_are_there() -> None:
    exposition = Exposition()
    exposition.take(0, report("w00", one(SHAPES, 3)))
    exposition.take(10, report("w01", one(SHAPES, 4), one("galvanic_loop_busy_ratio", 0.5, "w01")))
    exposition.take(10, report("w00", one(SHAPES, 2)))
    assert f"{SHAPES} 6\n" in exposition.text(10)
    exposition.take(20, report("w01", one(SHAPES, 5), one("galvanic_loop_busy_ratio", 0.25, "w01")))
    text = exposition.text(11 + FRESH)
    assert f"{SHAPES} 5\n" in text
    assert 'galvanic_loop_busy_ratio{process="w01"} 0.25\n' in text
    assert exposition.text(100) == ""


def test_histograms_are_cumulative() -> None:
    exposition = Exposition()
    for value in (1.0, 7.0, 1e9):
        histogram = Histogram(LAG)
        histogram.add(value)
        exposition.take(0, report("ingester", histogram.sample()))
    found = values(exposition.text(0))
    assert found[f"{LAG}_bucket", (("le", "1"),)] == 1
    assert found[f"{LAG}_bucket", (("le", "10"),)] == 2
    assert found[f"{LAG}_bucket", (("le", "60000"),)] == 2
    assert found[f"{LAG}_bucket", (("le", "+Inf"),)] == found[f"{LAG}_count", ()] == 3
    assert found[f"{LAG}_sum", ()] == 1e9 + 8


def test_every_metric_comes_out_with_its_kind_and_description() -> None:
    exposition = Exposition()
    samples = [
        Histogram(name).sample() if metric.kind == "histogram" else one(name, 1, *("x" for _ in metric.labels))
        for name, metric in CATALOGUE.items()
    ]
    exposition.take(0, report("w00", *samples))
    text = exposition.text(0)
    for name, metric in CATALOGUE.items():
        assert f"# TYPE {name} {metric.kind}\n" in text
        assert f"# HELP {name} {metric.about}\n" in text
    kinds = {family.name: family.type for family in text_string_to_metric_families(text)}
    # The parser names counters without their suffix.
    assert kinds == {name.removesuffix("_total"): metric.kind for name, metric in CATALOGUE.items()}


def test_labels_are_escaped() -> None:
    exposition = Exposition()
    odd = 'a "b" \\ c\nd'
    exposition.take(0, report("ingester", one("galvanic_info", 1, "0.1", odd)))
    assert values(exposition.text(0)) == {("galvanic_info", (("stack_id", odd), ("version", "0.1"))): 1}

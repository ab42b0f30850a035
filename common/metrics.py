"""What is measured, in one list, and how a process tells it: as increases since it told the last time.

A hot path only adds to plain integers. Each process sends what has come to them every few seconds to the ingester,
which adds everything up for Prometheus (ingester/exposition.py). So a counter never goes back when a process dies; what
a process that is killed has not told yet is all that is lost, and nothing has to be cleared away when it is gone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

import msgspec

Kind = Literal["counter", "gauge", "histogram"]

MILLISECONDS: Final = (
    1.0,
    2.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    60_000.0,
)
"""Upper bounds of the buckets of durations; above the last one is one more."""

AMOUNTS: Final = (1.0, 2.0, 5.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0, 1_000_000.0)
"""The same for what is counted."""


class Metric(NamedTuple):
    """One metric as Prometheus sees it. ``bounds`` are those of a histogram."""

    kind: Kind
    about: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


# Names that begin with electric_ are the reference's (engine.md 19, http-api.md 27.3), so that its dashboards go on.
CATALOGUE: Final[dict[str, Metric]] = {
    # the service
    "galvanic_info": Metric("gauge", "Always 1: version, and ELECTRIC_DATABASE_ID.", ("version", "stack_id")),
    "galvanic_active": Metric("gauge", "1 while changes reach all clients, as /v1/health says; else 0."),
    "galvanic_obstacles": Metric(
        "gauge", "What is in the way of anything; of changes to clients, if delays.", ("delays",)
    ),
    "galvanic_workers": Metric("gauge", "Shapeworkers that are there."),
    "galvanic_partitions_without_worker": Metric("gauge", "Partitions that no worker is fed."),
    "galvanic_epochs_total": Metric("counter", "Starts of the stream: each is a rewind to what is durable everywhere."),
    "galvanic_generation": Metric("gauge", "Number of the generation: a new one has ended all shapes."),
    "galvanic_storage_free_bytes": Metric("gauge", "Free in the file system of ELECTRIC_STORAGE_DIR."),
    # from Postgres
    "electric_postgres_replication_slot_retained_wal_size": Metric("gauge", "Bytes of WAL that the slot keeps."),
    "electric_postgres_replication_slot_confirmed_flush_lsn_lag": Metric(
        "gauge", "Bytes of WAL that are not acknowledged to Postgres yet."
    ),
    "electric_postgres_replication_transaction_received_count": Metric("counter", "Transactions received."),
    "electric_postgres_replication_transaction_received_bytes": Metric("counter", "Bytes received on the stream."),
    "electric_postgres_replication_transaction_received_operations": Metric(
        "histogram", "Changes of a transaction.", bounds=AMOUNTS
    ),
    "electric_postgres_replication_transaction_received_receive_lag": Metric(
        "histogram", "Milliseconds from a commit in Postgres until the ingester has it.", bounds=MILLISECONDS
    ),
    "galvanic_stream_silent_seconds": Metric("gauge", "For how long Postgres has sent nothing although it was asked."),
    "galvanic_in_flight_bytes": Metric(
        "gauge",
        "Bytes sent to a worker that it has not told to be dealt with; a few it tells each second.",
        ("worker",),
    ),
    # into the shapes
    "electric_shapes_total_shapes_count": Metric("gauge", "Shapes."),
    "electric_shapes_active_shapes_count": Metric("gauge", "Shapes whose log is open, as it was used not long ago."),
    "electric_storage_transaction_stored_count": Metric("counter", "Transactions appended to logs, once for each log."),
    "electric_storage_transaction_stored_replication_lag": Metric(
        "histogram",
        "Milliseconds from a commit in Postgres until a worker has it in the logs of its shapes, for clients to read.",
        bounds=MILLISECONDS,
    ),
    "electric_storage_snapshot_stored_count": Metric("counter", "Snapshots of new shapes that were taken."),
    "electric_storage_snapshot_stored_operations": Metric("counter", "Rows in them."),
    "electric_shape_snapshot_create_snapshot_task_stop_duration": Metric(
        "histogram",
        "Milliseconds until a new shape was whole and synced, its snapshot included.",
        bounds=MILLISECONDS,
    ),
    "electric_subqueries_subset_result_count": Metric("counter", "Subset snapshots that were read."),
    "electric_subqueries_subset_result_bytes": Metric("counter", "Bytes of them."),
    "galvanic_shapes_ended_total": Metric("counter", "Shapes that ended, whatever the reason."),
    "galvanic_snapshots_running": Metric("gauge", "Snapshots that are being read."),
    "galvanic_snapshots_waiting": Metric("gauge", "Snapshots that wait for a connection (ELECTRIC_DB_POOL_SIZE)."),
    "galvanic_sync_duration": Metric("histogram", "Milliseconds that a group sync of logs took.", bounds=MILLISECONDS),
    # to the clients
    "electric_plug_serve_shape_requests_count": Metric("counter", "Answers to /v1/shape.", ("status",)),
    "electric_plug_serve_shape_count": Metric("counter", "Answers to /v1/shape, those to live requests left out."),
    "electric_plug_serve_shape_duration": Metric(
        "histogram", "Milliseconds that these answers took, until their last byte was written.", bounds=MILLISECONDS
    ),
    "electric_admission_control_acquire_current": Metric("gauge", "Requests under way.", ("kind",)),
    "electric_admission_control_acquire_limit": Metric("gauge", "How many there may be in all gateways.", ("kind",)),
    "electric_admission_control_reject_count": Metric("counter", "Requests refused: there were too many.", ("kind",)),
    "galvanic_waiting_requests": Metric("gauge", "Live requests that wait for changes."),
    "galvanic_connections": Metric("gauge", "Open client connections."),
    # each process
    "galvanic_process_start_time_seconds": Metric("gauge", "When the process started (Unix).", ("process",)),
    "galvanic_process_cpu_seconds_total": Metric("counter", "Processor time of all its threads.", ("process",)),
    "galvanic_process_resident_memory_bytes": Metric("gauge", "Memory in RAM, shared pages included.", ("process",)),
    "galvanic_loop_busy_seconds_total": Metric("counter", "Time that its event loop did not wait.", ("process",)),
    "galvanic_loop_busy_ratio": Metric("gauge", "Share of the last 10 s in which it was not waiting.", ("process",)),
    "galvanic_loop_lag_max_seconds": Metric("gauge", "Most that a timer was late in the last minute.", ("process",)),
}


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """The present value of a metric: one number, or the counts of a histogram's buckets and its sum.

    ``labels`` are values, in the order of the catalogue. Raises ``ValueError`` for what is not in it.
    """

    name: str
    values: tuple[float, ...]
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        metric = CATALOGUE.get(self.name)
        if metric is None:
            raise ValueError(f"{self.name} is not in the catalogue")
        expected = len(metric.bounds) + 2 if metric.kind == "histogram" else 1
        if len(self.labels) != len(metric.labels) or len(self.values) != expected:
            raise ValueError(f"{self.name} has labels {metric.labels} and {expected} values")


class Report(msgspec.Struct, frozen=True):
    """What a process tells the ingester: increases of counters and histograms, and its gauges as they are."""

    process: str
    increases: tuple[Sample, ...]
    gauges: tuple[Sample, ...]


class Histogram:
    """How often something had about which size."""

    __slots__ = ("_bounds", "_counts", "_name", "_sum")

    def __init__(self, name: str) -> None:
        self._name = name
        self._bounds = CATALOGUE[name].bounds
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one more; less than nothing (clocks differ) counts as nothing."""
        if value < 0.0:
            value = 0.0
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def sample(self) -> Sample:
        """All so far."""
        return Sample(self._name, (*self._counts, self._sum))


def one(name: str, value: float, *labels: str) -> Sample:
    """The sample of a counter or a gauge."""
    return Sample(name, (value,), labels)


class Increases:
    """What has come to the counters since the last report that was sent."""

    def __init__(self) -> None:
        self._sent: dict[tuple[str, tuple[str, ...]], tuple[float, ...]] = {}

    def report(self, process: str, samples: Iterable[Sample]) -> tuple[Report, list[Sample]]:
        """The next report, and what :meth:`sent` is to be told once it is on its way."""
        increases, gauges, totals = [], [], []
        for sample in samples:
            if CATALOGUE[sample.name].kind == "gauge":
                gauges.append(sample)
                continue
            totals.append(sample)
            before = self._sent.get((sample.name, sample.labels), (0.0,) * len(sample.values))
            if sample.values != before:
                increase = tuple(now - then for now, then in zip(sample.values, before, strict=True))
                increases.append(Sample(sample.name, increase, sample.labels))
            elif (sample.name, sample.labels) not in self._sent:
                # Nothing yet, but Prometheus should know that it counts from nothing.
                increases.append(sample)
        return Report(process, tuple(increases), tuple(gauges)), totals

    def sent(self, totals: Iterable[Sample]) -> None:
        """A report is on its way: the next one starts from these totals."""
        self._sent.update({(sample.name, sample.labels): sample.values for sample in totals})


encode_report = msgspec.msgpack.Encoder().encode
decode_report = msgspec.msgpack.Decoder(Report).decode

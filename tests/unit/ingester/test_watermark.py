"""What may be acknowledged, against a model that remembers everything (INV-7, INV-8, INV-9)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ingester.watermark import Watermark

PARTITIONS = 3


class WatermarkModel(RuleBasedStateMachine):
    """Transactions are dispatched, become durable partition by partition in any order; the stream is rewound."""

    @initialize(confirmed=st.integers(1, 100))
    def start(self, confirmed: int) -> None:
        """A first stream from the slot's confirmed position."""
        self.watermark = Watermark(PARTITIONS, confirmed)
        self.confirmed = confirmed
        self.wal: list[int] = []  # commit LSNs that exist
        self.next = 0  # how many of them this epoch has dispatched
        self.durable = [0] * PARTITIONS  # how many of them are durable
        self.acknowledged = confirmed
        self.lsn = confirmed

    @rule(gap=st.integers(0, 20))
    def commit(self, gap: int) -> None:
        """A transaction commits in Postgres; its record may start exactly at the confirmed position."""
        self.lsn += gap + (1 if self.wal else 0)
        self.wal.append(self.lsn)

    @precondition(lambda self: self.next < len(self.wal))
    @rule()
    def dispatch(self) -> None:
        """The stream delivers the next one."""
        self.watermark.dispatched(self.wal[self.next])
        self.next += 1

    @rule(partition=st.integers(0, PARTITIONS - 1), data=st.data())
    def sync(self, partition: int, data: st.DataObject) -> None:
        """A worker reports what it has dealt with, also old news of a replay."""
        count = data.draw(st.integers(0, self.next))
        if count:
            self.durable[partition] = max(self.durable[partition], count)
            self.watermark.durable([partition], self.wal[count - 1])

    @precondition(lambda self: self.next == len(self.wal))
    @rule(beyond=st.integers(0, 50))
    def keepalive(self, beyond: int) -> None:
        """Postgres says that it has sent all there is."""
        self.lsn += 1 + beyond
        self.watermark.idle(self.lsn)

    @rule()
    def rewind(self) -> None:
        """A new epoch starts from the acknowledged position."""
        position = self.watermark.acknowledged()
        self.watermark.rewound(position)
        self.next = sum(lsn < position for lsn in self.wal)

    @invariant()
    def nothing_is_acknowledged_that_is_not_durable_everywhere(self) -> None:
        """INV-7, INV-9."""
        acknowledged = self.watermark.acknowledged()
        assert acknowledged >= self.acknowledged
        self.acknowledged = acknowledged
        covered = sum(lsn < acknowledged for lsn in self.wal)
        assert all(count >= covered for count in self.durable)

    @invariant()
    def what_is_durable_everywhere_is_acknowledged(self) -> None:
        """INV-8, between two keepalives."""
        count = min(self.durable)
        if count:
            assert self.watermark.acknowledged() > self.wal[count - 1]


TestWatermark = WatermarkModel.TestCase


@given(st.integers(1, 1000), st.integers(0, 1000))
def test_a_quiet_database_still_moves_the_slot(confirmed: int, beyond: int) -> None:
    watermark = Watermark(4, confirmed)
    watermark.rewound(confirmed)
    watermark.idle(confirmed + beyond)
    assert watermark.acknowledged() == confirmed + beyond


def test_a_keepalive_does_not_cover_what_was_dispatched_after_it() -> None:
    watermark = Watermark(1, 10)
    watermark.rewound(10)
    watermark.dispatched(20)
    watermark.durable([0], 20)
    watermark.idle(30)
    watermark.dispatched(40)
    assert watermark.acknowledged() == 30
    assert not watermark.all_durable
    watermark.durable([0], 40)
    assert watermark.acknowledged() == 41
    assert watermark.all_durable


def test_a_keepalive_waits_for_what_was_dispatched_before_it() -> None:
    watermark = Watermark(2, 10)
    watermark.rewound(10)
    watermark.dispatched(20)
    watermark.idle(30)
    watermark.durable([0], 20)
    assert watermark.acknowledged() == 10
    assert watermark.slowest() == (1, 10)
    watermark.durable([1], 20)
    assert watermark.acknowledged() == 30

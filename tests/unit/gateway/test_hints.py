"""Subscriptions follow the owners of partitions."""

from __future__ import annotations

from gateway.hints import Hints


class Cluster:
    def __init__(self) -> None:
        self.owners: dict[int, str] = {}
        self.subscribed: set[tuple[str, str]] = set()

    def owner(self, partition: int) -> str | None:
        return self.owners.get(partition)

    def subscribe(self, worker: str, handle: str) -> None:
        self.subscribed.add((worker, handle))

    def unsubscribe(self, worker: str, handle: str) -> None:
        self.subscribed.discard((worker, handle))


def test_a_subscription_moves_with_its_partition() -> None:
    cluster = Cluster()
    hints = Hints(cluster, cluster)
    hints.want("h", 3)
    assert cluster.subscribed == set()
    cluster.owners = {3: "w0"}
    hints.reassign()
    assert cluster.subscribed == {("w0", "h")}
    cluster.owners = {3: "w1"}
    hints.reassign()
    assert cluster.subscribed == {("w1", "h")}
    cluster.owners = {}
    hints.reassign()
    assert cluster.subscribed == set()
    cluster.owners = {3: "w1"}
    hints.reassign()
    hints.drop("h")
    assert cluster.subscribed == set()
    hints.reassign()
    hints.drop("unknown")
    assert cluster.subscribed == set()

"""What a seed decides before anything happens: sizes, speeds, and how much goes wrong."""

from __future__ import annotations

from random import Random


class Plan:
    """What a seed decides before anything happens."""

    def __init__(self, rng: Random) -> None:
        self.seconds = rng.uniform(8, 18)
        self.tables = rng.randint(1, 3)
        self.partitions = rng.randint(2, 6)
        self.workers = rng.randint(1, 3)
        self.gateways = rng.randint(1, 2)
        self.writers = rng.randint(1, 5)
        self.clients = rng.randint(2, 5)
        self.delay = rng.choice((0.0005, 0.005, 0.05, 0.3))
        self.hint_loss = rng.choice((0.0, 0.0, 0.1, 1.0))
        self.sync_seconds = rng.choice((0.0005, 0.005, 0.05, 0.3))
        self.round_trip = rng.choice((0.001, 0.01, 0.05))
        self.standby_lag = rng.choice((0.0, 0.0, 0.5, 3.0))
        self.synchronous = rng.choice((1.0, 0.7, 0.0))
        self.sends_empty = rng.random() < 0.3
        self.faults = rng.choice((0, 2, 5, 12))
        self.write_pause = rng.choice((0.05, 0.2, 1.0))
        self.large = rng.choice((0.0, 0.05, 0.3))
        self.sizes = {
            "frame": rng.choice((200, 1000, 5000)),
            "credit": rng.choice((1000, 10_000, 1_000_000)),
            "ring": rng.choice((100_000, 100_000, 100_000)),
            "spill": rng.choice((100, 1000, 100_000)),
            "held": 64 << 20,
            "together": rng.choice((1, 2, 8)),
            "alone": rng.choice((0.0, 0.3, 1.0)),
            "buffer": rng.choice((200, 5000, 1 << 20)),
            # Not drawn from it, so that what follows is as it was before this was here.
            "slice": Random(self.seconds).choice((300, 2000, 64 << 10)),
        }
        self.chunk_bytes = rng.choice((300, 2000, 100_000))
        self.long_poll_ms = rng.choice((500, 3000, 20_000))
        self.max_shapes = rng.choice((None, None, 1, 3))
        """With it, some clients ask once and never again, and the others go away for a while."""
        self.passers = 0 if self.max_shapes is None else rng.randint(2, 8)

"""Who writes to Postgres: concurrent transactions, large, slow, rolled back, and a truncation now and then."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from tests.simulation.plan import Plan
from tests.simulation.postgres import DELETE, INSERT, UPDATE, Server, Transaction


class Writers:
    """Scripts that a scheduler runs. :attr:`busy` counts those that still have something to do."""

    def __init__(self, server: Server, rng: Random, plan: Plan) -> None:
        self.server, self.rng, self.plan = server, rng, plan
        self.calm = False
        """Set when no new transaction is to begin."""
        self.busy = 0

    def start(self) -> None:
        """All of them."""
        scheduler = self.server.scheduler
        scheduler.spawn(self._wal_writer())
        for _ in range(self.plan.writers):
            self.busy += 1
            scheduler.spawn(self._writer())

    def truncate(self) -> None:
        """Empty a table as soon as nobody writes to it."""
        self.busy += 1
        self.server.scheduler.spawn(self._truncation(self.rng.choice(list(self.server.tables))))

    def _wal_writer(self) -> Iterator[float]:
        server, rng = self.server, self.rng
        while True:
            yield rng.random() * 0.4
            if server.up:
                if rng.random() < 0.3 and not self.calm:
                    server.advance(rng.randrange(30, 500))
                server.flush_to(server.insert)
                if rng.random() < 0.1:
                    server.checkpoint()

    def _writer(self) -> Iterator[float]:
        rng, plan = self.rng, self.plan
        yield rng.random() * 3
        while not self.calm:
            yield rng.random() * plan.write_pause * 2
            if self.server.up:
                yield from self._transaction(rng.randrange(30, 90) if rng.random() < plan.large else rng.randint(1, 5))
        self.busy -= 1

    def _transaction(self, changes: int) -> Iterator[float]:
        server, rng = self.server, self.rng
        life = server.life
        transaction = server.begin()
        slow = 0.5 if rng.random() < 0.1 else 0.002
        for _ in range(changes):
            table = rng.choice(list(server.tables))
            for _ in range(1000):
                if table not in server.locked:
                    break
                yield 0.02
                if server.life != life:
                    return
            self._change(transaction, table)
            if rng.random() < 0.5:
                yield rng.random() * slow
                if server.life != life:
                    return
        if rng.random() < 0.15:
            server.abort(transaction)
        else:
            yield from server.commit(transaction, synchronous=rng.random() < self.plan.synchronous)

    def _change(self, transaction: Transaction, table: int) -> None:
        server, rng = self.server, self.rng
        key = rng.randint(1, 8)
        if table in server.locked or not server.is_free(table, key, transaction):
            return
        live = server.current(table, key, transaction)
        text = b'%d "\xc3\xa9"' % rng.randrange(1000) + b"x" * rng.choice((0, 0, 0, 300))
        if live is None:
            server.write(transaction, table, INSERT, key, (text, None if rng.random() < 0.2 else b"b"))
        elif rng.random() < 0.3:
            server.write(transaction, table, DELETE, key, ())
        elif rng.random() < 0.1:
            to = rng.randint(1, 8)
            if server.is_free(table, to, transaction) and server.current(table, to, transaction) is None:
                server.move(transaction, table, key, to)
        else:
            a, b = live.row[1], live.row[2]
            if rng.random() < 0.6:
                a = text
            if rng.random() < 0.4:
                b = rng.choice((None, b"b%d" % rng.randrange(9)))
            server.write(transaction, table, UPDATE, key, (a, b))

    def _truncation(self, table: int) -> Iterator[float]:
        server, rng = self.server, self.rng
        life = server.life
        for _ in range(500):
            if server.up and table not in server.locked and not server.busy(table):
                break
            yield 0.02
        else:
            self.busy -= 1
            return
        if server.life == life and server.up:
            server.locked.add(table)
            transaction = server.begin()
            server.truncate(transaction, table)
            yield rng.random() * 0.05
            if server.life == life:
                yield from server.commit(transaction, synchronous=True)
            if server.life == life:
                server.locked.discard(table)
        self.busy -= 1

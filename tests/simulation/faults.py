"""What goes wrong, one thing at a time."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulation.process import Process

if TYPE_CHECKING:
    from tests.simulation.world import World


class Faults:
    """Chooses and produces faults in a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.rng
        self.scheduler = world.scheduler
        self.network = world.network
        self.server = world.server
        self.database = world.database
        self.disk = world.disk

    def one(self) -> None:
        """Produce one, if it is the time for that."""
        if self.world.calm or not self.world.powered:
            return
        faults: list[tuple[int, Callable[[], None]]] = [
            (6, self._kill_one),
            (4, self._kill_in_write),
            (3, self._stop_one),
            (3, self._freeze_one),
            (6, self._cut_link),
            (4, self._stall_link),
            (2, self._power_cut),
            (3, self._crash_postgres),
            (3, self._lose_stream),
            (2, self._lose_snapshots),
            (5, self._change_workers),
            (2, self._delete),
            (1, self._fill_disk),
            (1, self._fail_syncs),
            (1, self.world.writers.truncate),
            (2, self._add_client),
        ]
        weights = [weight for weight, _ in faults]
        fault = self.rng.choices([action for _, action in faults], weights)[0]
        self.scheduler.trace("fault", fault.__name__)
        fault()

    def _someone(self) -> Process | None:
        return self.rng.choice(list(self.world.alive.values())) if self.world.alive else None

    def _kill_one(self) -> None:
        process = self._someone()
        if process is not None:
            process.kill()

    def _kill_in_write(self) -> None:
        writers = [process for name, process in self.world.alive.items() if name[0] in "wi"]
        if writers:
            self.disk.crash = (self.rng.choice(writers), self.rng.randrange(1, 40))

    def _stop_one(self) -> None:
        process = self._someone()
        if process is not None and signal.SIGTERM in process.loop.signals:
            process.loop.call_soon(process.loop.signals[signal.SIGTERM])

    def _freeze_one(self) -> None:
        process = self._someone()
        if process is not None:
            process.stopped_until = self.scheduler.now + self.rng.choice((0.5, 4.0, 9.0)) * self.rng.uniform(0.3, 1)

    def _cut_link(self) -> None:
        links = list(self.network.links.values())
        if self.rng.random() < 0.6:
            # What carries frames, and must not lose any without a word.
            links = [link for link in links if link.server.endpoint == self.world.settings.stream_endpoint] or links
        if links:
            self.network.cut(self.rng.choice(links), self.rng.choice((0.01, 1.0, 4.0)))

    def _stall_link(self) -> None:
        if self.network.links:
            self.rng.choice(list(self.network.links.values())).stall(self.rng.random() * 4)

    def _power_cut(self) -> None:
        self.world.powered = False
        for process in list(self.world.alive.values()):
            process.kill()
        self.disk.power_cut(self.rng)
        for client in self.world.clients:
            # The mark of an end that was only in the page cache is gone, and until the next owner of the partition
            # writes it again, a gateway may find the shape on the disk (gateway/finder.py).
            client.view.ended.clear()

        def back() -> None:
            self.world.powered = True
            for start in list(self.world.wanted.values()):
                self.scheduler.after(self.rng.random(), start)

        self.scheduler.after(self.rng.random() * 2, back)

    def _crash_postgres(self) -> None:
        if self.server.up:
            self.server.crash()
            self.scheduler.after(self.rng.random() * 3, lambda: setattr(self.server, "up", True))

    def _lose_stream(self) -> None:
        self.database.lose_streams()

    def _lose_snapshots(self) -> None:
        for connection in list(self.database.snapshots):
            connection.lose()

    def _change_workers(self) -> None:
        names = [name for name in self.world.wanted if name.startswith("w")]
        if len(names) > 1 and self.rng.random() < 0.5:
            name = self.rng.choice(names)
            del self.world.wanted[name]
            process = self.world.alive.get(name)
            if process is not None and signal.SIGTERM in process.loop.signals:
                process.loop.call_soon(process.loop.signals[signal.SIGTERM])
            elif process is not None:
                process.kill()
        else:
            self.world.want_worker(f"w{self.world.incarnations + 10}")

    def _delete(self) -> None:
        if self.world.clients:
            client = self.rng.choice(self.world.clients)
            client.process.loop.call_soon(lambda: client.process.loop.create_task(client.delete()))

    def _fill_disk(self) -> None:
        self.disk.full = True
        self.scheduler.after(self.rng.random() * 5, lambda: setattr(self.disk, "full", False))

    def _fail_syncs(self) -> None:
        self.disk.bad_syncs = self.rng.randint(1, 3)

    def _add_client(self) -> None:
        self.world.add_client()

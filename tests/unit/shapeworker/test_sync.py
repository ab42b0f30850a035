"""Group sync: the durable position is never ahead of the disk (INV-10, INV-32)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest

from common.shapelog.files import RealFiles
from common.shapelog.whole_sync import MANY
from shapeworker.sync import Log, Syncer


class FakeLog:
    """A log whose sync can be held up or fail."""

    def __init__(self, *, error: OSError | ValueError | None = None) -> None:
        self.go = Event()
        self.go.set()
        self.syncs = self.covers = 0
        self.error = error

    def sync(self) -> None:
        self.go.wait(120)
        if self.error is not None:
            raise self.error
        self.syncs += 1

    @contextlib.contextmanager
    def covered(self) -> Iterator[None]:
        if isinstance(self.error, ValueError):
            raise self.error
        yield
        self.covers += 1


class WholeSync(RealFiles):
    """Syncs of the file system that can fail."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def sync_file_system(self, path: Path, asker: str, /) -> None:
        if self.error is not None:
            raise self.error


class Watch:
    """What the syncer reported."""

    def __init__(self, path: Path) -> None:
        self.durable: list[int] = []
        self.failures: list[Log] = []
        self.on_failure: Callable[[], None] = lambda: None
        self.files = WholeSync()
        self.syncer = Syncer(path, self.durable.append, self._failed, interval=0, files=self.files)
        self.syncer.restart(100)

    def _failed(self, log: Log, error: OSError) -> None:
        self.failures.append(log)
        self.on_failure()


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(tmp_path)


async def test_a_commit_without_dirty_logs_is_durable_at_once(watch: Watch) -> None:
    watch.syncer.commit(150)
    await watch.syncer.flush()
    assert watch.durable == [150]
    await watch.syncer.flush()
    assert watch.durable == [150], "nothing new, nothing said"


async def test_the_position_is_the_commit_at_which_the_batch_began(watch: Watch) -> None:
    log = FakeLog()
    log.go.clear()
    watch.syncer.dirty(log)
    watch.syncer.commit(150)
    flushing = asyncio.create_task(watch.syncer.flush())
    await asyncio.sleep(0.05)
    watch.syncer.dirty(log)
    watch.syncer.commit(160)
    assert watch.durable == []
    log.go.set()
    await flushing
    assert watch.durable == [150]
    await watch.syncer.flush()
    assert watch.durable == [150, 160]
    assert log.syncs == 2


async def test_an_epoch_that_starts_during_a_batch_is_not_credited_with_it(watch: Watch) -> None:
    log = FakeLog()
    log.go.clear()
    watch.syncer.dirty(log)
    watch.syncer.commit(150)
    flushing = asyncio.create_task(watch.syncer.flush())
    await asyncio.sleep(0.05)
    watch.syncer.restart(120)
    log.go.set()
    await flushing
    assert watch.durable == []
    assert watch.syncer.durable == 119


async def test_an_ending_shape_holds_the_position_back_until_its_tombstone(watch: Watch) -> None:
    tombstone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    watch.syncer.wait_for(tombstone)
    watch.syncer.commit(150)
    flushing = asyncio.create_task(watch.syncer.flush())
    await asyncio.sleep(0.05)
    assert watch.durable == []
    tombstone.set_result(None)
    await flushing
    assert watch.durable == [150]


async def test_a_log_that_cannot_be_synced_holds_it_back_until_its_shape_has_ended(watch: Watch) -> None:
    tombstone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    watch.on_failure = lambda: watch.syncer.wait_for(tombstone)
    broken, healthy = FakeLog(error=OSError(errno.EIO, "broken")), FakeLog()
    for log in (broken, healthy):
        watch.syncer.dirty(log)
    watch.syncer.commit(150)
    flushing = asyncio.create_task(watch.syncer.flush())
    async with asyncio.timeout(120):
        while not watch.failures:  # noqa: ASYNC110 - it fails in a thread
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert watch.failures == [broken]
    assert watch.durable == []
    tombstone.set_result(None)
    await flushing
    assert watch.durable == [150]
    assert healthy.syncs == 1


async def test_many_logs_are_synced_together(watch: Watch) -> None:
    logs = [FakeLog() for _ in range(MANY)]
    closed = FakeLog(error=ValueError("the file is closed"))
    for log in (closed, *logs):
        watch.syncer.dirty(log)
    watch.syncer.commit(150)
    await watch.syncer.flush()
    assert watch.durable == [150]
    assert {(log.covers, log.syncs) for log in logs} == {(1, 0)}


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), NotImplementedError()], ids=["fails", "is missing"])
async def test_when_the_sync_of_all_says_nothing_each_log_is_asked(watch: Watch, error: Exception) -> None:
    watch.files.error = error
    broken, logs = FakeLog(error=OSError(errno.EIO, "broken")), [FakeLog() for _ in range(MANY)]
    for log in (broken, *logs):
        watch.syncer.dirty(log)
    watch.syncer.commit(150)
    await watch.syncer.flush()
    assert watch.failures == [broken]
    assert {(log.covers, log.syncs) for log in logs} == {(0, 1)}


async def test_after_a_failure_each_log_is_asked_for_good(watch: Watch) -> None:
    """It is told once, and may have been about a log that is not in the batch it was told to."""
    logs = [FakeLog() for _ in range(MANY)]
    watch.files.error = OSError(errno.EIO, "broken")
    for round_number in (1, 2):
        for log in logs:
            watch.syncer.dirty(log)
        watch.syncer.commit(150 + round_number)
        await watch.syncer.flush()
        watch.files.error = None
        assert {(log.covers, log.syncs) for log in logs} == {(0, round_number)}


async def test_a_log_can_be_closed_once_no_batch_touches_it(watch: Watch) -> None:
    log = FakeLog()
    log.go.clear()
    watch.syncer.dirty(log)
    watch.syncer.commit(150)
    flushing = asyncio.create_task(watch.syncer.flush())
    await asyncio.sleep(0.05)
    quiet = asyncio.create_task(watch.syncer.quiet(log))
    await asyncio.sleep(0.05)
    assert not quiet.done()
    log.go.set()
    await asyncio.wait_for(quiet, 120)
    await flushing


async def test_a_batch_that_was_cancelled_is_not_taken_for_done(watch: Watch) -> None:
    """A worker that stops cancels its syncer, and flushes once more itself."""
    log = FakeLog()
    log.go.clear()
    watch.syncer.dirty(log)
    watch.syncer.commit(150)
    cancelled = asyncio.create_task(watch.syncer.flush())
    await asyncio.sleep(0.05)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    flushing = asyncio.create_task(watch.syncer.flush())
    await asyncio.sleep(0.05)
    assert watch.durable == []
    log.go.set()
    await flushing
    assert watch.durable == [150]
    assert log.syncs == 2


async def test_a_second_flush_waits_for_the_first(watch: Watch) -> None:
    """A worker that stops flushes while its syncer does: what is in the other's batch is not durable yet."""
    log = FakeLog()
    log.go.clear()
    watch.syncer.dirty(log)
    watch.syncer.commit(150)
    first = asyncio.create_task(watch.syncer.flush())
    await asyncio.sleep(0.05)
    second = asyncio.create_task(watch.syncer.flush())
    await asyncio.sleep(0.05)
    assert watch.durable == []
    log.go.set()
    await asyncio.gather(first, second)
    assert watch.durable == [150]

"""The disk: files that survive a killed process, and of which a power cut leaves only what was synced.

Writes are steps at which the process may be killed; a sync lets time pass before its effect. Whoever writes into a
partition must have its catalog open, which the disk checks on every write (engine.md INV-27, INV-39).
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from random import Random
from typing import Any

from tests.simulation.process import Process
from tests.simulation.scheduler import Killed, Scheduler

BLOCK = 512
"""Bytes that a power cut leaves or takes as a whole."""


class Node:
    """A file, or a directory if it has ``entries``. ``synced`` is what a power cut leaves of it."""

    def __init__(self, *, directory: bool, partition: str | None) -> None:
        self.data = bytearray()
        self.synced = b""
        self.entries: dict[str, Node] | None = {} if directory else None
        self.synced_entries: dict[str, Node] = {}
        self.partition = partition
        self.version = 0
        """Counts the syncs, so that what was computed from :attr:`synced` can be kept."""


class Disk:
    """One file system."""

    def __init__(self, scheduler: Scheduler, sync_seconds: float) -> None:
        self.scheduler = scheduler
        self.sync_seconds = sync_seconds
        self.root = Node(directory=True, partition=None)
        self.owners: dict[str, Process] = {}
        """Partition → who has its catalog open."""
        self.catalogs: dict[str, sqlite3.Connection] = {}
        self.on_commit: Callable[[str], None] = lambda _: None
        """Told the partition whose catalog has just changed durably."""
        self.full = False
        self.bad_syncs = 0
        """So many of the next syncs of a file fail."""
        self.crash: tuple[Process, int] | None = None
        """This process is killed at its so many-th write from now."""
        self._open: dict[int, tuple[Node, Process]] = {}
        self._locks: dict[Node, int] = {}
        self._next = 3

    # ---- common.shapelog.files.Files

    def open(self, path: PurePosixPath, flags: int, mode: int = 0) -> int:
        """As ``os.open``."""
        process = self._step()
        parent, name = self._parent(path)
        node = parent.get(name)
        if node is None:
            if not flags & os.O_CREAT:
                raise FileNotFoundError(errno.ENOENT, "No such file", str(path))
            self._mutate(process, path)
            node = parent[name] = Node(directory=False, partition=_partition(path))
        elif flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        if flags & os.O_TRUNC:
            self._mutate(process, path)
            node.data.clear()
        self._next += 1
        self._open[self._next] = (node, process)
        return self._next

    def close(self, fd: int) -> None:
        """As ``os.close``."""
        if fd not in self._open:
            raise OSError(errno.EBADF, "Bad file descriptor")
        node, _ = self._open.pop(fd)
        if self._locks.get(node) == fd:
            del self._locks[node]

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """As ``os.pread``."""
        return bytes(self._node(fd).data[offset : offset + length])

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """As ``os.pwrite``, at times less than asked for."""
        node = self._node(fd)
        process = self._step()
        self._mutate(process, None, node)
        rng = self.scheduler.rng
        if len(data) > 1 and rng.random() < 0.02:
            data = data[: rng.randrange(1, len(data))]
        if len(node.data) < offset:
            node.data.extend(bytes(offset - len(node.data)))
        node.data[offset : offset + len(data)] = data
        return len(data)

    def write(self, fd: int, data: bytes) -> int:
        """As ``os.write``: at the end."""
        node = self._node(fd)
        self._mutate(self._step(), None, node)
        node.data.extend(data)
        return len(data)

    def ftruncate(self, fd: int, length: int) -> None:
        """As ``os.ftruncate``."""
        node = self._node(fd)
        self._mutate(self._step(), None, node, grows=False)
        del node.data[length:]

    def size(self, fd: int) -> int:
        """The length of the file."""
        return len(self._node(fd).data)

    def fdatasync(self, fd: int) -> None:
        """As ``os.fdatasync``; takes its time."""
        node = self._node(fd)
        self._step()
        self._wait()
        if self.bad_syncs:
            self.bad_syncs -= 1
            raise OSError(errno.EIO, "Input/output error")
        node.synced = bytes(node.data)
        node.version += 1
        self._wait()

    def sync_directory(self, path: PurePosixPath) -> None:
        """As ``fsync`` of a directory."""
        self._step()
        self._wait()
        node = self.lookup(path)
        if node is None or node.entries is None:
            raise FileNotFoundError(errno.ENOENT, "No such directory", str(path))
        node.synced_entries = dict(node.entries)

    def sync_file_system(self, path: PurePosixPath, asker: str) -> None:
        """As ``syncfs``, of all there is."""
        self._step()
        self._wait()
        if self.bad_syncs:
            # The files tell, too, which of them are concerned.
            raise OSError(errno.EIO, "Input/output error")

        def sync(node: Node) -> None:
            if node.entries is None:
                node.synced = bytes(node.data)
                node.version += 1
                return
            node.synced_entries = dict(node.entries)
            for child in node.entries.values():
                sync(child)

        sync(self.root)
        self._wait()

    def mkdir(self, path: PurePosixPath, mode: int = 0) -> None:
        """As ``os.mkdir``."""
        process = self._step()
        parent, name = self._parent(path)
        if name in parent:
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        self._mutate(process, path)
        parent[name] = Node(directory=True, partition=_partition(path))

    def rename(self, source: PurePosixPath, target: PurePosixPath) -> None:
        """As ``os.rename``."""
        process = self._step()
        old, old_name = self._parent(source)
        new, new_name = self._parent(target)
        if old_name not in old:
            raise FileNotFoundError(errno.ENOENT, "No such file", str(source))
        self._mutate(process, source, grows=False)
        new[new_name] = old.pop(old_name)

    def lock(self, fd: int) -> None:
        """As ``flock(LOCK_EX | LOCK_NB)``: held until the descriptor is closed or its process is gone."""
        node = self._node(fd)
        self._step()
        if self._locks.setdefault(node, fd) != fd:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    def listdir(self, path: PurePosixPath) -> list[str]:
        """As ``os.listdir``."""
        node = self.lookup(path)
        if node is None or node.entries is None:
            raise FileNotFoundError(errno.ENOENT, "No such directory", str(path))
        return list(node.entries)

    def is_directory(self, path: PurePosixPath) -> bool:
        """Whether it is one."""
        node = self.lookup(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "No such file", str(path))
        return node.entries is not None

    def remove(self, path: PurePosixPath) -> None:
        """As ``os.remove``."""
        self._step()
        parent, name = self._parent(path)
        if name not in parent:
            raise FileNotFoundError(errno.ENOENT, "No such file", str(path))
        del parent[name]

    rmdir = remove

    # ---- the world's side

    def lookup(self, path: PurePosixPath) -> Node | None:
        """What is there now."""
        node: Node | None = self.root
        for part in path.parts:
            if node is None or node.entries is None:
                return None
            node = node.entries.get(part)
        return node

    def make_directories(self, path: PurePosixPath) -> None:
        """With all above it; they survive a power cut, unlike in POSIX."""
        node = self.root
        for part in path.parts:
            assert node.entries is not None
            if part not in node.entries:
                node.entries[part] = Node(directory=True, partition=None)
            node.synced_entries[part] = node.entries[part]
            node = node.entries[part]

    def forget(self, process: Process) -> None:
        """The process is gone, its descriptors and locks with it."""
        self._open = {fd: entry for fd, entry in self._open.items() if entry[1] is not process}
        self._locks = {node: fd for node, fd in self._locks.items() if fd in self._open}
        self.owners = {partition: owner for partition, owner in self.owners.items() if owner is not process}

    def power_cut(self, rng: Random) -> None:
        """Of what was not synced an arbitrary part is gone. All processes must be gone, too."""
        done: set[int] = set()

        def cut(node: Node) -> None:
            if id(node) in done:
                return
            done.add(id(node))
            if node.entries is not None:
                for name in [*node.entries, *node.synced_entries]:
                    before, now = node.synced_entries.get(name), node.entries.get(name)
                    if before is not now and rng.random() < 0.5:
                        if before is None:
                            node.entries.pop(name, None)
                        else:
                            node.entries[name] = before
                for child in node.entries.values():
                    cut(child)
                node.synced_entries = dict(node.entries)
            elif node.data != node.synced:
                node.data = _torn(rng, bytes(node.data), node.synced)
                node.synced = bytes(node.data)
                node.version += 1

        cut(self.root)

    # ---- how

    def step(self) -> Process:
        """A moment at which the acting process, which it returns, may be killed. Raises :class:`Killed`."""
        return self._step()

    def check_room(self) -> None:
        """Raises ``OSError`` while the disk is full."""
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")

    def _wait(self) -> None:
        if not self.sync_seconds:
            return
        self.scheduler.pause(self.scheduler.rng.random() * self.sync_seconds)
        self._step()

    def _step(self) -> Process:
        process = self.scheduler.current
        assert process is not None
        process.check()
        if self.crash is not None and self.crash[0] is process:
            self.crash = (process, self.crash[1] - 1)
            if self.crash[1] <= 0:
                self.crash = None
                self.scheduler.trace("killed inside a write", process.name)
                process.kill()
                raise Killed
        return process

    def _mutate(
        self, process: Process, path: PurePosixPath | None, node: Node | None = None, *, grows: bool = True
    ) -> None:
        partition = node.partition if node is not None else None if path is None else _partition(path)
        if partition is not None and self.owners.get(partition) is not process:
            self.scheduler.fail(
                AssertionError(f"INV-27: {process.name} writes into partition {partition} without owning it ({path})")
            )
        if grows:
            self.check_room()

    def _node(self, fd: int) -> Node:
        if fd not in self._open:
            current = self.scheduler.current
            if current is not None:
                current.check()
            raise OSError(errno.EBADF, "Bad file descriptor")
        return self._open[fd][0]

    def _parent(self, path: PurePosixPath) -> tuple[dict[str, Node], str]:
        node = self.lookup(path.parent)
        if node is None or node.entries is None:
            raise FileNotFoundError(errno.ENOENT, "No such directory", str(path.parent))
        return node.entries, path.name


def _torn(rng: Random, now: bytes, synced: bytes) -> bytearray:
    choice = rng.random()
    if choice < 0.3:
        return bytearray(synced)
    if choice < 0.5:
        return bytearray(now)
    # The length of either, or between; each block as it was or as it is.
    size = rng.randint(min(len(now), len(synced)), max(len(now), len(synced)))
    result = bytearray()
    for start in range(0, size, BLOCK):
        source = now if rng.random() < 0.5 else synced
        piece = source[start : min(start + BLOCK, size)]
        result += piece + bytes(min(BLOCK, size - start) - len(piece))
    return result


def _partition(path: PurePosixPath) -> str | None:
    parts = path.parts
    if "partitions" in parts:
        at = parts.index("partitions") + 1
        # The folders are made before the catalog in them is locked; the trash is swept by any thread, at any time.
        if len(parts) > at + 2 and parts[at + 1] == "shapes":
            return parts[at]
    return None


class SimPath(PurePosixPath):
    """A path on the disk of the simulation that is running, as far as the product uses ``pathlib.Path``."""

    disk: Disk

    def mkdir(self, mode: int = 0, parents: bool = False, exist_ok: bool = False) -> None:
        """Make it with all above it."""
        SimPath.disk.make_directories(self)

    def is_dir(self) -> bool:
        """Whether it is a directory."""
        node = SimPath.disk.lookup(self)
        return node is not None and node.entries is not None

    def exists(self) -> bool:
        """Whether it is there."""
        return SimPath.disk.lookup(self) is not None

    def iterdir(self) -> Iterator[SimPath]:
        """What is in it."""
        return iter([self / name for name in SimPath.disk.listdir(self)])

    def glob(self, pattern: str) -> Iterator[SimPath]:
        """Only ``*/*``."""
        assert pattern == "*/*"
        if self.is_dir():
            for child in self.iterdir():
                if child.is_dir():
                    yield from child.iterdir()

    def read_bytes(self) -> bytes:
        """The content."""
        node = SimPath.disk.lookup(self)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "No such file", str(self))
        return bytes(node.data)


class SimOs:
    """The part of ``os`` that the product uses directly."""

    O_RDONLY, O_WRONLY, O_RDWR = os.O_RDONLY, os.O_WRONLY, os.O_RDWR
    O_CREAT, O_TRUNC, O_DIRECTORY = os.O_CREAT, os.O_TRUNC, os.O_DIRECTORY
    F_OK = os.F_OK

    @staticmethod
    def getpid() -> int:
        """Always the same: it is written to a file, and a crash tears files by their length."""
        return 4_242

    class path:
        """``os.path``."""

        @staticmethod
        def exists(path: SimPath) -> bool:
            """Whether it is there."""
            return path.exists()

    @staticmethod
    def access(path: SimPath, _: int) -> bool:
        """Whether it is there."""
        return path.exists()

    @staticmethod
    def open(path: SimPath, flags: int, mode: int = 0) -> Any:
        """A file's descriptor, or the path of a directory."""
        return path if flags & os.O_DIRECTORY else SimPath.disk.open(path, flags, mode)

    @staticmethod
    def pread(fd: int, length: int, offset: int) -> bytes:
        """As ``os.pread``."""
        return SimPath.disk.pread(fd, length, offset)

    @staticmethod
    def pwrite(fd: int, data: bytes, offset: int) -> int:
        """As ``os.pwrite``."""
        return SimPath.disk.pwrite(fd, data, offset)

    @staticmethod
    def ftruncate(fd: int, length: int) -> None:
        """As ``os.ftruncate``."""
        SimPath.disk.ftruncate(fd, length)

    @staticmethod
    def listdir(path: SimPath) -> list[str]:
        """As ``os.listdir``."""
        return SimPath.disk.listdir(path)

    @staticmethod
    def write(fd: int, data: bytes) -> int:
        """As ``os.write``."""
        return SimPath.disk.write(fd, data)

    @staticmethod
    def fsync(fd: Any) -> None:
        """Of a file or a directory; all at once, since a lock that the loop takes, too, is held meanwhile."""
        disk = SimPath.disk
        before, disk.sync_seconds = disk.sync_seconds, 0.0
        try:
            if isinstance(fd, SimPath):
                disk.sync_directory(fd)
            else:
                disk.fdatasync(fd)
        finally:
            disk.sync_seconds = before

    @staticmethod
    def close(fd: Any) -> None:
        """As ``os.close``."""
        if not isinstance(fd, SimPath):
            SimPath.disk.close(fd)

    @staticmethod
    def replace(source: SimPath, target: SimPath) -> None:
        """As ``os.replace``."""
        SimPath.disk.rename(source, target)


class SimFcntl:
    """The part of ``fcntl`` that the product uses."""

    LOCK_EX, LOCK_NB = fcntl.LOCK_EX, fcntl.LOCK_NB

    @staticmethod
    def flock(fd: int, _: int) -> None:
        """Exclusively, without waiting."""
        SimPath.disk.lock(fd)

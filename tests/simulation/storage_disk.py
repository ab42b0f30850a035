"""A disk in memory that forgets what was not synced, and processes that die inside any operation on it.

What POSIX leaves open is left to chance. Of writes and truncations since a file's last sync any part may survive a
power loss: none, all, those up to some moment, or any subset, each write torn at a byte or at sectors, or only its
length. A name is on the disk for certain only when its directory was synced; names survive in their order, as with a
journal, or each by itself. A killed process leaves everything as it was.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

SECTOR = 512
HEADER = 64


class Crash(BaseException):
    """The process is dead. Everything that it still tries to do raises this and has no effect."""


class Write(NamedTuple):
    """Bytes written at an offset."""

    offset: int
    data: bytes


class Truncation(NamedTuple):
    """The file was cut, or extended, to a length."""

    length: int


class File:
    """A file: what processes see, what is on the disk for certain, and what was done since."""

    __slots__ = ("data", "durable", "lost", "pending", "untold")

    def __init__(self) -> None:
        self.data = bytearray()
        self.durable = bytearray()
        self.pending: list[Write | Truncation] = []
        self.lost = False
        """A sync has failed: processes may see what is not on the disk and never will be."""
        self.untold = False
        """Whether its own next sync has to say so, since only that of the whole file system did."""

    def change(self, change: Write | Truncation) -> None:
        """A change that processes see at once."""
        _apply(self.data, change)
        self.pending.append(change)

    def sync(self) -> None:
        """All of it is on the disk."""
        for change in self.pending:
            _apply(self.durable, change)
        self.pending.clear()

    def settle(self, random: Random) -> None:
        """Let chance decide what of the unsynced changes is on the disk."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        mood = random.randrange(5)
        cut = random.randint(0, len(pending)) if mood == 2 else 0
        rubbish = random.random() < 0.2
        for at, change in enumerate(pending):
            if mood == 0 or (mood == 2 and at > cut):
                continue
            whole = mood == 1 or (mood == 2 and at < cut) or (mood >= 3 and random.random() < 0.5)
            if whole or isinstance(change, Truncation):
                if whole:
                    _apply(self.durable, change)
            elif mood == 2 or random.random() < 0.7:
                self._tear(change, random, rubbish)

    def _tear(self, write: Write, random: Random, rubbish: bool) -> None:
        """Put a part of a write on the disk."""
        offset, data = write
        size = len(data)
        kind = random.randrange(4)
        if kind == 0:
            _apply(self.durable, Write(offset, data[: random.randint(0, size)]))
            return
        if kind == 1:
            start = random.randint(0, size)
            parts = [(start, size)] if start < size else []
        elif kind == 2:
            edges = [0, *range(SECTOR - offset % SECTOR, size, SECTOR), size]
            parts = [part for part in itertools.pairwise(edges) if random.random() < 0.5]
        else:
            parts = []
        # The length may reach the disk before the bytes do.
        before = len(self.durable)
        if before < offset + size:
            gap = offset + size - before
            self.durable.extend(random.randbytes(gap) if rubbish else bytes(gap))
        for start, end in parts:
            _apply(self.durable, Write(offset + start, data[start:end]))


class Directory:
    """A directory: the same for names. ``pending`` holds ``(moment, name, node or None)``."""

    __slots__ = ("durable", "entries", "pending")

    def __init__(self) -> None:
        self.entries: dict[str, Node] = {}
        self.durable: dict[str, Node] = {}
        self.pending: list[tuple[int, str, Node | None]] = []

    def change(self, moment: int, name: str, node: Node | None) -> None:
        """Give a name to a node, or take it away. Both halves of a rename happen at one moment."""
        _set(self.entries, name, node)
        self.pending.append((moment, name, node))

    def sync(self) -> None:
        """All names are on the disk."""
        self.durable = dict(self.entries)
        self.pending.clear()


Node = File | Directory


def _apply(data: bytearray, change: Write | Truncation) -> None:
    if isinstance(change, Truncation):
        if change.length < len(data):
            del data[change.length :]
        else:
            data.extend(bytes(change.length - len(data)))
        return
    offset, written = change
    if not written:
        return
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(written)] = written


def _set(names: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


class Disk:
    """The disk of one machine. ``full``: writes that need room fail, after a part of them, or not."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.root = Directory()
        self.full = False
        self._moments = itertools.count()
        self.descriptors = itertools.count(3)

    def moment(self) -> int:
        """The number of a change of names."""
        return next(self._moments)

    def find(self, path: str | Path, *, durable: bool = False) -> Node:
        """The node at an absolute path, or that which is there for certain after a power loss."""
        node: Node = self.root
        for name in str(path).split("/"):
            if name:
                if not isinstance(node, Directory):
                    raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(path))
                child = (node.durable if durable else node.entries).get(name)
                if child is None:
                    raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
                node = child
        return node

    def directory(self, path: str | Path) -> Directory:
        """The directory at a path."""
        node = self.find(path)
        if not isinstance(node, Directory):
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(path))
        return node

    def lose_power(self) -> None:
        """Only what is on the disk remains, and that is all there is from now on."""
        random = self.random
        journal = random.random() < 0.5
        cut = random.randint(0, self.moment())
        mood = random.randrange(4)
        seen: set[int] = set()

        def survives(moment: int) -> bool:
            if journal:
                return moment < cut
            return mood == 1 or (mood >= 2 and random.random() < 0.5)

        # Both halves of a rename are decided together with a journal (one moment), apart without.
        waiting: list[Node] = [self.root]
        while waiting:
            node = waiting.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, File):
                node.settle(random)
                node.data, node.lost = bytearray(node.durable), False
                continue
            for moment, name, child in node.pending:
                if survives(moment):
                    _set(node.durable, name, child)
            node.pending.clear()
            node.entries = dict(node.durable)
            waiting.extend(node.entries.values())


class Process:
    """A process's access to the disk: an implementation of ``common.shapelog.files.Files``.

    ``hook`` is called with the name of each operation before it happens, for others to act in between; ``crash_in`` is
    the number of operations until the process dies in the middle of one; ``bad_syncs`` that of the next syncs that fail
    and lose what they should have kept.
    """

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.dead = False
        self.crash_in: int | None = None
        self.bad_syncs = 0
        self.bad_truncations = 0
        self.operations = 0
        self.faults = 0
        self.hook: Callable[[str], None] = lambda name: None
        self._open: dict[int, File] = {}

    def kill(self) -> None:
        """End it: its descriptors are gone."""
        self.dead = True
        self._open.clear()

    def _begin(self, name: str) -> bool:
        """Count an operation; whether the process dies in it."""
        if self.dead:
            raise Crash
        self.hook(name)
        if self.dead:
            raise Crash
        self.operations += 1
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in <= 0:
                if self.disk.random.random() < 0.5:
                    self.dead = True
                    raise Crash
                return True
        return False

    def _die(self) -> None:
        self.dead = True
        raise Crash

    def _need_room(self) -> None:
        if self.disk.full and self.disk.random.random() < 0.5:
            self.faults += 1
            raise OSError(errno.ENOSPC, "No space left on device")

    def file(self, fd: int) -> File:
        """The file behind a descriptor."""
        if self.dead:
            raise Crash
        file = self._open.get(fd)
        if file is None:
            raise OSError(errno.EBADF, "Bad file descriptor")
        return file

    def open(self, path: str | Path, flags: int, /) -> int:
        dies = self._begin("open")
        text = str(path)
        parent, _, name = text.rpartition("/")
        directory = self.disk.directory(parent)
        node = directory.entries.get(name)
        if node is None:
            if not flags & os.O_CREAT:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", text)
            self._need_room()
            node = File()
            directory.change(self.disk.moment(), name, node)
        elif flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "File exists", text)
        if not isinstance(node, File):
            raise IsADirectoryError(errno.EISDIR, "Is a directory", text)
        if dies:
            self._die()
        if node.lost and flags != os.O_RDONLY and self.disk.random.random() < 0.5:
            node.data, node.lost = bytearray(node.durable), False
        fd = next(self.disk.descriptors)
        self._open[fd] = node
        return fd

    def close(self, fd: int, /) -> None:
        if not self.dead and self._open.pop(fd, None) is None:
            raise OSError(errno.EBADF, "Bad file descriptor")

    def pread(self, fd: int, length: int, offset: int, /) -> bytes:
        if self._begin("pread"):
            self._die()
        return bytes(self.file(fd).data[offset : offset + length])

    def pwrite(self, fd: int, data: bytes, offset: int, /) -> int:
        dies = self._begin("pwrite")
        file = self.file(fd)
        random = self.disk.random
        # 64 bytes within a page are copied in one go: only a power loss tears them.
        atomic = len(data) <= HEADER and offset % 4096 <= 4096 - len(data)
        taken = len(data)
        if not atomic and (dies or random.random() < 0.1):
            taken = random.randint(0 if dies else 1, len(data))
        if self.disk.full and offset + taken > len(file.data) and random.random() < 0.8:
            taken = 0 if atomic else min(taken, random.randint(0, taken))
            if not taken:
                self.faults += 1
                raise OSError(errno.ENOSPC, "No space left on device")
        if taken:
            file.change(Write(offset, bytes(data[:taken])))
        if dies:
            self._die()
        return taken

    def ftruncate(self, fd: int, length: int, /) -> None:
        dies = self._begin("ftruncate")
        file = self.file(fd)
        if self.bad_truncations:
            self.bad_truncations -= 1
            self.faults += 1
            raise OSError(errno.EIO, "Input/output error")
        file.change(Truncation(length))
        if dies:
            self._die()

    def size(self, fd: int, /) -> int:
        return len(self.file(fd).data)

    def fdatasync(self, fd: int, /) -> None:
        dies = self._begin("fdatasync")
        # Looked up now: what happened while the hook ran is synced, too.
        file = self.file(fd)
        if file.untold:
            file.untold = False
            raise OSError(errno.EIO, "Input/output error")
        if self.bad_syncs:
            self._fail(file)
            if self.disk.random.random() < 0.3:
                # Whoever does not notice at once may not live long enough to do so.
                self.crash_in = self.disk.random.randint(1, 20)
            raise OSError(errno.EIO, "Input/output error")
        file.sync()
        if dies:
            self._die()

    def _fail(self, file: File) -> None:
        """As Linux does: the pages count as clean from now on, and may be dropped and read anew (when opened)."""
        self.bad_syncs -= 1
        self.faults += 1
        file.settle(self.disk.random)
        file.lost = file.data != file.durable

    def sync_file_system(self, path: Path, asker: str, /) -> None:
        dies = self._begin("sync_file_system")
        failed = False
        waiting: list[Node] = [self.disk.root]
        while waiting:
            node = waiting.pop()
            if isinstance(node, Directory):
                node.sync()
                waiting.extend(node.entries.values())
            elif node.pending and self.bad_syncs:
                self._fail(node)
                node.untold = failed = True
            else:
                node.sync()
        if failed:
            raise OSError(errno.EIO, "Input/output error")
        if dies:
            self._die()

    def sync_directory(self, path: Path, /) -> None:
        dies = self._begin("sync_directory")
        self.disk.directory(path).sync()
        if dies:
            self._die()

    def mkdir(self, path: Path, /) -> None:
        dies = self._begin("mkdir")
        parent = self.disk.directory(path.parent)
        if path.name in parent.entries:
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        self._need_room()
        parent.change(self.disk.moment(), path.name, Directory())
        if dies:
            self._die()

    def rename(self, source: Path, target: Path, /) -> None:
        dies = self._begin("rename")
        before, after = self.disk.directory(source.parent), self.disk.directory(target.parent)
        node = before.entries.get(source.name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(source))
        self._need_room()
        moment = self.disk.moment()
        before.change(moment, source.name, None)
        after.change(moment, target.name, node)
        if dies:
            self._die()

    def listdir(self, path: Path, /) -> list[str]:
        if self._begin("listdir"):
            self._die()
        names = list(self.disk.directory(path).entries)
        self.disk.random.shuffle(names)
        return names

    def is_directory(self, path: Path, /) -> bool:
        if self._begin("is_directory"):
            self._die()
        return isinstance(self.disk.find(path), Directory)

    def exists(self, path: str) -> bool:
        """Whether there is anything with this name."""
        try:
            self.disk.find(path)
        except FileNotFoundError:
            return False
        return True

    def remove(self, path: str | Path, /) -> None:
        dies = self._begin("remove")
        parent, _, name = str(path).rpartition("/")
        directory = self.disk.directory(parent)
        if name not in directory.entries:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        directory.change(self.disk.moment(), name, None)
        if dies:
            self._die()

    def rmdir(self, path: Path, /) -> None:
        dies = self._begin("rmdir")
        node = self.disk.directory(path)
        if node.entries:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        self.disk.directory(path.parent).change(self.disk.moment(), path.name, None)
        if dies:
            self._die()

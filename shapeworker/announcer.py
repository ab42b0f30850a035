"""What a worker tells gateways without being asked: tails, endings, what is applied (architecture.md 3).

Hints only: a gateway that misses one looks for itself. Tails go out only for handles that somebody waits on. What a
turn brings goes out together, so that it wakes nobody twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from common.lsn import Offset
from common.messages import APPLIED_TOPIC, Applied, Ended, Tail, encode, handle_topic
from common.sockets import Channel
from shapeworker.shape import Shape


class Announcer:
    """The XPUB socket. ``find`` gives the live shape of a handle, for whoever starts to wait."""

    def __init__(self, socket: Any, find: Callable[[str], Shape | None], holds: Callable[[str], bool]) -> None:
        """``holds`` tells whether a handle's partition is this worker's, so that it may say that the shape is gone."""
        self._channel = Channel(socket, self._subscription)
        self._find = find
        self._holds = holds
        self._watched: set[str] = set()
        self._tails: dict[str, Offset] = {}
        self._applied: Applied | None = None

    def tail(self, shape: Shape, end: Offset) -> None:
        """The log of the shape has a new end; :meth:`tell` tells it."""
        if shape.handle in self._watched:
            self._tails[shape.handle] = end

    def ended(self, shape: Shape, reason: str) -> None:
        """The shape is gone."""
        if shape.handle in self._watched:
            self._channel.send([handle_topic(shape.handle), encode(Ended(reason))])

    def applied(self, generation: int, lsn: int, partitions: Iterable[int]) -> None:
        """All commits up to ``lsn`` are readable in the shapes of these partitions; :meth:`tell` tells it."""
        self._applied = Applied(generation, lsn, tuple(partitions))

    def tell(self) -> None:
        """Send what has gathered: the tails first, since what is applied speaks of them."""
        tails, self._tails = self._tails, {}
        messages = [[handle_topic(handle), encode(Tail(end))] for handle, end in tails.items()]
        if self._applied is not None:
            messages.append([APPLIED_TOPIC, encode(self._applied)])
            self._applied = None
        if messages:
            self._channel.send_all(messages)

    def is_watched(self, handle: str) -> bool:
        """Whether a gateway has clients that wait on this shape, or had a moment ago."""
        return handle in self._watched

    def close(self) -> None:
        """Close the socket."""
        self._channel.close()

    def _subscription(self, parts: list[bytes]) -> None:
        # XPUB_VERBOSE: every subscription is shown, the end of one only when the last subscriber has gone.
        begins, topic = parts[0][:1] == b"\1", parts[0][1:]
        if not topic.startswith(b"h"):
            return
        handle = topic[1:].rstrip(b"\n").decode("ascii", "replace")
        if not begins:
            self._watched.discard(handle)
            return
        self._watched.add(handle)
        shape = self._find(handle)
        if shape is not None:
            self.tail(shape, shape.last)
            self.tell()
        elif self._holds(handle):
            self._channel.send([topic, encode(Ended("there is no shape with this handle"))])

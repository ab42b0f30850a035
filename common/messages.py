"""Every message between Galvanic's processes: its sender, its receiver, its meaning (architecture.md 3).

They are MessagePack of the tagged structs below. What moves rows is the *frame* (:mod:`common.frames`).

Sockets
-------
stream    ROUTER (ingester, bound) / DEALER (worker; routing id ``<worker>:<boot>``): parts ``[kind, body]`` with kind
          :data:`FRAME` or :data:`MESSAGE`
status    PUB (ingester, bound) / SUB: parts ``[STATUS_TOPIC, Status]``
requests  ROUTER (worker, bound) / DEALER (gateway): part ``[body]`` with a request or a reply
events    XPUB (worker, bound) / SUB (gateway): parts ``[topic, body]``; topics :func:`handle_topic` and APPLIED_TOPIC
"""

from __future__ import annotations

from typing import Final

import msgspec

from common.lsn import Offset
from common.obstacles import Obstacle
from common.shape import ShapeRequest
from common.subset import SubsetRequest

FRAME: Final = b"F"
MESSAGE: Final = b"M"
STATUS_TOPIC: Final = b"s"
APPLIED_TOPIC: Final = b"a"

# --------------------------------------------------------------------------------------------------------------------
# stream, worker → ingester


class Hello(msgspec.Struct, tag="hello", frozen=True, kw_only=True):
    """«I am here and hold these partitions, opened under assignment ``version`` (0: none yet).»

    Sent at start, when an assignment has been carried out, and when frames were lost (``lost``: the stream must be
    rewound for this worker), then repeated until ``epoch``, the one they were lost in, is over. ``tables`` are the oids
    whose changes the held shapes need.
    """

    worker: str
    boot: str
    version: int
    held: tuple[int, ...]
    tables: tuple[int, ...]
    requests: str
    events: str
    lost: bool = False
    epoch: int = 0


class Subscribe(msgspec.Struct, tag="subscribe", frozen=True):
    """«Publish this table and send me its changes»: answered in the frames by Subscribed or Refused of the same id."""

    id: int
    table: int
    schema: str
    name: str


class Unsubscribe(msgspec.Struct, tag="unsubscribe", frozen=True):
    """«No shape of mine needs this table any more.»"""

    table: int


class Durable(msgspec.Struct, tag="durable", frozen=True):
    """«All I was fed in this epoch up to ``lsn`` survives a power cut.» Also the heartbeat: at least one a second.

    ``told``: what is in the worker's way at present, if it is the heartbeat (``None``: it says nothing about that).
    """

    epoch: int
    lsn: int
    told: tuple[Obstacle, ...] | None = None


class Credit(msgspec.Struct, tag="credit", frozen=True):
    """«So many bytes of this epoch's frames, in all, are dealt with»: the next one makes up for one that was lost."""

    epoch: int
    total: int


class Blocked(msgspec.Struct, tag="blocked", frozen=True):
    """«I cannot take these partitions yet: so it is with ``reason``.» Repeated while it lasts."""

    partitions: tuple[int, ...]
    reason: str


class Usage(msgspec.Struct, tag="usage", frozen=True):
    """The answer to a Survey: «I hold exactly what assignment ``version`` says, so many shapes.»

    ``idle``: for each of those that may end, the longest unused first, at most ``most``: seconds since its last use.
    """

    round: int
    version: int
    shapes: int
    idle: tuple[float, ...]


class Leave(msgspec.Struct, tag="leave", frozen=True):
    """«I have released all my partitions and am going.»"""


# stream, ingester → worker (kind MESSAGE)


class Assign(msgspec.Struct, tag="assign", frozen=True, kw_only=True):
    """«Hold exactly these partitions», of ``total``. A worker answers with ``Hello(version=…)`` when it does.

    ``acknowledged`` is the LSN below which all is durable in every active shape; ``generation`` the one that shapes
    must belong to: shapes of another generation end. ``system`` is the database cluster's identifier, ``""`` while it
    is not known; ``boot`` that of the ingester.
    """

    version: int
    partitions: tuple[int, ...]
    total: int
    acknowledged: int
    generation: int
    system: str
    boot: str


class Survey(msgspec.Struct, tag="survey", frozen=True):
    """«How many shapes are there, and which of them, at ``most`` so many, could end?» Only with ELECTRIC_MAX_SHAPES."""

    round: int
    most: int


class Evict(msgspec.Struct, tag="evict", frozen=True):
    """«End the first ``count`` of those you named in this round, if they are still unused.» Comes before the next
    Survey. ``total`` shapes there are, ``limit`` there may be."""

    round: int
    count: int
    total: int
    limit: int


FromWorker = Hello | Subscribe | Unsubscribe | Durable | Credit | Blocked | Usage | Leave
ToWorker = Assign | Survey | Evict

# --------------------------------------------------------------------------------------------------------------------
# status: ingester → all, each second and at each change


class WorkerPlace(msgspec.Struct, frozen=True):
    """Where a worker listens."""

    requests: str
    events: str


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What the ingester is doing. ``owners`` holds only partitions whose worker is fed by the present epoch.

    ``state``: ``active`` | ``waiting`` (another instance holds the lock, or no database yet) | ``starting`` |
    ``fatal``; ``reason`` says why, for people, whenever it is not ``active``. ``partitions`` and ``generation`` are 0
    until the lock was held once. ``superseded``: another instance has the lock, so workers let go of their partitions.
    ``delayed``: it is active, but new changes do not reach all clients. ``details`` are lines about what is in the way
    of anything.
    """

    boot: str
    state: str
    reason: str
    epoch: int
    generation: int
    partitions: int
    lsn: int
    owners: dict[int, str]
    workers: dict[str, WorkerPlace]
    superseded: bool = False
    delayed: bool = False
    details: tuple[str, ...] = ()


# --------------------------------------------------------------------------------------------------------------------
# requests: gateway → worker, and their replies


class Ensure(msgspec.Struct, tag="ensure", frozen=True):
    """«Find or create this shape»: answered by Place once its snapshot has started, else by Refusal."""

    id: int
    request: ShapeRequest


class Touched(msgspec.Struct, tag="touched", frozen=True):
    """«Clients have asked for these shapes since I told the last time, so many seconds ago»: not answered."""

    ages: dict[str, float]


class Resolve(msgspec.Struct, tag="resolve", frozen=True):
    """«Where is the shape with this handle?»: Place, or Missing."""

    id: int
    handle: str


class Delete(msgspec.Struct, tag="delete", frozen=True):
    """«End the shape with this handle»: Done, or Missing."""

    id: int
    handle: str


class Examine(msgspec.Struct, tag="examine", frozen=True):
    """«I cannot read the shape with this handle, for this reason»: Done if it has ended for that, Missing if there is
    none, Refusal if nothing is wrong with it."""

    id: int
    handle: str
    reason: str


class Find(msgspec.Struct, tag="find", frozen=True):
    """«Is there a shape for this request? Do not create one»: Place, or Missing, or Refusal."""

    id: int
    request: ShapeRequest


class Explain(msgspec.Struct, tag="explain", frozen=True):
    """«What would become of this request?»: Explanation, or the Refusal that Ensure would get before anything is made.

    Any worker answers, whatever it owns. No shape is made, and the table is not published.
    """

    id: int
    request: ShapeRequest


class Check(msgspec.Struct, tag="check", frozen=True):
    """«Could this subset of this shape be read?» Done, or Refusal. Nothing is created (http-api.md 5).

    Any worker answers, whatever it owns; the request has its clause as sent.
    """

    id: int
    request: ShapeRequest
    subset: SubsetRequest


class Subset(msgspec.Struct, tag="subset", frozen=True):
    """«Read this subset of the shape with this handle»: Rows, Missing, or Refusal.

    The rows show every transaction in the shape's log. The worker keeps what it has until :class:`Drop`.
    """

    id: int
    handle: str
    subset: SubsetRequest


class Drop(msgspec.Struct, tag="drop", frozen=True):
    """«I need no answer, or no longer its file, to my Subset with this id». Has no answer."""

    id: int


class Place(msgspec.Struct, tag="place", frozen=True, kw_only=True):
    """A live shape: ``directory`` is relative to the storage directory, ``schema`` the electric-schema header,
    ``generation`` that of the data in it."""

    id: int
    handle: str
    directory: str
    schema: str
    request: ShapeRequest
    generation: int


class Rows(msgspec.Struct, tag="rows", frozen=True, kw_only=True):
    """A subset, as clients get it: in ``body``, or, if it is large, in a ``file`` of so many bytes (``size``), which is
    relative to the storage directory and may be opened until the answer is dropped."""

    id: int
    size: int
    body: bytes = b""
    file: str = ""


class Refusal(msgspec.Struct, tag="refusal", frozen=True, kw_only=True):
    """The request failed: an HTTP status, the JSON body, and patience in seconds for ``retry-after``.

    ``known`` marks errors that carry ``electric-internal-known-error``. Status 409 means must-refetch without handle.
    ``place`` is that of a shape that was made, but has ended since its snapshot could not be taken.
    """

    id: int
    status: int
    body: bytes
    retry_after: int | None = None
    known: bool = False
    place: Place | None = None


class Explanation(msgspec.Struct, tag="explanation", frozen=True):
    """The JSON body of ``/v1/explain`` (docs/where.md)."""

    id: int
    body: bytes


class Missing(msgspec.Struct, tag="missing", frozen=True):
    """No such shape here."""

    id: int


class NotOwner(msgspec.Struct, tag="not_owner", frozen=True):
    """The partition is not (or not yet) this worker's: ask its owner, or again in a moment."""

    id: int


class Done(msgspec.Struct, tag="done", frozen=True):
    """It is done."""

    id: int


Question = Ensure | Resolve | Delete | Find | Examine | Explain | Check | Subset
Request = Question | Drop
Reply = Place | Rows | Refusal | Missing | NotOwner | Done | Explanation

# --------------------------------------------------------------------------------------------------------------------
# events: worker → gateways (hints; may be lost)


class Tail(msgspec.Struct, tag="tail", frozen=True):
    """The log of the handle now ends at this offset (``0_inf`` when it has no entry).

    Sent on each commit that touches it, and to whoever subscribes to the handle.
    """

    offset: Offset


class Ended(msgspec.Struct, tag="ended", frozen=True):
    """The shape is gone: clients must fetch anew."""

    reason: str


class Applied(msgspec.Struct, tag="applied", frozen=True):
    """All commits up to ``lsn`` are readable in the shapes of these partitions. Published after the Tails.

    LSNs of different generations are not comparable: they may come from different databases.
    """

    generation: int
    lsn: int
    partitions: tuple[int, ...]


HandleEvent = Tail | Ended


def handle_topic(handle: str) -> bytes:
    """The topic of one handle; the final ``\\n`` keeps a handle from being the prefix of another."""
    return b"h" + handle.encode() + b"\n"


# --------------------------------------------------------------------------------------------------------------------

encode = msgspec.msgpack.Encoder().encode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_status = msgspec.msgpack.Decoder(Status).decode
decode_request = msgspec.msgpack.Decoder(Request | Touched).decode
decode_reply = msgspec.msgpack.Decoder(Reply).decode
decode_handle_event = msgspec.msgpack.Decoder(HandleEvent).decode
decode_applied = msgspec.msgpack.Decoder(Applied).decode

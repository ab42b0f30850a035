"""Does the pipeline simulation find what it is for? Breaks the product in one place at a time, in a copy, and looks.

Not here, since nothing changes: the join rule without ``filter_until`` (what a snapshot shows lies below it, and ids
are not given out again once it is flushed); frames of an older epoch (a connection keeps its order, what a former one
held is lost); a keepalive inside a transaction (it speaks of what was sent before); credits of an older epoch (they
bound memory only).

    python -m tests.simulation.pipeline_mutations [--seeds 1000] [--only WORD] [--look]
"""

from __future__ import annotations

import sys
from typing import Final

from tests.simulation.mutation import Mutation, try_all

SHAPE, APPLY, CREATION = "shapeworker/shape.py", "shapeworker/apply.py", "shapeworker/creation.py"
START, SETTLING = "shapeworker/snapshot_start.py", "shapeworker/settling.py"
INFLOW, STREAM, SYNC = "shapeworker/feed.py", "shapeworker/stream.py", "shapeworker/sync.py"
MEMBERSHIP, OWNERSHIP = "shapeworker/membership.py", "shapeworker/ownership.py"
FANOUT, FEED, GROUP = "ingester/fanout.py", "ingester/feed.py", "ingester/group.py"
COORDINATOR, WATERMARK = "ingester/coordinator.py", "ingester/watermark.py"

MUTATIONS: Final = (
    Mutation(
        "the join rule without the snapshot",
        SHAPE,
        "return lsn >= self.filter_until or not self.snapshot.shows(xid)",
        "return lsn >= self.filter_until",
    ),
    Mutation(
        "what is in the log counts again", SHAPE, "if self._unwritten else self.last.tx)", "if self._unwritten else 0)"
    ),
    Mutation(
        "what was held back is logged backwards",
        SHAPE,
        "for lsn, xid, ops, lines, obstacle in held:",
        "for lsn, xid, ops, lines, obstacle in reversed(held):",
    ),
    Mutation(
        "a passing transaction that the snapshot shows is kept",
        SHAPE,
        "            if not self.counts(*self._passing):\n",
        "            if False:\n",
    ),
    Mutation(
        "nothing is unseen",
        "ingester/subscriptions.py",
        "unseen = tuple(dict.fromkeys(xid for xid, _ in ring if not snapshot.shows(xid)))",
        "unseen = ()",
    ),
    Mutation(
        "the snapshot need not show what is unseen",
        START,
        "if all(snapshot.shows(xid) for xid in unseen):",
        "if True:",
    ),
    Mutation(
        "a snapshot does not wait for the flush",
        START,
        'return parse_lsn((flushed or b"0/0").decode()) >= position',
        "return True",
    ),
    Mutation(
        "the acknowledgement is the maximum",
        WATERMARK,
        "        bound = min(self._bounds)\n        if",
        "        bound = max(self._bounds)\n        if",
    ),
    Mutation(
        "an idle stream is acknowledged whatever is durable",
        WATERMARK,
        "            if bound > dispatched_then:\n                bound = max(bound, position)",
        "            bound = max(bound, position)",
    ),
    Mutation(
        "a table is entered inside a transaction",
        FEED,
        "        if self._group.fanout.open:\n            self._at_boundary.append(action)\n",
        "        if False:\n            self._at_boundary.append(action)\n",
    ),
    Mutation(
        "reports of an older epoch count",
        GROUP,
        "if message.epoch == self.fanout.epoch and self.watermark is not None:",
        "if self.watermark is not None:",
    ),
    Mutation(
        "a gap in the frames is passed over",
        STREAM,
        "        if seq > self._expected:\n            self._broken = True\n            return Verdict.LOST\n"
        "        self._expected += 1",
        "        self._expected = seq + 1",
    ),
    Mutation("no empty frames", FANOUT, "            if lane.seq == lane.beaten:\n", "            if False:\n"),
    Mutation(
        "that frames are lost is said once", MEMBERSHIP, "        elif self._feed.lost:\n", "        elif False:\n"
    ),
    Mutation(
        "a change for nobody has no number",
        FANOUT,
        "                        self._cut(lane)\n            self._index += 1",
        "                        self._cut(lane)\n                self._index += 1",
    ),
    Mutation("ids are not widened", FANOUT, "self._xid = self._anchor = widen(xid, self._anchor)", "self._xid = xid"),
    Mutation(
        "a worker is fed what it does not hold yet",
        COORDINATOR,
        "member.fed = member.held & member.assigned",
        "member.fed = member.assigned",
    ),
    Mutation(
        "what is given back stays the worker's",
        COORDINATOR,
        "        member.fed &= share\n        member.held &= share\n",
        "",
    ),
    Mutation(
        "shapes join in the middle of an epoch",
        APPLY,
        "        if shape.partition not in self._fed:\n",
        "        if False:\n",
    ),
    Mutation(
        "another ingester is not noticed",
        MEMBERSHIP,
        '            self._ingester = ""\n            self.version = 0\n            self._feed.forget()\n'
        "            self.hello()",
        "            pass",
    ),
    Mutation(
        "answers that were given up are not asked for again",
        INFLOW,
        "                self._events.started()\n            try:",
        "            try:",
    ),
    Mutation("what has ended may be said to be readable", INFLOW, " - self._unmarked.keys()", ""),
    Mutation(
        "told to be readable before it is",
        INFLOW,
        "self._events.applied(self._generation, self._published, fed)",
        "self._events.applied(self._generation, self._published + 300, fed)",
    ),
    Mutation(
        "a full disk does not end the epoch for the worker",
        INFLOW,
        "        self._shortage = (shortage, time.monotonic())\n        self._intake.forget()\n",
        "        self._shortage = (shortage, time.monotonic())\n",
    ),
    Mutation(
        "durable is what is applied at the end of a batch",
        SYNC,
        "if run == self._run and cut > self.durable:\n",
        "cut = self.applied\n            if run == self._run and cut > self.durable:\n",
    ),
    Mutation("a batch of an older epoch counts", SYNC, "if run == self._run and cut", "if cut"),
    Mutation(
        "a new shape does not count while it settles",
        SETTLING,
        "            item.shape.settling = True\n",
        "            pass\n",
    ),
    Mutation("a new shape is not synced", SETTLING, "    item.log.sync()\n", "    pass\n"),
    Mutation(
        "a shape is fed after it has subscribed",
        CREATION,
        "        self._applier.add(shape)\n        shape.building",
        "        asyncio.get_running_loop().call_later(0.05, self._applier.add, shape)\n        shape.building",
    ),
    Mutation(
        "tombstones hold nothing back", "shapeworker/endings.py", "        self._syncer.wait_for(tombstone)\n", ""
    ),
    Mutation(
        "ends are told before they can be seen",
        "shapeworker/endings.py",
        "        return handle in self._marks\n",
        "        return False\n",
    ),
    Mutation(
        "a new epoch keeps what was half-done",
        APPLY,
        "            shape.abort()\n        self._touched, self._unwritten",
        "            pass\n        self._touched, self._unwritten",
    ),
    Mutation(
        "a partition is given back before its shapes have ended",
        OWNERSHIP,
        "        await self._endings.settled()\n",
        "",
    ),
    Mutation(
        "recovered transactions count as durable",
        "shapeworker/logs.py",
        "        if shape.log.unsynced:\n",
        "        if False:\n",
    ),
    Mutation(
        "told to Postgres before it is recorded",
        "ingester/main.py",
        "                try:\n                    await asyncio.to_thread(self._file.update, acknowledged=",
        "                group.flushed = position\n                try:\n"
        "                    await asyncio.to_thread(self._file.update, acknowledged=",
    ),
    Mutation(
        "waiters are woken by hints alone",
        "gateway/live.py",
        "            if not self._look(watch):\n                return\n        elif",
        "            pass\n        elif",
    ),
    Mutation(
        "more is claimed than is known to be applied",
        "gateway/delivery.py",
        "        seen = self.answers.seen(shape)\n        end =",
        "        seen = self.answers.seen(shape) + 1_000\n        end =",
    ),
    Mutation(
        "a stream of events repeats what all share",
        "gateway/sse.py",
        "            self.wait(batch.end, batch.end)\n",
        "            self.wait(self.at, batch.end)\n",
    ),
    Mutation(
        "a stream of events stops at the end of a chunk",
        "gateway/log.py",
        "return last if last.end_offset <= offset else last._replace(start=reader.after(offset).start)",
        "return reader.after(offset)",
    ),
    Mutation(
        "more shapes end than there are too many",
        "shapeworker/eviction.py",
        "first, self._offered = self._offered[: evict.count], []",
        "first, self._offered = self._offered, []",
    ),
    Mutation(
        "shapes that nobody uses do not end although there are too many",
        "shapeworker/eviction.py",
        "if evict.round != self._round:",
        "if evict.round == self._round:",
    ),
    Mutation(
        "shapes end while clients wait for them",
        "shapeworker/eviction.py",
        "now - shape.used >= QUIET and shape.life is Life.ACTIVE and not self._is_waited_on(shape.handle)",
        "shape.life is Life.ACTIVE",
    ),
    Mutation(
        "two shapes may live for one request",
        "shapeworker/catalog.py",
        "\"WHERE request = ? AND state <> 'ended'\"",
        "\"WHERE request = ? AND state = ''\"",
    ),
)


if __name__ == "__main__":
    sys.exit(try_all(MUTATIONS, ["tests.simulation.pipeline", "--stop", "1"], seeds=1000, about=__doc__))

"""Since when a table is published without a gap, and what puts an end to that: decisions only (engine.md 4.8, 18, 28).

What the stream cannot show is compared between two looks at the catalog: a table that was taken out of the publication,
a partition that came with rows or went with them, another primary key. Each such break has a position: every shape
whose snapshot is older may have missed something and must end, every later one is right. So a break needs no
acknowledgement: whoever holds shapes is told the present position again with each epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

import msgspec

from ingester.membership import LEAF_KIND, Look, Relation

NOT_PUBLISHED = 0
"""Instead of a membership: nothing comes from the table until a shape is asked for again."""


class Standing(msgspec.Struct, frozen=True):
    """What held when the table was last looked at.

    ``membership`` is the catalog row by which it is published and for which the barrier of engine.md 4.8 is behind us.
    Shapes with a snapshot from before ``since`` (LSN) may have missed changes, for this ``reason``. ``tree`` maps the
    tables below it to the transactions that attached them, ``key`` is its primary key. ``links`` are those of the
    membership (``ingester.membership.Look``): while one was undone, changes of the table were not published.
    """

    membership: int
    since: int
    reason: str = ""
    key: tuple[str, ...] = ()
    tree: dict[int, int] = {}
    links: tuple[int, ...] = ()


class Change(NamedTuple):
    """How a table differs from its standing. ``reason`` is why older shapes must end, if they must.

    ``newborn`` are leaves that came in the transaction that made them: they break nothing if that put no rows into
    them, which only a look into them can tell.
    """

    reason: str
    newborn: tuple[Relation, ...] = ()


UNCHANGED: Final = Change("")
"""Older shapes miss nothing."""


def tree_of(found: Look) -> dict[int, int]:
    """The tables below, and by which transactions they got there."""
    return {relation.oid: relation.attached for relation in found.relations if relation.level > 0}


def compare(standing: Standing, found: Look) -> Change:
    """What has become of a table since it was last looked at.

    Its identity, its columns and its name are not looked at here: the stream shows the first two before they matter,
    and workers compare the rest (shapeworker/reconciler.py).
    """
    if not found.relations:
        return Change("its table was dropped")
    if standing.membership not in found.memberships:
        again = " for a while" if found.memberships else ""
        return Change(f"its table was taken out of the publication{again}")
    if standing.links != found.memberships[standing.membership]:
        return Change("its table was detached for a while from the one by which it is published")
    for relation in found.relations:
        if relation.restricted:
            return Change(f"{relation.text} was given a row filter or a column list in the publication")
    if standing.key != found.key:
        return Change("the primary key of its table changed")
    tree = tree_of(found)
    if standing.tree.keys() - tree.keys():
        return Change("a partition was detached or dropped")
    came = [relation for relation in found.relations if standing.tree.get(relation.oid, 0) != relation.attached]
    for relation in came:
        if relation.attached != relation.created or relation.oid in standing.tree:
            return Change(f"the partition {relation.text} was attached")
    return Change("", tuple(relation for relation in came if relation.kind == LEAF_KIND))


def renewed(standing: Standing, found: Look, reason: str, since: int) -> Standing:
    """The standing after a look; with a ``reason``, a new one from the position ``since`` on."""
    if not reason:
        return msgspec.structs.replace(standing, tree=tree_of(found))
    membership = standing.membership if standing.membership in found.memberships else NOT_PUBLISHED
    return made(found, membership, since, reason)


def made(found: Look, membership: int, since: int, reason: str) -> Standing:
    """The standing of a table that was found so; shapes from before ``since`` (LSN) must end for this ``reason``."""
    links = found.memberships.get(membership, ())
    return Standing(membership, since, reason, found.key, tree_of(found), links)


def unused(standings: Mapping[int, Standing], wanted: AbstractSet[int]) -> dict[int, Standing]:
    """The tables that neither a shape needs nor another table that a shape needs, by their standing."""
    relied_on = {standings[table].membership for table in wanted if table in standings}
    return {
        table: standing
        for table, standing in standings.items()
        if table not in wanted and standing.membership not in relied_on
    }

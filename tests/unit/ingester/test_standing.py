"""What the catalog tells of gaps in the stream, and which tables nobody needs: decisions without a database."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ingester.membership import Flags, Look, Relation
from ingester.reconciler import fault
from ingester.standing import NOT_PUBLISHED, Change, Standing, compare, made, renewed, unused

FLAGS = Flags(oid=1, owned=True, operations=True, via_root=False, all_tables=False, generated="s", version=50)


def relation(oid: int, level: int, **changes: Any) -> Relation:
    made = Relation(oid, "public", f"t{oid}", "r", "p", "f", level, None, False, created=100, attached=0)
    return msgspec.structs.replace(made, **changes)


ROOT = relation(10, 0, kind="p")
LEAF = relation(11, 1, attached=100)
LATER = relation(12, 1, created=200, attached=200)
ATTACHED = relation(12, 1, created=200, attached=201)
BRANCH = relation(13, 1, kind="p", created=200, attached=200)
STANDING = Standing(membership=5, since=1000, key=("id",), tree={11: 100})


def found(
    *relations: Relation,
    memberships: tuple[int, ...] = (5,),
    key: tuple[str, ...] = ("id",),
    links: tuple[int, ...] = (),
) -> Look:
    return Look(FLAGS, relations, (), dict.fromkeys(memberships, links), key)


@pytest.mark.parametrize(
    ("look", "words"),
    [
        (found(), "dropped"),
        (found(ROOT, LEAF, memberships=()), "taken out of the publication"),
        (found(ROOT, LEAF, memberships=(6,)), "for a while"),
        (found(msgspec.structs.replace(ROOT, restricted=True), LEAF), "row filter"),
        (found(ROOT, msgspec.structs.replace(LEAF, restricted=True)), "row filter"),
        (found(ROOT, LEAF, key=()), "primary key"),
        (found(ROOT, LEAF, key=("id", "region")), "primary key"),
        (found(ROOT), "detached or dropped"),
        (found(ROOT, LEAF, ATTACHED), "public.t12 was attached"),
        (found(ROOT, msgspec.structs.replace(LEAF, attached=300)), "public.t11 was attached"),
        (found(ROOT, msgspec.structs.replace(LEAF, created=300, attached=300)), "public.t11 was attached"),
        (found(ROOT, LEAF, BRANCH, relation(14, 2, created=150, attached=200)), "public.t14 was attached"),
    ],
)
def test_what_the_stream_did_not_show_ends_older_shapes(look: Look, words: str) -> None:
    change = compare(STANDING, look)
    assert words in change.reason
    after = renewed(STANDING, look, change.reason, 2000)
    assert (after.since, after.reason) == (2000, change.reason)
    assert after.membership == (5 if 5 in look.memberships else NOT_PUBLISHED)
    # Once told, only what still stands in the way is told again.
    again = compare(after, look).reason
    assert bool(again) is (not look.relations or 5 not in look.memberships or "row filter" in words)


@pytest.mark.parametrize(
    ("look", "newborn"),
    [
        (found(ROOT, LEAF), ()),
        (found(ROOT, LEAF, memberships=(4, 5)), ()),
        (found(ROOT, msgspec.structs.replace(LEAF, identity="d", name="other")), ()),
        (found(ROOT, LEAF, LATER), (LATER,)),
        (found(ROOT, LEAF, BRANCH, relation(14, 2, created=210, attached=210)), (14,)),
    ],
)
def test_a_tree_that_grows_by_new_tables_is_looked_into_and_remembered(look: Look, newborn: tuple[Any, ...]) -> None:
    expected = tuple(one if isinstance(one, Relation) else look.relations[-1] for one in newborn)
    assert compare(STANDING, look) == Change("", expected)
    after = renewed(STANDING, look, "", 2000)
    assert (after.since, after.membership) == (1000, 5)
    assert compare(after, look) == Change("")


def test_a_leaf_that_was_detached_for_a_while_from_the_table_it_is_published_by_may_have_missed_changes() -> None:
    before = made(found(LEAF, links=(100,)), 5, 1000, "")
    assert compare(before, found(LEAF, links=(100,))) == Change("")
    again = found(LEAF, links=(300,))
    reason = compare(before, again).reason
    assert "detached for a while" in reason
    after = renewed(before, again, reason, 2000)
    assert (after.since, after.membership) == (2000, 5)
    assert compare(after, again) == Change("")
    # A link below the one that was undone is another one too: which of them was undone does not matter.
    assert compare(made(found(LEAF, links=(100, 100)), 5, 0, ""), found(LEAF, links=(100, 300))).reason


def test_a_table_is_unused_only_if_no_table_in_use_is_published_by_it() -> None:
    standings = {10: Standing(5, 0), 11: Standing(5, 0), 20: Standing(6, 0), 30: Standing(NOT_PUBLISHED, 0)}
    assert unused(standings, {10, 20, 30}).keys() == set()
    assert unused(standings, {11, 20}).keys() == {30}  # the leaf comes by the entry of its root
    assert unused(standings, {20, 99}).keys() == {10, 11, 30}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"owned": False}, ""),
        ({"version": 51, "generated": "n"}, ""),
        ({"version": 51}, "altered"),
        ({"oid": 2, "version": 51}, "created again"),
        ({"operations": False, "version": 51}, "does not publish"),
        ({"via_root": True, "version": 51}, "root"),
    ],
)
def test_a_publication_is_trusted_as_long_as_nobody_alters_it(changes: dict[str, Any], words: str) -> None:
    reason = fault(FLAGS, msgspec.structs.replace(FLAGS, **changes), 50)
    assert words in reason
    assert bool(words) is bool(reason)


def test_the_first_look_compares_with_what_the_session_found() -> None:
    assert fault(None, FLAGS, 50) == ""
    assert "altered" in fault(None, msgspec.structs.replace(FLAGS, version=51), 50)
    assert "dropped" in fault(None, None, 50)

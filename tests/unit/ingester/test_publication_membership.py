"""Verdicts about a table's membership, without a database (engine.md 4)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ingester.membership import (
    Flags,
    Look,
    Member,
    NotPublished,
    Relation,
    Steps,
    Verdict,
    examine,
    lock_tables,
    settled,
)

FLAGS = Flags(oid=1, owned=True, operations=True, via_root=False, all_tables=False, generated="n")


def relation(oid: int, level: int, *, kind: str = "r", identity: str = "f", **changes: Any) -> Relation:
    made = Relation(
        oid=oid,
        schema="public",
        name=f"t{oid}",
        kind=kind,
        persistence="p",
        identity=identity,
        level=level,
        entry=None,
        restricted=False,
    )
    return msgspec.structs.replace(made, **changes)


ROOT = relation(10, 0, kind="p", identity="d")
FULL_LEAF = relation(11, 1)
LEAF = relation(12, 1, identity="d")


def verdict(
    *relations: Relation, flags: Flags | None = FLAGS, memberships: tuple[int, ...] = (), manual: bool = False
) -> Verdict:
    return examine(
        Look(flags, relations, (), dict.fromkeys(memberships, ())), "pub", schema="public", name="t10", manual=manual
    )


def test_only_what_is_missing_is_altered() -> None:
    assert verdict(ROOT, FULL_LEAF, LEAF) == Steps(True, (ROOT, LEAF))
    assert verdict(ROOT, FULL_LEAF, LEAF, memberships=(5,)) == Steps(False, (ROOT, LEAF))
    assert verdict(relation(10, 0)) == Steps(True, ())


def test_a_partitioned_table_stores_no_rows_so_its_own_identity_does_not_matter() -> None:
    assert verdict(ROOT, FULL_LEAF, memberships=(5, 6), manual=True) == Member((5, 6))
    assert verdict(ROOT, memberships=(5,)) == Member((5,))


@pytest.mark.parametrize("not_mine", [{"manual": True}, {"flags": msgspec.structs.replace(FLAGS, owned=False)}])
def test_nothing_is_altered_that_is_not_ours_to_alter(not_mine: dict[str, Any]) -> None:
    missing = verdict(ROOT, FULL_LEAF, LEAF, **not_mine)
    assert isinstance(missing, NotPublished)
    assert missing.remedy == (
        'ALTER PUBLICATION "pub" ADD TABLE ONLY "public"."t10"; ALTER TABLE ONLY "public"."t12" REPLICA IDENTITY FULL;'
    )
    identity = verdict(ROOT, FULL_LEAF, LEAF, memberships=(5,), **not_mine)
    assert isinstance(identity, NotPublished)
    assert identity.remedy == 'ALTER TABLE ONLY "public"."t12" REPLICA IDENTITY FULL;'


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"persistence": "u"}, "its partition public.t12 is unlogged"),
        ({"persistence": "t"}, "its partition public.t12 is temporary"),
        ({"kind": "f"}, "its partition public.t12 is a foreign table"),
    ],
)
def test_one_leaf_that_cannot_be_replicated_spoils_its_root(change: dict[str, Any], words: str) -> None:
    answer = verdict(ROOT, msgspec.structs.replace(LEAF, **change), memberships=(5,))
    assert isinstance(answer, NotPublished)
    assert answer.status == 400
    assert words in answer.reason


def test_locks_go_from_the_top_down_and_take_the_strongest_needed_at_once() -> None:
    statements = lock_tables([ROOT, FULL_LEAF, relation(13, 1), LEAF], [ROOT, LEAF])
    assert [statement.as_string(None) for statement in statements] == [
        'LOCK TABLE ONLY "public"."t10" IN ACCESS EXCLUSIVE MODE',
        'LOCK TABLE ONLY "public"."t11", ONLY "public"."t13" IN SHARE ROW EXCLUSIVE MODE',
        'LOCK TABLE ONLY "public"."t12" IN ACCESS EXCLUSIVE MODE',
    ]


@pytest.mark.parametrize(
    ("memberships", "known"),
    [({12: 5}, 5), ({10: 5}, 5), ({12: 4}, None), ({11: 5}, None), ({}, None), ({12: 4, 10: 6}, 6)],
)
def test_a_barrier_counts_for_one_membership_of_the_table_or_its_ancestors(
    memberships: dict[int, int], known: int | None
) -> None:
    assert settled(memberships, 12, Look(FLAGS, (LEAF,), (10,), {5: (), 6: ()})) == known

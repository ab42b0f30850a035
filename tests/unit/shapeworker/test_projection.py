"""Rows of the stream as log lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.pgoutput import Relation, RelationColumn, Row
from common.table import Column, Table
from shapeworker.projection import Projection, SchemaChanged, table_key, transaction_headers

OID = 16384
INT, BOOL, TEXT, BPCHAR = 23, 16, 25, 1042
FLAG_DOMAIN = 20001  # a domain over bool

HEADERS = transaction_headers(26719432, 914)


def made(
    columns: Sequence[tuple[str, int]], key: Sequence[str] = ("id",), schema: str = "public", name: str = "t"
) -> tuple[Relation, Table]:
    """A relation as the stream describes it and the table as the catalog does, in the same column order."""
    relation = Relation(OID, schema, name, "f", tuple(RelationColumn(n, oid, -1, True) for n, oid in columns))
    table = Table(
        oid=OID,
        schema=schema,
        name=name,
        kind="r",
        persistence="p",
        columns=tuple(
            Column(
                name=n,
                attnum=number,
                type_oid=oid,
                type_name="any",
                type_mod=-1,
                base_oid=BOOL if oid == FLAG_DOMAIN else oid,
                not_null=n in key,
                key_index=key.index(n) if n in key else None,
                generated="",
                dims=0,
            )
            for number, (n, oid) in enumerate(columns, 1)
        ),
    )
    return relation, table


RECIPES = (("id", INT), ("title", TEXT), ("servings", INT), ("vegan", BOOL))
SOUP: Row = [b"7", b"Soup", None, b"t"]


def projection(
    columns: Sequence[tuple[str, int]] = RECIPES,
    key: Sequence[str] = ("id",),
    selected: Sequence[str] = (),
    **rest: Any,
) -> Projection:
    relation, table = made(columns, key, rest.pop("schema", "public"), rest.pop("name", "t"))
    names = selected or [name for name, _ in columns]
    return Projection(relation, table, names, explicit=bool(selected), **rest)


def read(line: bytes) -> dict[str, Any]:
    """The line as clients see it, after checking what the log relies on."""
    assert line.endswith(b"}}")
    assert b"\n" not in line
    item: dict[str, Any] = json.loads(line)
    assert list(item)[:2] == ["key", "value"]
    assert list(item)[-1] == "headers"
    assert list(item["value"]) == sorted(item["value"])
    marked = json.loads(line[:-2] + b',"last":true}}')
    assert marked["headers"].pop("last") is True
    assert marked == item
    return item


def headers(operation: str, op: int, **more: str) -> dict[str, Any]:
    common = {"relation": ["public", "t"], "lsn": "26719432", "txids": [914], "op_position": op}
    return {"operation": operation, **common, **more}


def test_insert_has_all_columns() -> None:
    assert read(projection().insert(SOUP, HEADERS, 0)) == {
        "key": '"public"."t"/"7"',
        "value": {"id": "7", "servings": None, "title": "Soup", "vegan": "true"},
        "headers": headers("insert", 0),
    }


def test_update_has_key_and_changed_columns() -> None:
    (line,) = projection().update(SOUP, [b"7", b"Stew", None, b"t"], HEADERS, 4)
    assert read(line) == {
        "key": '"public"."t"/"7"',
        "value": {"id": "7", "title": "Stew"},
        "headers": headers("update", 4),
    }


def test_update_to_and_from_null_and_empty_are_changes() -> None:
    empty: Row = [b"7", b"", b"1", None]
    (line,) = projection().update(SOUP, empty, HEADERS, 0)
    assert read(line)["value"] == {"id": "7", "servings": "1", "title": "", "vegan": None}
    (line,) = projection().update(empty, [b"7", None, b"1", b"f"], HEADERS, 0)
    assert read(line)["value"] == {"id": "7", "title": None, "vegan": "false"}


def test_update_in_full_mode_has_everything_and_what_was() -> None:
    (line,) = projection(replica="full").update(SOUP, [b"7", b"Stew", None, b"f"], HEADERS, 0)
    assert read(line) == {
        "key": '"public"."t"/"7"',
        "value": {"id": "7", "servings": None, "title": "Stew", "vegan": "false"},
        "old_value": {"title": "Soup", "vegan": "true"},
        "headers": headers("update", 0),
    }


def test_update_that_changes_nothing_selected_has_no_line() -> None:
    assert projection().update(SOUP, list(SOUP), HEADERS, 0) == ()
    assert projection(selected=("id", "title")).update(SOUP, [b"7", b"Soup", b"9", b"f"], HEADERS, 0) == ()


@pytest.mark.parametrize(
    ("replica", "value"),
    [("default", {"id": "7"}), ("full", {"id": "7", "servings": None, "title": "Soup", "vegan": "true"})],
)
def test_delete(replica: str, value: dict[str, Any]) -> None:
    line = projection(replica=replica).delete(SOUP, HEADERS, 2)
    assert read(line) == {"key": '"public"."t"/"7"', "value": value, "headers": headers("delete", 2)}


def test_key_change_is_a_delete_and_an_insert_that_name_each_other() -> None:
    gone, new = projection().update(SOUP, [b"8", b"Soup", None, b"t"], HEADERS, 2)
    old_key, new_key = '"public"."t"/"7"', '"public"."t"/"8"'
    assert read(gone) == {
        "key": old_key,
        "value": {"id": "7"},
        "headers": headers("delete", 2, key_change_to=new_key),
    }
    assert read(new) == {
        "key": new_key,
        "value": {"id": "8", "servings": None, "title": "Soup", "vegan": "true"},
        "headers": headers("insert", 3, key_change_from=old_key),
    }
    full = projection(replica="full").update(SOUP, [b"8", b"Soup", None, b"t"], HEADERS, 2)
    assert read(full[0])["value"] == {"id": "7", "servings": None, "title": "Soup", "vegan": "true"}


def test_without_primary_key_all_columns_are_the_key() -> None:
    keyless = projection((("a", INT), ("b", TEXT)), key=())
    assert read(keyless.insert([b"2", None], HEADERS, 0))["key"] == '"public"."t"/"2"/_'
    assert read(keyless.delete([b"2", None], HEADERS, 0))["value"] == {"a": "2", "b": None}
    gone, new = keyless.update([b"2", None], [b"2", b""], HEADERS, 0)
    assert read(gone)["headers"]["key_change_to"] == '"public"."t"/"2"/""'
    assert read(gone)["value"] == {"a": "2", "b": None}
    assert read(new)["headers"]["key_change_from"] == '"public"."t"/"2"/_'
    single = projection((("a", INT),), key=())
    assert read(single.insert([None], HEADERS, 0))["key"] == '"public"."t"/_'


def test_only_selected_columns_are_shown() -> None:
    narrow = projection(selected=("title", "id"))
    assert read(narrow.insert(SOUP, HEADERS, 0))["value"] == {"id": "7", "title": "Soup"}
    gone, new = narrow.update(SOUP, [b"8", b"Soup", None, b"t"], HEADERS, 0)
    assert read(new)["value"] == {"id": "8", "title": "Soup"}
    assert read(gone)["value"] == {"id": "7"}
    only_key = projection(selected=("id",))
    assert read(only_key.insert(SOUP, HEADERS, 0))["value"] == {"id": "7"}


@pytest.mark.parametrize("oid", [BOOL, FLAG_DOMAIN])
def test_booleans_are_words_in_values_and_keys(oid: int) -> None:
    both = projection((("id", oid), ("b", oid)), replica="full")
    assert read(both.insert([b"f", b"t"], HEADERS, 0)) | {"headers": None} == {
        "key": '"public"."t"/"false"',
        "value": {"b": "true", "id": "false"},
        "headers": None,
    }
    (line,) = both.update([b"f", b"t"], [b"f", None], HEADERS, 0)
    assert (read(line)["value"], read(line)["old_value"]) == ({"b": None, "id": "false"}, {"b": "true"})
    gone, new = both.update([b"f", b"t"], [b"t", b"t"], HEADERS, 0)
    assert read(gone)["headers"]["key_change_to"] == read(new)["key"] == '"public"."t"/"true"'


def test_rows_are_left_as_they_were() -> None:
    old, new = list(SOUP), [b"8", b"Soup", None, b"f"]
    projection(replica="full").update(old, new, HEADERS, 0)
    assert (old, new) == (SOUP, [b"8", b"Soup", None, b"f"])


def test_text_that_only_looks_like_a_boolean_stays() -> None:
    item = read(projection((("id", INT), ("a", TEXT), ("b", BPCHAR))).insert([b"1", b"t", b"f  "], HEADERS, 0))
    assert item["value"] == {"a": "t", "b": "f  ", "id": "1"}


@pytest.mark.parametrize(
    ("schema", "name", "expected"),
    [
        ("public", "recipes", '"public"."recipes"'),
        ("public", "My Things", '"public"."My Things"'),
        ("a.b", "c/d", '"a..b"."c//d"'),
        ('q"', "x\\", '"q""."x\\"'),
    ],
)
def test_table_key(schema: str, name: str, expected: str) -> None:
    assert table_key(schema, name) == expected
    item = read(projection((("id", INT),), schema=schema, name=name).insert([b"1"], HEADERS, 0))
    assert item["key"] == expected + '/"1"'
    assert item["headers"]["relation"] == [schema, name]


def test_composite_keys_follow_the_key_order() -> None:
    shelf = projection((("slot", INT), ("room", TEXT)), key=("room", "slot"))
    assert read(shelf.insert([b"2", b"a/b"], HEADERS, 0))["key"] == '"public"."t"/"a//b"/"2"'
    assert read(shelf.insert([b"2", b""], HEADERS, 0))["key"] == '"public"."t"/""/"2"'
    assert read(shelf.insert([b"2", b'k "2"'], HEADERS, 0))["key"] == '"public"."t"/"k "2""/"2"'
    assert read(shelf.delete([b"2", b"a"], HEADERS, 0))["value"] == {"room": "a", "slot": "2"}


def test_transaction_headers_have_the_32_bit_xid() -> None:
    shared = transaction_headers((1 << 64) - 1, (5 << 32) + 914)
    item = read(projection().insert(SOUP, shared, 6))
    assert (item["headers"]["lsn"], item["headers"]["txids"]) == (str((1 << 64) - 1), [914])


def test_leaves_of_a_partitioned_table_speak_as_the_root() -> None:
    _, root = made(RECIPES)
    leaf = Relation(
        OID + 5,
        "other",
        "leaf",
        "f",
        tuple(RelationColumn(n, oid, -1, True) for n, oid in reversed(RECIPES)),
    )
    root = Table(root.oid, root.schema, root.name, "p", "p", root.columns)
    line = Projection(leaf, root, ["id", "title", "servings", "vegan"], explicit=False).insert(SOUP[::-1], HEADERS, 0)
    assert line == projection().insert(SOUP, HEADERS, 0)


def changed(columns: Sequence[tuple[str, int]], selected: Sequence[str] = (), **rest: Any) -> str:
    relation = Relation(
        rest.pop("oid", OID),
        "public",
        rest.pop("name", "t"),
        "f",
        tuple(RelationColumn(n, oid, -1, True) for n, oid in columns),
    )
    _, table = made(RECIPES)
    names = selected or [name for name, _ in RECIPES]
    with pytest.raises(SchemaChanged) as raised:
        Projection(relation, table, names, explicit=bool(selected), **rest)
    return str(raised.value)


def test_a_relation_that_does_not_fit_is_refused() -> None:
    assert "renamed" in changed(RECIPES, name="u")
    assert "replaced" in changed(RECIPES, oid=OID + 1)
    assert "'vegan' is gone" in changed(RECIPES[:3])
    assert "'title' has another type" in changed((("id", INT), ("title", INT), *RECIPES[2:]))
    assert "added" in changed((*RECIPES, ("more", TEXT)))
    assert "'title' is gone" in changed(RECIPES[:1], ("id", "title"))


def test_what_an_explicit_shape_does_not_need_may_change() -> None:
    relation, _ = made((("more", TEXT), ("title", TEXT), ("id", INT), ("vegan", INT)))
    _, table = made(RECIPES)
    item = read(
        Projection(relation, table, ("id", "title"), explicit=True).insert([b"x", b"a", b"1", b"2"], HEADERS, 0)
    )
    assert item["value"] == {"id": "1", "title": "a"}


def test_a_selection_without_the_key_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="selected"):
        projection(selected=("title",))


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises((ValueError, TypeError)):
        projection().insert([b"1", b"\xff", None, b"t"], HEADERS, 0)
    with pytest.raises((ValueError, TypeError)):
        projection((("id", TEXT),)).delete([b"\xff"], HEADERS, 0)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@given(st.lists(texts | st.none(), min_size=3, max_size=3), texts, names, names, names)
def test_any_text_comes_back(values: list[str | None], key: str, schema: str, name: str, column: str) -> None:
    columns = (("id.", TEXT), ("c" + column, TEXT), ("c" + column + "1", BPCHAR), ("c" + column + "2", TEXT))
    row: Row = [key.encode(), *(None if value is None else value.encode() for value in values)]
    item = read(projection(columns, key=("id.",), schema=schema, name=name).insert(row, HEADERS, 0))
    by_column = dict(zip((n for n, _ in columns), [key, *values], strict=True))
    assert item["value"] == by_column
    assert item["key"] == f'{table_key(schema, name)}/"{key.replace("/", "//")}"'
    assert item["headers"]["relation"] == [schema, name]


rows = st.lists(st.sampled_from([None, b"", b"t", b"f"]), min_size=4, max_size=4)


@given(rows, rows, st.sampled_from(["default", "full"]), st.booleans())
def test_a_client_that_follows_has_the_new_row(old: Row, new: Row, replica: str, keyless: bool) -> None:
    """What the lines of an update do to a map of rows, as a client keeps one, is what the update did to the row."""
    columns = (("id", TEXT), ("a", TEXT), ("b", BPCHAR), ("c", TEXT))
    if not keyless:
        old[0], new[0] = old[0] or b"", new[0] or b""
    shown = projection(columns, key=() if keyless else ("id",), replica=replica)
    first = read(shown.insert(old, HEADERS, 0))
    held = {first["key"]: dict(first["value"])}
    for position, line in enumerate(shown.update(old, new, HEADERS, 2)):
        item = read(line)
        assert item["headers"]["op_position"] == 2 + position
        match item["headers"]["operation"]:
            case "insert":
                assert item["key"] not in held
                held[item["key"]] = item["value"]
            case "update":
                held[item["key"]] |= item["value"]
                before = {name: value for name, value in first["value"].items() if held[item["key"]][name] != value}
                assert item.get("old_value") == (before if replica == "full" else None)
            case "delete":
                del held[item["key"]]
    final = read(shown.insert(new, HEADERS, 4))
    assert held == {final["key"]: final["value"]}

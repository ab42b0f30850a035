"""Identifiers: http-api.md 7."""

from __future__ import annotations

import pytest

from gateway.identifier import IdentifierError, parse_columns, parse_identifier, parse_relation


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Recipes", "recipes"),
        ('"Recipes"', "Recipes"),
        ('"a""b"', 'a"b'),
        ('"a.b, c"', "a.b, c"),
        ("Δtbl", "Δtbl"),
        ("ÄB", "Äb"),
        ("_x$9", "_x$9"),
        ("e\u0301", "e\u0301"),
        ("a" * 63, "a" * 63),
        ('"' + "ü" * 63 + '"', "ü" * 63),
    ],
)
def test_an_identifier_is_unquoted_or_folded(text: str, name: str) -> None:
    assert parse_identifier(text) == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Invalid zero-length delimited identifier"),
        ('""', "Invalid zero-length delimited identifier"),
        ("my-table", "Invalid unquoted identifier contains special characters: my-table"),
        (" a", "Invalid unquoted identifier contains special characters:  a"),
        ("9a", "Invalid unquoted identifier contains special characters: 9a"),
        ("$a", "Invalid unquoted identifier contains special characters: $a"),
        ('"', 'Invalid unquoted identifier contains special characters: "'),
        ('"a"b"', 'Invalid identifier with unescaped quote: a"b'),
        ('"a"""b"', 'Invalid identifier with unescaped quote: a"""b'),
        ("a" * 64, "Identifier is too long (max length is 63)"),
        ('"' + "a" * 64 + '"', "Identifier is too long (max length is 63)"),
        ('"a\0"', "Invalid identifier contains a null character"),
    ],
)
def test_what_is_no_identifier_is_told(text: str, message: str) -> None:
    with pytest.raises(IdentifierError) as caught:
        parse_identifier(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "relation"),
    [
        ("recipes", ("public", "recipes")),
        ("Kitchen.RECIPES", ("kitchen", "recipes")),
        ('"Kitchen"."Recipes"', ("Kitchen", "Recipes")),
        ('"a.b"', ("public", "a.b")),
        ('"a"".b".c', ('a".b', "c")),
        ('electric_test."issues for 1_0_0.1"', ("electric_test", "issues for 1_0_0.1")),
    ],
)
def test_a_relation_is_in_public_unless_it_says_otherwise(text: str, relation: tuple[str, str]) -> None:
    assert parse_relation(text) == relation


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (".x", "Invalid zero-length delimited identifier"),
        ("a.", "Invalid zero-length delimited identifier"),
        ("a.b.c", "Invalid relation identifier, too many delimiters: a.b.c"),
    ],
)
def test_what_is_no_relation_is_told(text: str, message: str) -> None:
    with pytest.raises(IdentifierError) as caught:
        parse_relation(text)
    assert str(caught.value) == message


def test_columns_are_cut_at_commas_outside_quotes() -> None:
    assert parse_columns('id,"has,comma","has""quote",Title') == ["id", "has,comma", 'has"quote', "title"]
    for text, message in (
        ("id, title", "Invalid unquoted identifier contains special characters:  title"),
        ("id,", "Invalid zero-length delimited identifier"),
        ('id,"open', 'Invalid unquoted identifier contains special characters: id,"open'),
        ('"a,b",c"', 'Invalid unquoted identifier contains special characters: "a'),
    ):
        with pytest.raises(IdentifierError) as caught:
            parse_columns(text)
        assert str(caught.value) == message

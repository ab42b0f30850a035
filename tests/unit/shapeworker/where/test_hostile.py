"""Clauses made to hurt: each is answered, by a filter or by a clean refusal, and none by anything else."""

from __future__ import annotations

import sys
import threading

import pytest

from shapeworker.where import EvaluationError, Filter, InvalidWhere, compile_where
from shapeworker.where.compile import predicate_program
from shapeworker.where.parser import MAX_BYTES
from tests.unit.shapeworker.where.oracle import BY_NAME, COLUMNS


def row(**values: bytes) -> list[bytes | None]:
    """A row with these values, NULL elsewhere."""
    cells: list[bytes | None] = [None] * len(COLUMNS)
    for name, value in values.items():
        cells[BY_NAME[name].position] = value
    return cells


def answered(text: str, params: dict[str, str] | None = None) -> Filter | str:
    """A filter that has been through all its stages, or the refusal."""
    try:
        filter_ = compile_where(text, params or {}, COLUMNS)
        assert filter_.canonical
        assert filter_.sql.as_bytes(None)
    except InvalidWhere as error:
        return error.message
    try:
        filter_.predicate(row(i4=b"1", t=b"a" * 1000, b=b"t", n=b"1", d=b"2024-01-01", ai=b"{1}", js=b"{}"))
        filter_.predicate(row())
    except EvaluationError:
        pass
    return filter_


def nested(before: str, inner: str, after: str, depth: int) -> str:
    return before * depth + inner + after * depth


SHAPES = {
    "parentheses": ("(", "b", ")"),
    "not": ("NOT ", "b", ""),
    "minus": ("- ", "i4", " = 1"),
    "or to the right": ("b OR (", "b", ")"),
    "and or": ("b AND (c OR (", "b", "))"),
    "equal": ("(", "b", " = true)"),
    "is true": ("(", "b", " IS TRUE)"),
    "is null": ("(", "i4", " IS NULL)"),
    "distinct": ("(", "b", " IS DISTINCT FROM c)"),
    "between": ("(", "b", " BETWEEN b AND c)"),
    "symmetric": ("(", "b", " BETWEEN SYMMETRIC b AND c)"),
    "in": ("(", "b", " IN (true, c))"),
    "any": ("(", "b", " = ANY (ab))"),
    "case": ("CASE WHEN ", "b", " THEN b ELSE c END"),
    "case operand": ("CASE ", "b", " WHEN b THEN c ELSE b END"),
    "coalesce": ("COALESCE(", "b", ", c)"),
    "greatest": ("GREATEST(", "b", ", c)"),
    "nullif": ("NULLIF(", "b", ", c)"),
    "cast": ("", "b", "::bool"),
    "casts": ("", "t", "::varchar::text"),
    "function": ("upper(", "t", ") = 'A'"),
    "array": ("ARRAY[", "1", "]"),
    "subscript": ("", "ai", "[1]"),
    "subscripts inside": ("ai[", "1", "]"),
    "subquery": ("i4 IN (SELECT i4 FROM t WHERE ", "b", ")"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_depth(shape: str) -> None:
    before, inner, after = SHAPES[shape]
    for depth in (20, 60, 400, 2000):
        answered(nested(before, inner, after, depth))
    answered(nested(before, inner, after, MAX_BYTES // len(before + after) - 1))


@pytest.mark.parametrize("operator", ["AND", "OR"])
def test_ten_thousand_terms(operator: str) -> None:
    result = answered(f" {operator} ".join(f"i4={number % 1000}" for number in range(2_000)))
    assert isinstance(result, Filter)
    assert result.predicate(row(i4=b"999")) is (operator == "OR")
    answered(f" {operator} ".join("b" for _ in range(10_000)))


@pytest.mark.parametrize("term", ["+1", "||'a'", "-i4", "*n", " AND b", "::int4", "[1]"])
def test_chains(term: str) -> None:
    for start in ("i4", "t", "b", "ai"):
        for count in (60, 10_000):
            answered((start + term * count)[:MAX_BYTES] + " = 1")


def test_long_lists_work() -> None:
    numbers = ",".join(str(number * 3) for number in range(10_000))
    for text in (f"i4 IN ({numbers})", f"i4 = ANY ('{{{numbers}}}')", f"i4 = ANY (ARRAY[{numbers}])"):
        filter_ = answered(text)
        assert isinstance(filter_, Filter), filter_
        assert filter_.predicate(row(i4=b"2997")) is True
        assert filter_.predicate(row(i4=b"2998")) is False
    words = ",".join(f"'w{number}'" for number in range(6_000))
    filter_ = answered(f"t NOT IN ({words})")
    assert isinstance(filter_, Filter)
    assert filter_.predicate(row(t=b"w77")) is False
    assert filter_.predicate(row(t=b"x")) is True


@pytest.mark.parametrize(
    "text",
    [
        "n = " + "9" * 65_000,
        "n = 1e999999999",
        "n = 0." + "0" * 60_000 + "1",
        "f8 = 1e400",
        "t = '" + "x" * 65_000 + "'",
        "n::text = '" + "9" * 60_000 + "'::numeric::text",
        "n < 10::numeric ^ 100000",
        "n = round(1.5, 2147483647)",
        "t = repeat('x', 1000000000)",
        "t LIKE '" + "%a" * 30_000 + "'",
        "t LIKE '" + "_%" * 30_000 + "'",
        "t ~ '" + "(a*)*" * 5 + "$'",
        "t ~ '" + "a?" * 400 + "a{200}'",
        "t ~ '(((((a{200}){200}){200}){200}){200})'",
        "t ~ '" + "(" * 40_000 + "'",
        "js @> '" + "[" * 30_000 + "]" * 30_000 + "'",
        "js @> '{" + ",".join(f'"k{n}": {n}' for n in range(4000)) + "}'",
        "ai = '" + "{" * 1000 + "1" + "}" * 1000 + "'",
        "iv > '" + "1 " * 30_000 + "'",
        "d > '" + "2024-" * 10_000 + "'",
        "t = replace(replace(replace('aaaaaaaaaa', 'a', 'aaaaaaaaaa'), 'a', 'aaaaaaaaaaaaaaaaaaaa'), 'a', 'aaaaaaaa')",
        "concat(" + ",".join(["t"] * 2_000) + ") = 'a'",
        "COALESCE(" + ",".join(["t"] * 2_000) + ") = 'a'",
        "GREATEST(" + ",".join(["i4"] * 2_000) + ") = 1",
        "CASE " + "WHEN b THEN 1 " * 1_500 + "END = 1",
        "ARRAY[" + ",".join(["i4"] * 2_000) + "] = ai",
        " OR ".join(["lower(t) = upper(s)"] * 3_000),
        "t = 'a\0b'",
        "t = '\ud800'",
        "\0",
        "",
        ";",
        "x" * 70_000,
    ],
    ids=lambda text: text[:25].encode("ascii", "backslashreplace").decode().replace("\0", "0"),
)
def test_huge_and_strange(text: str) -> None:
    answered(text)


@pytest.mark.parametrize(
    "text",
    [
        "COALESCE(" + ",".join(["t"] * 29_900) + ") = 'a'",
        "i4 IN (" + ",".join(["j4"] * 20_000) + ")",
        "(" + " AND ".join(["(b OR c)"] * 5_000) + ") = c",
    ],
    ids=["coalesce", "in", "and"],
)
def test_code_that_would_take_hundreds_of_megabytes_to_compile_is_not_compiled(text: str) -> None:
    assert len(text) < MAX_BYTES
    assert "too many terms" in str(answered(text))


def test_shared_operands_do_not_explode() -> None:
    text = "i4"
    for _ in range(25):
        text = f"(CASE WHEN {text} BETWEEN SYMMETRIC 1 AND 5 THEN 1 ELSE 2 END)"
    assert "too complex" in str(answered(f"{text} = 1"))


def test_matching_takes_time_in_proportion() -> None:
    """Patterns that take a backtracking engine for ever."""
    text = b"a" * 5_000
    for clause in (
        "t LIKE '%a%a%a%a%a%a%a%a%a%a%a%a%b'",
        "t LIKE '" + "%a_" * 40 + "b'",
        "t ~ '^(a+)+$b'",
        "t ~ '^(a|aa)+$x'",
        "t ~* '(a*)*(a*)*(a*)*b'",
    ):
        filter_ = answered(clause)
        if isinstance(filter_, Filter):
            assert filter_.predicate(row(t=text)) is False


def test_on_a_thread_with_a_small_stack() -> None:
    """The longest and deepest clause must not end the process, whatever thread it comes to."""
    results: list[object] = []
    usual = threading.stack_size(512 << 10)
    try:
        thread = threading.Thread(target=lambda: results.append(answered(("- " * 40_000)[: MAX_BYTES - 20] + "i4 = 1")))
        thread.start()
    finally:
        threading.stack_size(usual)
    thread.join()
    assert isinstance(results[0], str)


def test_within_half_of_pythons_recursion() -> None:
    """A clause as deep as is let in works when half of Python's stack is in use."""

    def deep(frames: int) -> Filter | str:
        return deep(frames - 1) if frames else answered("upper(" * 60 + "t" + ")" * 60 + " = 'A'")

    assert isinstance(deep(sys.getrecursionlimit() // 4), Filter | str)


def test_no_client_text_in_generated_code() -> None:
    text = "\"t\" = 'a; import os' OR t LIKE '%__import__%' OR i4 IN (1, 2) OR js->>'os' = 'x'"
    source = predicate_program(compile_where(text, {}, COLUMNS).tree).source
    assert "import" not in source
    assert "os" not in source.replace("row", "")

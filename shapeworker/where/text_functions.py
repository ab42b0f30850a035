"""Functions of texts, and their patterns."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from shapeworker.where import numbers, regex, texts
from shapeworker.where.casts import find
from shapeworker.where.errors import EvaluationError
from shapeworker.where.registry import Body, func, function_sql, op, operator_sql, same
from shapeworker.where.types import (
    BOOL,
    BPCHAR,
    BYTEA,
    INT4,
    NAME,
    TEXT,
    Type,
)


def _matching(prepare: Callable[[str], texts.Matcher], negated: bool = False) -> Body:
    if negated:
        return lambda text, pattern: not prepare(pattern)(text)
    return lambda text, pattern: prepare(pattern)(text)


def _negating(prepare: Callable[[str], texts.Matcher]) -> Callable[[str], texts.Matcher]:
    def negated(pattern: str) -> texts.Matcher:
        matcher = prepare(pattern)
        return lambda text: not matcher(text)

    return negated


def _substring(text: str, start: int, length: int | None = None) -> str:
    if length is not None and length < 0:
        raise EvaluationError("negative substring length not allowed")
    end = None if length is None else max(start - 1 + length, 0)
    return text[max(start - 1, 0) : end]


def _right(text: str, count: int) -> str:
    if count >= 0:
        return text[max(len(text) - count, 0) :]
    # Postgres cannot negate the last one, and cuts nothing then.
    return text if count == -numbers.INT4 else text[-count:]


def _trimmed(side: Callable[[str, str], str]) -> Body:
    # Python strips all blanks for no characters; Postgres strips nothing.
    return lambda text, characters=" ": side(text, characters) if characters else text


def _split_part(text: str, separator: str, number: int) -> str:
    if number == 0:
        raise EvaluationError("field position must not be zero")
    if not text:
        return ""
    parts = text.split(separator) if separator else [text]
    place = number - 1 if number > 0 else number
    return parts[place] if -len(parts) <= place < len(parts) else ""


def _replaced(text: str, old: str, new: str) -> str:
    if not old:
        return text
    if text.count(old) * len(new) > 1_000_000:
        raise EvaluationError("the result of replace() is larger than what is calculated here")
    return text.replace(old, new)


def _concatenated(*types: Type) -> Body:
    outputs = [type_.printed for type_ in types]
    return lambda *values: "".join(
        output(value) for output, value in zip(outputs, values, strict=True) if value is not None
    )


def _text_functions() -> None:
    for subject in (TEXT, BPCHAR, NAME):
        for name, prepare in (
            *(("~~", texts.like_matcher), ("~~*", texts.ilike_matcher)),
            *(("~", regex.matcher), ("~*", regex.caseless_matcher)),
        ):
            more = {"needs_constant": "~~" not in name}
            op(name, (subject, TEXT), BOOL, _matching(prepare), prepare=prepare, **more)
            op("!" + name, (subject, TEXT), BOOL, _matching(prepare, True), prepare=_negating(prepare), **more)
    like: dict[str, Any] = {"prepare": texts.like_matcher, "role": "~~", "sql": operator_sql("~~")}
    ilike: dict[str, Any] = {"prepare": texts.ilike_matcher, "role": "~~*", "sql": operator_sql("~~*")}
    func("like", (TEXT, TEXT), BOOL, _matching(texts.like_matcher), **like)
    func("ilike", (TEXT, TEXT), BOOL, _matching(texts.ilike_matcher), **ilike)
    func("like_escape", (TEXT, TEXT), TEXT, texts.like_escape)
    func("starts_with", (TEXT, TEXT), BOOL, str.startswith, role="^@")
    op("^@", (TEXT, TEXT), BOOL, str.startswith)
    op("||", (TEXT, TEXT), TEXT, operator.add)
    op("||", (BYTEA, BYTEA), BYTEA, operator.add)
    op("||", (TEXT, "anynonarray"), TEXT, None, make=_text_first, sql=_concatenation_sql("{} || {}::text"))
    op("||", ("anynonarray", TEXT), TEXT, None, make=_text_last, sql=_concatenation_sql("{}::text || {}"))
    func("concat", ("any",), TEXT, None, make=_concatenated, strict=False, variadic=True)
    func("lower", (TEXT,), TEXT, texts.lower, role="lower")
    func("upper", (TEXT,), TEXT, texts.upper, role="upper")
    for name in ("length", "char_length", "character_length"):
        func(name, (TEXT,), INT4, len)
        func(name, (BPCHAR,), INT4, lambda text: len(texts.stripped(text)))
    func("length", (BYTEA,), INT4, len)
    for type_ in (TEXT, BPCHAR):
        func("octet_length", (type_,), INT4, lambda text: len(text.encode()))
    func("octet_length", (BYTEA,), INT4, len)
    for name in ("substr", "substring"):
        func(name, (TEXT, INT4), TEXT, _substring)
        func(name, (TEXT, INT4, INT4), TEXT, _substring)
    func("left", (TEXT, INT4), TEXT, lambda text, count: text[:count])
    func("right", (TEXT, INT4), TEXT, _right)
    for name, side in (("btrim", str.strip), ("ltrim", str.lstrip), ("rtrim", str.rstrip)):
        func(name, (TEXT,), TEXT, _trimmed(side))
        func(name, (TEXT, TEXT), TEXT, _trimmed(side))
    for name in ("strpos", "position"):
        func(name, (TEXT, TEXT), INT4, lambda text, part: text.find(part) + 1, sql=function_sql("strpos"))
    func("replace", (TEXT, TEXT, TEXT), TEXT, _replaced)
    func("split_part", (TEXT, TEXT, INT4), TEXT, _split_part)
    func("reverse", (TEXT,), TEXT, lambda text: text[::-1])


def _concatenation_sql(template: str) -> Callable[..., str]:
    return lambda left, right: "(" + template.format(left, right) + ")"


def _to_text(type_: Type) -> Body:
    cast = find(type_, TEXT)
    if type_ is TEXT or (cast is not None and cast.body is None):
        return same
    if cast is None or cast.body is None:
        raise ValueError(type_.name)
    return cast.body


def _text_first(left: Type, right: Type) -> Body:
    output = _to_text(right)
    return lambda text, value: text + output(value)


def _text_last(left: Type, right: Type) -> Body:
    output = _to_text(left)
    return lambda value, text: output(value) + text


_text_functions()

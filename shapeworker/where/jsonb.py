"""jsonb as Postgres reads, compares, takes apart and prints it. Its order (``<``) is left out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Final, NamedTuple

from shapeworker.where.arrays import Array
from shapeworker.where.errors import EvaluationError
from shapeworker.where.numeric import numeric_input, numeric_output

MAX_DEPTH: Final = 150
"""How deep a document may nest to be looked into."""


class Json(NamedTuple):
    """A document: dict, list, str, Decimal, bool, or None for JSON's null."""

    content: Any


def _refused(text: str) -> Any:
    raise ValueError(text)


_decoder: Final = json.JSONDecoder(parse_float=numeric_input, parse_int=numeric_input, parse_constant=_refused)
_BRACKETS: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


def jsonb_input(text: str) -> Json:
    """The input function of jsonb. Raises ValueError."""
    if _depth(text) > MAX_DEPTH:
        raise ValueError("the document nests too deeply")
    if "\\u0000" in text or ("\\ud" in text.lower() and not _valid_surrogates(text)):
        raise ValueError("not a text")
    return Json(_decoder.decode(text.strip(" \t\n\r")))


def read_jsonb(text: bytes) -> Json:
    """A document as Postgres prints it. Raises EvaluationError for one that nests deeper than MAX_DEPTH."""
    document = text.decode()
    if _depth(document) > MAX_DEPTH:
        raise EvaluationError(f"a jsonb value nests deeper than {MAX_DEPTH} levels")
    return Json(_decoder.decode(document))


def _valid_surrogates(text: str) -> bool:
    try:
        json.dumps(json.loads(text), ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def _depth(text: str) -> int:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    for match in _BRACKETS.finditer(text):
        first = match[0][0]
        if first in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif first in "]}":
            depth -= 1
    return deepest


def jsonb_key(value: Json) -> Any:
    """What tells whether two documents are equal: numbers count by value."""
    return _key(value.content)


def _key(content: Any) -> Any:
    if isinstance(content, dict):
        return "object", frozenset((name, _key(item)) for name, item in content.items())
    if isinstance(content, list):
        return "array", tuple(_key(item) for item in content)
    if isinstance(content, bool):
        return "boolean", content
    # None is for SQL's NULL.
    return ("null",) if content is None else content


_ESCAPES: Final = {character: f"\\u{character:04x}" for character in range(32)} | {
    ord(character): "\\" + escape
    for character, escape in {"\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t", '"': '"', "\\": "\\"}.items()
}


def write_jsonb(value: Json) -> str:
    """The output function of jsonb: keys by length, then by bytes."""
    return _write(value.content)


def _write(content: Any) -> str:
    if isinstance(content, dict):
        keys = sorted(content, key=lambda name: (len(name.encode()), name.encode()))
        return "{" + ", ".join(f"{_string(name)}: {_write(content[name])}" for name in keys) + "}"
    if isinstance(content, list):
        return "[" + ", ".join(map(_write, content)) + "]"
    if isinstance(content, str):
        return _string(content)
    if isinstance(content, Decimal):
        return numeric_output(content)
    return "null" if content is None else "true" if content else "false"


def _string(text: str) -> str:
    return '"' + text.translate(_ESCAPES) + '"'


# --------------------------------------------------------------------------------------------------------------------
# operators


def _is_scalar(content: Any) -> bool:
    return not isinstance(content, dict | list)


def contains(outer: Json, inner: Json) -> bool:
    """``@>``. Raises nothing."""
    left, right = outer.content, inner.content
    if isinstance(left, list) and _is_scalar(right):
        # At the root, and only there, an array contains what is one of its elements.
        right = [right]
    return _contains(left, right)


def _contains(left: Any, right: Any) -> bool:
    if isinstance(right, dict):
        return isinstance(left, dict) and all(
            name in left and _contains(left[name], item) for name, item in right.items()
        )
    if isinstance(right, list):
        if not isinstance(left, list):
            return False
        scalars = {_key(item) for item in left if _is_scalar(item)}
        nested = [item for item in left if not _is_scalar(item)]
        return all(
            _key(item) in scalars if _is_scalar(item) else any(_contains(other, item) for other in nested)
            for item in right
        )
    return _is_scalar(left) and bool(_key(left) == _key(right))


def has_key(document: Json, name: str) -> bool:
    """``?``: a key of an object, a string among the elements of an array, or that string itself."""
    content = document.content
    if isinstance(content, dict):
        return name in content
    elements = content if isinstance(content, list) else [content]
    return any(isinstance(item, str) and item == name for item in elements)


def has_any(document: Json, names: Array) -> bool:
    """``?|``. NULLs among the names do not count."""
    return any(has_key(document, name) for name in names.elements if name is not None)


def has_all(document: Json, names: Array) -> bool:
    """``?&``. NULLs among the names do not count."""
    return all(has_key(document, name) for name in names.elements if name is not None)


def field(document: Json, name: str) -> Json | None:
    """``-> text``."""
    content = document.content
    return Json(content[name]) if isinstance(content, dict) and name in content else None


def element(document: Json, index: int) -> Json | None:
    """``-> integer``, from the end if negative."""
    content = document.content
    if isinstance(content, dict):
        return None
    elements = content if isinstance(content, list) else [content]
    return Json(elements[index]) if -len(elements) <= index < len(elements) else None


def at_path(document: Json, path: Array) -> Json | None:
    """``#>``."""
    if None in path.elements:
        return None
    return _walk(document.content, path.elements)


_INDEX: Final = re.compile(r"[ \t\n\v\f\r]*([+-]?\d{1,10})\Z", re.ASCII)


def _walk(content: Any, steps: Iterable[str]) -> Json | None:
    for step in steps:
        if isinstance(content, dict):
            if step not in content:
                return None
            content = content[step]
        elif isinstance(content, list):
            match = _INDEX.match(step)
            if match is None or not -len(content) <= int(match[1]) < len(content):
                return None
            content = content[int(match[1])]
        else:
            return None
    return Json(content)


def as_text(document: Json | None) -> str | None:
    """The result of ``->>`` where ``->`` gives a document."""
    if document is None or document.content is None:
        return None
    return document.content if isinstance(document.content, str) else write_jsonb(document)


def type_of(document: Json) -> str:
    """``jsonb_typeof``."""
    content = document.content
    kinds = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return kinds.get(type(content), "number")


def array_length(document: Json) -> int:
    """``jsonb_array_length``. Raises EvaluationError for what is no array."""
    if isinstance(document.content, list):
        return len(document.content)
    raise EvaluationError("cannot get array length of what is no array")

"""What the covers of operands make together, in AND and in OR."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shapeworker.routing.paths import (
    NOTHING,
    Between,
    Bound,
    Contains,
    ContainsAll,
    Cover,
    Equal,
    Field,
    Infix,
    Later,
    Path,
    Pattern,
    Prefix,
    number,
)


def junction(connective: str, covers: list[Cover | None]) -> Cover | None:
    """The cover of ``and`` or ``or`` from those of its operands; None if there is none."""
    if connective == "or":
        paths: list[Path] = []
        for found in covers:
            if found is None:
                return None
            paths += found.paths
        return Cover(tuple(dict.fromkeys(paths)), all(found.exact for found in covers if found))
    present = [found for found in covers if found is not None]
    # In AND, each cover is one of the whole; several of one kind can be joined to a narrower one.
    candidates = [*_composite(present), *_intervals(present), *present]
    best = min(candidates, key=_rank, default=None)
    if best is None or not best.paths:
        return best
    equal = min(filter(_is_equality, candidates), key=_rank, default=None)
    other = min(filter(_is_other, candidates), key=_rank, default=None)
    if equal is None or other is None:
        return Cover(best.paths, best.exact and _says_all(best, None, covers))
    (then,) = other.paths
    narrowed = tuple(Equal(path.fields, path.keys, then) for path in equal.paths if isinstance(path, Equal))
    return Cover(narrowed, equal.exact and other.exact and _says_all(equal, other, covers))


def _is_equality(found: Cover) -> bool:
    return all(isinstance(path, Equal) and path.then is None for path in found.paths)


def _is_other(found: Cover) -> bool:
    return len(found.paths) == 1 and not isinstance(found.paths[0], Equal)


def _composite(covers: list[Cover]) -> Iterator[Cover]:
    keys: dict[Field, Any] = {}
    for found in covers:
        if _is_equality(found) and len(found.paths) == 1:
            (path,) = found.paths
            assert isinstance(path, Equal)
            for field, key in zip(path.fields, path.keys, strict=True):
                keys.setdefault(field, key)
    if len(keys) > 1:
        # In a fixed order, so that equal sets of columns share an index.
        fields = sorted(keys, key=lambda field: field.position)
        yield Cover((Equal(tuple(fields), tuple(keys[field] for field in fields)),), True)


def _says_all(chosen: Cover, then: Cover | None, covers: list[Cover | None]) -> bool:
    """Whether every operand of an AND is true for rows that match the chosen ones, which are exact."""
    return all(found is not None and (found in (chosen, then) or _is_part(found, chosen)) for found in covers)


def _is_part(found: Cover, chosen: Cover) -> bool:
    """Whether an operand is an equality that all chosen paths have, too."""
    if not found.exact or len(found.paths) != 1:
        return False
    (path,) = found.paths
    if not isinstance(path, Equal) or path.then is not None:
        return False
    wanted = set(zip(path.fields, path.keys, strict=True))
    return all(isinstance(p, Equal) and wanted <= set(zip(p.fields, p.keys, strict=True)) for p in chosen.paths)


def _intervals(covers: list[Cover]) -> Iterator[Cover]:
    lows: dict[Field, Any] = {}
    highs: dict[Field, Any] = {}
    for found in covers:
        if len(found.paths) == 1 and isinstance(path := found.paths[0], Bound):
            (lows if path.operator in (">", ">=") else highs).setdefault(path.field, path.key)
    for field in lows.keys() & highs.keys():
        if isinstance(lows[field], Later) or isinstance(highs[field], Later):
            if field.read is not None:
                yield Cover((Between(field, lows[field], highs[field]),), False)
        elif (joined := between(field, lows[field], highs[field])) is not None:
            yield joined


def between(field: Field, low_key: Any, high_key: Any) -> Cover | None:
    """What two bounds make together; None if they are not finite numbers."""
    low, high = number(low_key), number(high_key)
    if low is None or high is None:
        return None
    return Cover((Between(field, low, high),), False) if low <= high else NOTHING


def _rank(found: Cover) -> tuple[int, int]:
    if not found.paths:
        return 0, 0

    def kind(path: Path) -> int:
        match path:
            case Equal():
                # To be NULL or a truth says little about a row.
                few = all(key in (None, b"t", b"f") for key in path.keys)
                return 7 if few else 1 if len(path.fields) > 1 else 2
            case Contains() | ContainsAll():
                return 3
            case Prefix() | Pattern():
                return 4
            case Between():
                return 5
            case Infix():
                return 6
        return 8

    return max(map(kind, found.paths)), len(found.paths)

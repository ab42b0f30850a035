"""Which of several functions of one name a call means (Postgres docs 10.2, 10.3 and 10.5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from shapeworker.where.casts import is_implicit
from shapeworker.where.types import TEXT, UNKNOWN, Type, array_of

Parameter = Type | str
"""A type, or a polymorphic one: ``anyelement``, ``anyarray``, ``anynonarray``, ``anyenum``, ``anycompatible``,
``anycompatiblearray``, ``anyrange`` (over ``anyelement``); or ``any``, which takes each argument as it is."""


@dataclass(frozen=True, eq=False)
class Overload:
    """One function of a name. ``make`` gives its body for the types that it is called with.

    ``sql`` gives its SQL from that of its arguments. ``variadic`` says that the last parameter may stand any number of
    times, ``needs_constant`` that the argument at ``prepared_place`` must be constant. The rest is as in
    :class:`tree.Function`.
    """

    name: str
    parameters: tuple[Parameter, ...]
    result: Parameter
    make: Callable[..., Callable[..., Any]]
    sql: Callable[..., str]
    strict: bool = True
    role: str | None = None
    prepare: Callable[[Any], Any] | None = None
    prepared_place: int = 1
    needs_constant: bool = False
    variadic: bool = False

    def expanded(self, count: int) -> Overload | None:
        """With as many parameters as there are arguments; None if it does not take so many."""
        if len(self.parameters) == count:
            return self
        if self.variadic and count > len(self.parameters):
            more = (self.parameters[-1],) * (count - len(self.parameters))
            return Overload(
                *(self.name, self.parameters + more, self.result, self.make, self.sql, self.strict, self.role)
            )
        return None


@dataclass(frozen=True)
class Match:
    """An overload with the types that its arguments have to be cast to, and that of its result."""

    overload: Overload
    arguments: tuple[Type, ...]
    result: Type


@lru_cache(maxsize=4096)
def select(candidates: tuple[Overload, ...], given: tuple[Type, ...]) -> Match | None:
    """The one that a call with arguments of these types means; None if there is none or no single one.

    String literals and the like are of type UNKNOWN.
    """
    expanded = [found for overload in candidates if (found := overload.expanded(len(given)))]
    exact = _exact(expanded, given)
    if exact is None and len(given) == 2 and (given[0] is UNKNOWN) != (given[1] is UNKNOWN):
        known = given[1] if given[0] is UNKNOWN else given[0]
        exact = _exact(expanded, (known, known))
        if exact is not None:
            return _matched(exact, (known, known))
    if exact is not None:
        return _matched(exact, given)
    possible = [match for overload in expanded if (match := _matched(overload, given))]
    return _narrowed(possible, given)


def _exact(candidates: Sequence[Overload], given: Sequence[Type]) -> Overload | None:
    for overload in candidates:
        if all(parameter is type_ for parameter, type_ in zip(overload.parameters, given, strict=True)):
            return overload
    return None


def _narrowed(matches: list[Match], given: Sequence[Type]) -> Match | None:
    places = range(len(given))
    known = [place for place in places if given[place] is not UNKNOWN]

    def best(score: Callable[[Match], int]) -> list[Match]:
        highest = max(map(score, matches))
        return [match for match in matches if score(match) == highest]

    def exact(match: Match, place: int) -> bool:
        return match.overload.parameters[place] is given[place]

    def preferred(match: Match, place: int) -> bool:
        target = match.overload.parameters[place]
        return (isinstance(target, Type) and target.preferred and target.category == given[place].category) or exact(
            match, place
        )

    if not matches:
        return None
    matches = best(lambda match: sum(exact(match, place) for place in known))
    if len(matches) > 1:
        matches = best(lambda match: sum(preferred(match, place) for place in known))
    if len(matches) == 1:
        return matches[0]
    unknown = [place for place in places if given[place] is UNKNOWN]
    if not unknown:
        return None
    kept = _by_category(matches, unknown)
    matches = kept or matches
    if len(matches) == 1:
        return matches[0]
    types = {given[place] for place in known}
    if len(types) == 1:
        # The unknown ones may be of the type that the known ones share.
        (shared,) = types
        assumed = [match for match in matches if _matched(match.overload, [shared for _ in places])]
        if len(assumed) == 1:
            return assumed[0]
    return None


def _category(parameter: Parameter) -> str:
    if isinstance(parameter, Type):
        return parameter.category
    return {"anyarray": "A", "anycompatiblearray": "A", "anyenum": "E"}.get(parameter, "P")


def _by_category(matches: list[Match], unknown: list[int]) -> list[Match]:
    chosen: dict[int, tuple[str, bool]] = {}
    for place in unknown:
        targets = [match.overload.parameters[place] for match in matches]
        categories = {_category(target) for target in targets}
        if "S" in categories:
            category = "S"
        elif len(categories) == 1:
            (category,) = categories
        else:
            return []
        has_preferred = any(
            isinstance(target, Type) and target.preferred and target.category == category for target in targets
        )
        chosen[place] = category, has_preferred

    def fits(match: Match) -> bool:
        for place, (category, has_preferred) in chosen.items():
            target = match.overload.parameters[place]
            if _category(target) != category:
                return False
            if has_preferred and not (isinstance(target, Type) and target.preferred):
                return False
        return True

    return [match for match in matches if fits(match)]


def _matched(overload: Overload, given: Sequence[Type]) -> Match | None:
    """The overload for these arguments, if implicit casts lead to it."""
    fixed = []
    for parameter, type_ in zip(overload.parameters, given, strict=True):
        if isinstance(parameter, Type) and type_ is not UNKNOWN and not is_implicit(type_, parameter):
            return None
        fixed.append(parameter)
    if all(isinstance(parameter, Type) for parameter in fixed) and isinstance(overload.result, Type):
        return Match(overload, tuple(parameter for parameter in fixed if isinstance(parameter, Type)), overload.result)
    found = _polymorphic(overload.parameters, given)
    if found is None:
        return None
    element, common, range_ = found

    def concrete(parameter: Parameter, type_: Type | None) -> Type | None:
        if isinstance(parameter, Type):
            return parameter
        if parameter == "any":
            return TEXT if type_ is UNKNOWN else type_
        if parameter == "anyrange":
            return range_
        base = common if parameter.startswith("anycompatible") else element
        if base is None:
            return None
        return array_of(base) if parameter.endswith("array") and parameter != "anynonarray" else base

    arguments = [concrete(parameter, type_) for parameter, type_ in zip(overload.parameters, given, strict=True)]
    result = concrete(overload.result, None)
    if result is None or any(type_ is None for type_ in arguments):
        return None
    return Match(overload, tuple(type_ for type_ in arguments if type_ is not None), result)


def _polymorphic(
    parameters: Sequence[Parameter], given: Sequence[Type]
) -> tuple[Type | None, Type | None, Type | None] | None:
    """What ``anyelement``, ``anycompatible`` and ``anyrange`` stand for; None if the arguments do not agree."""
    elements: list[Type] = []
    compatible: list[Type] = []
    range_: Type | None = None
    for parameter, type_ in zip(parameters, given, strict=True):
        if isinstance(parameter, Type) or type_ is UNKNOWN or parameter == "any":
            continue
        if parameter == "anyrange":
            if type_.subtype is None:
                return None
            range_, type_ = type_, type_.subtype
        elif parameter.endswith("array") and parameter != "anynonarray":
            if type_.element is None:
                return None
            type_ = type_.element
        elif (parameter == "anynonarray" and type_.is_array) or (parameter == "anyenum" and not type_.is_enum):
            return None
        elif parameter == "anycompatible" and type_.is_array:
            # An array of arrays is an array of more dimensions, not of another type.
            return None
        (compatible if parameter.startswith("anycompatible") else elements).append(type_)
    if any(type_ is not elements[0] for type_ in elements):
        return None
    common = common_type(compatible) if compatible else None
    if compatible and common is None:
        return None
    return (elements[0] if elements else None), common, range_


def common_type(types: Sequence[Type]) -> Type | None:
    """The type that values of these types have together, as in ARRAY, CASE and UNION; None if there is none."""
    known = [type_ for type_ in types if type_ is not UNKNOWN]
    if not known:
        return TEXT
    chosen = known[0]
    for type_ in known[1:]:
        if type_ is chosen:
            continue
        if type_.category != chosen.category:
            return None
        if not chosen.preferred and is_implicit(chosen, type_) and not is_implicit(type_, chosen):
            chosen = type_
    return chosen if all(is_implicit(type_, chosen) for type_ in known) else None

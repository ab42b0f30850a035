"""Literals of every type: each spelling means what it means to Postgres, or is refused."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shapeworker.where.types import BY_NAME, JSON, Type, array_of
from tests.unit.shapeworker.where.expressions import VALUES
from tests.unit.shapeworker.where.oracle import Oracle

NUMBERS = (
    *(
        " 1 ",
        "+1",
        "-0",
        "0x1F",
        "0b101",
        "0o17",
        "1_000",
        "1__0",
        "_1",
        "1_",
        "1.",
        ".5",
        ".",
        "1e5",
        "1E-5",
        "1e",
        "- 1",
    ),
    *("99999999999999999999", "1.5e400", "1e-400", "NaN", "nan", "-NaN", "inf", "-Infinity", "+inf", "0x", "1,5", "١"),
    *("1.000", "1_0.0_1", "2147483648", "32768", "0x1p3", "1e-16383", "123456789012345678901234567890.1234567890", ""),
)
ACCEPTED: dict[str, tuple[str, ...]] = {
    "bool": (" TRUE ", "tru", "y", "n", "of", "on", "0", "1"),
    "date": (
        *("2024-1-2", "20240102", "January 8, 1999", "8 Jan 1999"),
        *("1999-Jan-08", "2024-01-02 10:00", "epoch", "INFINITY"),
        *("2024-01-02 BC", "2024-01-02T10:00:00Z", "2024/1/2", "12345-06-07", "Sept 8 1999", "8-Jan-1999"),
    ),
    "time": ("10:00", "10:00:60", "24:00", "1:2:3", "12:00 am", "12:30 PM", "10:00:00.1234567", "01:02:03.5"),
    "timestamp": (
        *("2024-01-01", "2024-01-01T00:00:00.123456789Z"),
        *("2024-01-01 10:00 PM", "2024-01-01 24:00", "20240102T10:00:00"),
        *("2024-01-01 10:00:00+02", "2024-02-29 23:59:60", "0044-03-15 10:00:00 BC", "2024-01-01 10:00:00.5 AD"),
    ),
    "timestamptz": (
        *("2024-01-01 10:00+02", "2024-01-01 10:00-0530", "2024-01-01 10:00 UTC", "2024-07-01 10:00 Europe/Berlin"),
        *("2024-03-31 02:30 Europe/Berlin", "2024-10-27 02:30 Europe/Berlin", "2024-01-01T10:00:00.5-05:30:15"),
        *("2024-01-01 10:00:00+530", "0044-03-15 10:00+00 BC", "2024-01-01 10:00 america/new_york"),
    ),
    "interval": (
        *("1 day", "1day", "-1 days +02:03:04", "1.5 days", "1.5 months"),
        *("1.5 years", "1.5 weeks", "2 weeks ago", "@ 1 hour"),
        *("P1Y2M", "PT1.5H", "P-1DT-2H", "P1W", "1-2", "-1-2", "10"),
        *("1.5", "1:02", "1:02:03.5", "3 4:05", "1 decade 1 century"),
        *("1 mon 2 mons", "1 millennium", "5 us", "5 ms"),
        *("1 y 2 mon 3 d 4 h 5 m 6 s", "-1.5 days", "PT0.5S", "P1Y1D", "0"),
    ),
    "uuid": (
        *("a0eebc999c0b4ef8bb6d6bb9bd380a11", "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}"),
        *("A0EE-BC99-9C0B-4EF8-bb6d6bb9bd380a11",),
    ),
    "bytea": ("\\x01 02", "\\x 01", "abc", "a\\\\b", "\\000", "é"),
    "jsonb": (
        *("1e2", " { } ", '{"bb": 1, "a": 2, "é": 3, "ab": {"y": 1, "xx": 2}}', "[1,2,]", '{"a":1,"a":2}', '"\\u00e9"'),
        *( '"\\ud83d\\ude00"', "-0", "1.50", "tru", "1e-3", '"\t"'),
    ),
    "timetz": ("10:00", "10:00+02", "10:00:00 -05:30", "10:00Z"),
}  # fmt: skip
REFUSED: dict[str, tuple[str, ...]] = {
    "date": ("now", "today", "01/02/2024", "1/2/03", "2024-13-01", "2023-02-29", "0000-01-01", "99-01-02", ""),
    "timestamp": ("now", "2024-01-01 25:00", "2024-01-01 10:00:61", "tomorrow", "2024-01-01 10:00 13"),
    "timestamptz": ("2024-01-01 10:00 EST", "2024-01-01 10:00+20", "2024-01-01 Mars/Phobos"),
    "time": ("25:00", "10", "13:00 PM", "10:60", "24:00:01"),
    "interval": ("", "1 fortnight", "P", "PT", "1 day day", "ago", "1 day 2 days"),
    "uuid": ("a0eebc99", "{a0eebc999c0b4ef8bb6d6bb9bd380a11", " a0eebc999c0b4ef8bb6d6bb9bd380a11"),
    "bool": ("o", "", "truee", "2", "ｔ"),
    "jsonb": ("", "{", "[1,]", '"\\u0000"', '"\\ud800"', "NaN", "'a'", "01", '{"a"}'),
    "bytea": ("\\x0", "\\xzz", "\\8", "\\"),
    "int4": ("2147483648", "1.0", "1e2", "", "--1"),
}
SCALARS = [type_ for type_ in BY_NAME.values() if type_ is not JSON]


def ours(type_: Type, text: str) -> str | None:
    """How we print a literal; None if it is refused."""
    assert type_.input is not None
    try:
        return type_.output(type_.input(text))
    except ValueError:
        return None


def same(oracle: Oracle, type_: Type, text: str) -> bool:
    """Whether Postgres prints it alike. Whether it was accepted."""
    mine = ours(type_, text)
    if mine is not None:
        assert oracle.accepts(type_.sql, text) == mine, (type_, text)
    return mine is not None


@pytest.mark.parametrize("type_", SCALARS, ids=str)
def test_values_and_odd_spellings(oracle: Oracle, type_: Type) -> None:
    pool = [*VALUES[type_.name], *ACCEPTED.get(type_.name, ())]
    if type_.category == "N":
        pool += NUMBERS
    for text in pool:
        same(oracle, type_, text)


@pytest.mark.parametrize("name", ACCEPTED)
def test_usual_spellings_are_accepted(oracle: Oracle, name: str) -> None:
    refused = [
        text for text in ACCEPTED[name] if oracle.accepts(name, text) is not None and not ours(BY_NAME[name], text)
    ]
    assert refused == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_or_has_no_fixed_meaning_is_refused(name: str) -> None:
    assert [text for text in REFUSED[name] if ours(BY_NAME[name], text) is not None] == []


ARRAYS = (
    *(
        "{}",
        " { } ",
        "{1}",
        "{ 1 , 2 }",
        '{"1",2}',
        "{NULL,null}",
        '{"null"}',
        "{{1,2},{3,4}}",
        "{{1},{2,3}}",
        "[2:3]={1,2}",
    ),
    *(
        "[-1:0]={1,2}",
        "[1:1][2:3]={{1,2}}",
        "[1:2]={1}",
        "{1,}",
        "{,1}",
        "{1",
        "1}",
        "{1}{2}",
        "{{}}",
        "{{},{}}",
        "{1 2}",
        "",
    ),
    *(
        '{"a\\"b"}',
        "{a\\,b}",
        '{a"b"}',
        '{""}',
        "{a b}",
        "{a\\ }",
        "{\\\\}",
        "[3]={1,2,3}",
        "{1},",
        "{{1},2}",
        "{1,{2}}",
    ),
    *("{a b , c}", '{" a "}', "{NULL }", "{nul\\l}", "[2:1]={}", "{{{{{{1}}}}}}", "{{{{{{{1}}}}}}}", "{\n1}"),
)


@pytest.mark.parametrize("element", ["int4", "text"])
@pytest.mark.parametrize("text", ARRAYS)
def test_array_literals(oracle: Oracle, element: str, text: str) -> None:
    same(oracle, array_of(BY_NAME[element]), text)


@given(data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_damaged_literals(oracle: Oracle, data: st.DataObject) -> None:
    """Whatever is accepted after random damage is still what Postgres reads."""
    type_ = data.draw(st.sampled_from(SCALARS))
    pool = [*VALUES[type_.name], *ACCEPTED.get(type_.name, ()), *(NUMBERS if type_.category == "N" else ())]
    for _ in range(20):
        text = data.draw(st.sampled_from(pool))
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(0, len(text)))
            added = data.draw(st.sampled_from([*'019-+:./ TZe{}[](),"\\', "", "BC"]))
            text = text[:place] + added + text[place + data.draw(st.integers(0, 1)) :]
        same(oracle, type_, text)

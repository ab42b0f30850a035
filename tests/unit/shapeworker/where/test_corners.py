"""The corners that the semantics are known for (where-and-subqueries.md 7), each against Postgres."""

from __future__ import annotations

from random import Random

import pytest

from shapeworker.where import compile_where
from tests.unit.shapeworker.where.expressions import row
from tests.unit.shapeworker.where.oracle import COLUMNS, Oracle
from tests.unit.shapeworker.where.test_differential import agree

CORNERS = {
    "logic": """
        2 IN (1, NULL)
        2 NOT IN (1, NULL)
        1 IN (NULL, 1)
        5 BETWEEN 6 AND NULL
        5 NOT BETWEEN 6 AND NULL
        5 BETWEEN SYMMETRIC 6 AND 4
        b AND NULL
        b OR NULL
        NOT (b AND c)
        NULL IS DISTINCT FROM NULL
        f8 IS DISTINCT FROM 'NaN'
        b IS NOT TRUE AND c IS NOT UNKNOWN
        (i4 IN (1)) = true
        NOT ((NULL OR 1 / i4 = 7) AND b)
        CASE i4 WHEN 1 THEN b WHEN 2 THEN c END
        CASE WHEN i4 = 0 THEN true ELSE 10 / i4 > 1 END
        COALESCE(i4, 1) = 1 AND NULLIF(i4, 1) IS NULL
        GREATEST(i4, j4, NULL) > LEAST(i4, 3)
        i4 <> ALL ('{1,2}') AND i4 = ANY ('{{1,2},{3,NULL}}')
        i4 = ANY ('{}')
        i4 <> ALL ('{}')
        NOT (i4 = ANY (ai))
        i4 >= ALL (ai)
        f4 IN (0.1, 0.2)
        f4 = 0.1
        i4 IN (1, 2.5, 7)
        i2 IN (1, i4, 3)
    """,
    "numbers": """
        i4 + 2147483647 > 0
        i8 / 0b100000000000000000000000000000000 = 0
        i8 / 0O100000000000 = 0
        i8 / 0x1_0000_0000 = 0
        i8 / -0b100000000000000000000000000000000 = 0
        i8 / 4_294_967_296 = 0
        i8 / 18446744073709551616 = 0
        f4 = '-1e-40'::numeric::float4
        - i2 > 0
        i2 + i2 > 5
        i2 * 1000 > 5
        - 2 ^ 2 = 4
        2 ^ 3 = f8
        i8 = 9007199254740992::float8
        i8 = 9007199254740993.0
        i4 / 2 = 1
        i4 % 3 = -1
        -7 / 2 = -3
        n / 3 = 0.3333333333333333
        n / m > 1
        n % m < 1
        n::text = '1.50'
        (7.0 / 2)::text = '3.5000000000000000'
        n::int4 = 2
        f8::int4 = 2
        f8::numeric = n
        f8::text LIKE '%e%'
        f4::float8 = f8
        f4 + f8 > 1
        i8 = f4
        |/ f8 > 1
        f8 / g8 > 1
        f8 * g8 > 1
        '-0'::float8 = 0
        n = 'NaN' OR f8 > 'Infinity'
        n * 0 = 0
        @ i4 = 3
        ~ i4 # 5 & 3 | 1 > 0
        round(n) = 2
        floor(n) + ceil(n) > 2
    """,
    "texts": """
        'hell%' LIKE E'hell\\%'
        t LIKE E'hell\\%'
        t LIKE 'a%b'
        t LIKE '_'
        t LIKE '%l%l%'
        t LIKE 'a_b'
        E'a\\nb' LIKE 'a_b'
        NOT (t < 'b')
        NOT (t <= 'b')
        NOT (t > 'b')
        NOT (t >= 'b')
        (t < 'b') IS NOT TRUE
        NOT (u >= 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11')
        NOT (i4 IN (1, 2)) AND NOT (t <> 'a')
        t LIKE '%_b'
        t NOT LIKE '%\\\\%'
        t LIKE 'h!%' ESCAPE '!'
        t LIKE 'hell!%' ESCAPE '!'
        t LIKE t
        s LIKE t
        t ILIKE 'É'
        t ILIKE 'HE%'
        bp = 'a'
        bp = 'a '::text
        bp LIKE 'a%'
        bp || 'x' = 'ax'
        concat(bp, 'x') = 'a     x'
        length(bp) = 1
        bp::text = 'a'
        bp > 'a'
        vc || nm = 'aa'
        t || i4 = 'a1'
        i4 || t = '1a'
        t || b = 'atrue'
        b::text = 'true'
        concat(t, b, NULL, i4) = 'at1'
        t < s
        upper(t) = 'ABC'
        lower(t) = lower(s)
        left(t, -1) = 'a' OR right(t, -1) = 'b'
        substring(t from 2 for 1) = 'b'
        trim(t) = 'a'
        btrim(t, 'ab') = ''
        strpos(t, 'b') = 2
        split_part(t, '.', -1) = 'bar'
        t ~ '^a.c$' OR t ~* 'HELL'
        t ~ '[[:punct:]]' AND t !~ '\\d'
        u::text LIKE 'a0%' AND u > w
        by || '\\x01' > '\\x01'
        mo > 'ok' OR mo::text > 'ok' OR mo = ANY (am)
        mo BETWEEN 'ok' AND 'Zen'
        vc IN ('a', 'b') AND nm <> 'a'
        t::varchar(2) = 'he'
        t::char(4) = 'a'
        '12.345'::numeric(4,1) = 12.3
    """,
    "times": """
        iv = '24 hours'
        iv = '1 day'
        iv = '30 days'
        iv > '29 days 23:59:59'
        iv = jv
        iv < jv
        '1 mon'::interval = '30 days'::interval
        '1 year'::interval = '360 days'::interval
        '1 mon'::interval = '31 days'::interval
        iv * 1.5 > '1 day'
        iv / 2 < jv
        date '2024-01-31' + interval '1 month' = ts
        ts + iv > us
        ts - us > '59 days'
        (ts - us)::text LIKE 'P%'
        ts > d
        d + 1 > e1
        d - e1 > 10
        d + tm > ts
        tz > ts
        tz::date = d
        ts::time > tm
        tm + '25 hours' > tm
        tm - interval '1 hour' < '12:00'
        tm = '24:00'
        tt > '12:00+01'
        tt = '12:34:56+02'
        tz AT TIME ZONE 'America/New_York' > ts
        ts AT TIME ZONE 'Europe/Berlin' > tz
        timestamp '2024-03-31 02:30' AT TIME ZONE 'Europe/Berlin' = '2024-03-31 01:30Z'
        timestamp '2024-10-27 02:30' AT TIME ZONE 'Europe/Berlin' = '2024-10-27 01:30Z'
        date_trunc('week', ts) = '2024-02-26'
        date_trunc('century', ts) < '2001-01-01'
        date_trunc('decade', ts) = '2020-01-01'
        justify_interval(iv) > '1 day'
        d = 'infinity' OR ts = '-infinity'
        d::text = '2024-01-01' OR tz::text LIKE '%BC'
    """,
    "arrays": """
        ai @> ARRAY[1, NULL]
        ARRAY[1, NULL]::int4[] @> ARRAY[NULL]::int4[]
        ARRAY[1, NULL] @> ARRAY[i4]
        '{1,NULL}'::int4[] <@ ai
        ai && '{NULL}'
        ai && '{1,2,42}'
        ai @> '{}'
        ai = '{1,2}'
        '[2:3]={1,2}'::int4[] = '{1,2}'
        ai < bi
        ai <= '{10,NULL}'
        '{1,NULL}'::int4[] > '{1,5}'
        ai[1] = 1
        ai[2] = 100
        ai[i4] IS NULL
        (NULL::int4[])[f8::int4] IS NULL
        (NULL::int4[])[f8::int4:] IS NULL
        ai[f8::int4] IS NULL
        ai[1.5] = 1
        ai[1][1] IS NULL
        ai[2:3] = '{1,2}'
        ai[:2] @> '{1}'
        (ai)[2:] = bi
        ai || 3 @> '{3}'
        3 || ai = bi
        ai || bi @> '{1,2}'
        array_append(ai, i4) @> '{1}'
        array_prepend(i4, ai) @> '{2}'
        array_append(NULL::int4[], 3) = '{3}'
        array_ndims(ai) = 2
        array_length(ai, 1) = 2
        cardinality(ai) > 1
        at @> '{a}'
        at > '{b}'
        'a' = ANY (at)
        an @> '{1.50}'
        af = '{NaN}'
        ai::text = '{1,2}'
        at::text LIKE '%NULL%'
        ab::text = '{t,f}'
        ai::int8[] = al
        ARRAY[i4, 2] = ai
        ARRAY[ai, bi] = '{{1}}'
        am @> '{happy}' OR am > '{ok}'
    """,
    "jsonb": """
        js = '{"a": 1.0}'
        js @> '{"a": 1}'
        js @> '{}'
        js @> '[]'
        js @> '"a"'
        js @> '[1, 3]'
        '["a", "b"]'::jsonb @> '"a"'
        '"a"'::jsonb @> '["a"]'
        '"a"'::jsonb @> '"a"'
        '[[1, 2]]'::jsonb @> '[1]'
        '[[1, 2]]'::jsonb @> '[[1]]'
        '{"a": [1, {"b": 2}]}'::jsonb @> '{"a": [{"b": 2}]}'
        '{"a": {"b": 1, "c": 2}}'::jsonb <@ js
        js ? 'a'
        js ?| '{a,b}'
        js ?& ARRAY['a', 'b', NULL]
        js -> 'a' = '1'
        js ->> 'a' = 'x'
        js -> 0 = '1'
        js -> -1 = '3'
        js ->> 0 IS NULL
        '"a"'::jsonb -> 0 = '"a"'
        js -> 'a' -> 'b' ->> 2 = 'x'
        js #> '{a,b,0}' = '1'
        js #>> '{a,b,-1}' = 'x'
        js #>> '{}' = '1'
        js::text LIKE '{"a"%'
        (js -> 'long key')::text = '[{"a": 1.50}, {}]'
        js IS NULL
        js <> kj
        jsonb_typeof(js) = 'number'
        js IN ('1', '"a"', 'null')
        js IS NOT DISTINCT FROM kj
    """,
}


@pytest.mark.parametrize("topic", CORNERS)
def test_corners(oracle: Oracle, topic: str) -> None:
    random = Random(topic)
    oracle.fill([row(random) for _ in range(40)])
    texts = [line.strip() for line in CORNERS[topic].splitlines() if line.strip()]
    filters = [compile_where(text, {}, COLUMNS) for text in texts]
    verdicts = oracle.verdicts(texts + [filter_.sql.as_string(None) for filter_ in filters])
    for number, (text, filter_) in enumerate(zip(texts, filters, strict=True)):
        for place, cells in enumerate(oracle.rows):
            client, snapshot = verdicts[number][place], verdicts[len(texts) + number][place]
            assert agree(filter_, cells, client, snapshot), (text, cells, client, snapshot)

"""The benchmark works: its client reads every kind of body, and each case runs, if only a tiny part of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator, Sequence

import pytest

from tests.bench.case import Case, Measure, Running, Sample, Scale
from tests.bench.cases import CASES
from tests.bench.client import Client
from tests.bench.document import DOCUMENT, plot, rewrite
from tests.bench.latency import Latencies
from tests.bench.plot import svg
from tests.bench.run import OURS, Result, costs, figures, measure
from tests.bench.site import Site, Target
from tests.bench.sweeps import SWEEPS
from tests.bench.usage import Usage
from tests.pipeline.fixtures import StartStack

TINY = Scale(0.0001)
CHUNKED = "transfer-encoding: chunked"


def outcome(
    measure: Measure, ours: list[float], limits: Sequence[float] = (), other: Sequence[float] = ()
) -> dict[str, object]:
    case = Case("case", "", (measure,), None)  # type: ignore[arg-type]
    names = ["Galvanic", "other"] if other else ["Galvanic"]
    servers = [[Sample({measure.name: value}) for value in values] for values in (ours, other) if values]
    return figures(Result(case, names, servers, [Sample({measure.name: value}) for value in limits]))[0]


@pytest.mark.parametrize(
    ("measure", "ours", "limit", "met"),
    [
        (Measure("rows/s", reference=100, times=2), 200, None, "yes"),
        (Measure("rows/s", reference=100, times=2), 199, None, "NO"),
        (Measure("ms", reference=10, times=0.6, less_is_better=True), 6, None, "yes"),
        (Measure("ms", reference=10, times=0.6, less_is_better=True), 6.1, None, "NO"),
        (Measure("rows/s", of_limit=0.5), 50, 100, "yes"),
        (Measure("rows/s", of_limit=0.5), 49, 100, "NO"),
        (Measure("rows/s", of_limit=0.5), 49, None, "no limit here"),
        (Measure("ms", of_limit=2, less_is_better=True), 21, 10, "NO"),
        (Measure("rows/s", reference=100, times=2, of_limit=0.9), 200, 300, "NO"),
        (Measure("MB", most=12, less_is_better=True), 12, None, "yes"),
        (Measure("MB", most=12, less_is_better=True), 13, None, "NO"),
        (Measure("rows/s"), 1, None, ""),
    ],
)
def test_what_is_asked_is_met_or_not(measure: Measure, ours: float, limit: float | None, met: str) -> None:
    assert outcome(measure, [ours], [] if limit is None else [limit])["met"] == met


def test_figures_are_medians_and_another_server_replaces_the_reference() -> None:
    row = outcome(Measure("rows/s", reference=1_000, times=2), [90, 500, 100], [400, 200, 300], [50, 40, 60])
    assert (row["Galvanic"], row["limit"], row["of limit"], row["other"]) == (100, 300, 1 / 3, 50)
    assert (row["reference"], row["times"], row["met"], row["spread"]) == (1_000, 2, "yes", "90-500")


def test_costs_are_per_item() -> None:
    case = Case("case", "", (), None, item="row")  # type: ignore[arg-type]
    ours = [Sample({}, 1_000, Usage({"worker": seconds}, {"worker": 50})) for seconds in (0.001, 0.003, 0.002)]
    limit = [Sample({}, 500, Usage({"psql": 0.001}, {}))]
    assert costs(Result(case, ["Galvanic"], [ours], limit)) == [
        {"case": "case", "at": "Galvanic", "per": "row", "worker us": pytest.approx(2), "worker MB": 50},
        {"case": "case", "at": "limit", "per": "row", "tool us": pytest.approx(2)},
    ]


def test_latencies_are_kept_to_three_digits() -> None:
    latencies = Latencies([0.001] * 98 + [0.5, 2.0])
    other = Latencies([0.001] * 900)
    latencies.add(other)
    assert latencies.ms(50) == pytest.approx(1, rel=1e-3)
    assert latencies.ms(99.9) == pytest.approx(500, rel=1e-3)
    assert latencies.told()["count"] == 1000


def test_the_table_of_the_page_is_replaced_and_nothing_else() -> None:
    page = DOCUMENT.read_text()
    figures_ = [outcome(Measure("rows/s", reference=100, times=2), [1_234_567], [3_000_000])]
    case = {"date": "2026-01-02T03:04", "commit": "abc", "load before": 0.5, "scale": 1, "figures": figures_ * 2}
    results = {"machine": "a machine", "python": "3.11", "programs": {}, "cases": {"case": case}}
    changed = rewrite(page, results, {"shapes": case})
    assert "| case | rows/s | 1,234,567 | 3,000,000 | 0.412 | 100 | 12,346 | >= 2x | yes |\n|  | rows/s |" in changed
    assert rewrite(changed, results, {"shapes": case}) == changed
    before, after = page.split("<!-- table")[0], page.split("<!-- end of table -->")[1]
    assert changed.startswith(before)
    assert changed.endswith(after)


def test_plots_are_drawn_of_what_was_measured() -> None:
    sweep = [
        {"at": at, "Galvanic": {"p50 ms": value, "p99 ms": value * 3}, "limit": {}} for at, value in ((1, 2), (100, 20))
    ]
    lines = [("Galvanic", "p50 ms", "a < b"), ("Galvanic", "p99 ms", "99 %"), ("limit", "p50 ms", "nothing")]
    drawn = plot(sweep, "title", "shapes", "ms", lines)
    assert [(line.name, line.points) for line in drawn.lines] == [
        ("a < b", [(1.0, 2), (100.0, 20)]),
        ("99 %", [(1.0, 6), (100.0, 60)]),
    ]
    picture = ElementTree.fromstring(svg(drawn))
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["title", "shapes", "ms", "1", "10", "100", "1", "10", "100", "a < b", "99 %"]
    circles = list(picture.iter("{http://www.w3.org/2000/svg}circle"))
    heights = [float(circle.attrib["cy"]) for circle in circles]
    # Ten times as much is a decade higher, wherever it is.
    assert heights[0] - heights[1] == pytest.approx(heights[2] - heights[3], abs=0.2)
    assert heights[0] > heights[2]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("step", [1, 7, 10_000])
async def test_the_client_reads_bodies_however_they_come(chunked: bool, step: int) -> None:
    chance = random.Random(step)
    bodies = [chance.randbytes(size) for size in (0, 1, 300, 5_000)]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (line := await reader.readline()).startswith(b"GET"):
            await reader.readuntil(b"\r\n\r\n")
            number = int(line.split()[1][1:])
            body, last = bodies[number], number % 2 == 1
            head = (
                f"HTTP/1.1 200 OK\r\n{CHUNKED if chunked else f'Content-Length: {len(body)}'}\r\nX-Number: {number}\r\n"
            )
            said = head.encode() + (b"Connection: close\r\n\r\n" if last else b"\r\n")
            if chunked:
                pieces = [body[at : at + 77] for at in range(0, len(body), 77)]
                body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])
            said += body
            for at in range(0, len(said), step):
                writer.write(said[at : at + step])
                if step < len(said):
                    await asyncio.sleep(0)
            if last:
                break
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        client = Client("127.0.0.1", server.sockets[0].getsockname()[1])
        for number, body in enumerate(bodies):
            assert await client.get(f"/{number}") == body
            assert client.connection.header("x-number") == str(number)
            assert client.connection.size == len(body)
        client.connection.close()


def check(result: Result) -> None:
    """Every measure has a value at every server, and at the limit where a part of it is asked."""
    assert {row["measure"] for row in figures(result)} == {measure.name for measure in result.case.measures}
    for told in result.case.measures:
        for name, samples in zip(result.names, result.servers, strict=True):
            found = [sample.values.get(told.name) for sample in samples]
            own = told.name in ("CPU us/row", "memory MB", "KB/client", "gateway MB", "requests/s of a core")
            assert all(value is not None or own for value in found), (result.case.name, told.name, name)
        if told.of_limit is not None:
            assert result.limits, f"{result.case.name} has no limit"


@pytest.mark.faults
async def test_each_case_and_sweep_runs() -> None:
    async with Site.opened() as site:
        for case in CASES:
            check(await measure(case, site, TINY, repeats=1))
        for sweep in SWEEPS:
            case = Case(sweep.name, "", (), sweep.open(sweep.values[1]))
            assert all(sample.values for sample in (await measure(case, site, TINY, repeats=1)).servers[OURS])


class Nothing:
    """A case that measures nothing."""

    async def run(self) -> Sample:
        return Sample({})

    async def limit(self) -> Sample | None:
        return None


@contextlib.asynccontextmanager
async def nothing(_: Target, __: Scale) -> AsyncIterator[Running]:
    yield Nothing()


async def test_another_server_takes_its_turns(database: str, start_stack: StartStack) -> None:
    other = await start_stack(database)
    cases = {case.name: case for case in CASES}
    async with Site.opened(other.url, database) as site:
        alone = Case("alone", "", (), nothing, own_only=True)
        for case in (cases["commit-to-client"], cases["1000-equal"], alone):
            result = await measure(case, site, TINY, repeats=1)
            check(result)
            assert len(result.names) == (1 if case.own_only else 2)
            if not case.own_only:
                assert result.names[1] == f"127.0.0.1:{other.port}"
                assert not result.servers[1][0].used.cpu.keys() - {"load"}

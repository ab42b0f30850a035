"""Reading shapes: what the cases do before and while they measure."""

from __future__ import annotations

from urllib.parse import urlsplit

from tests.bench.case import Sample
from tests.bench.client import Client
from tests.bench.latency import Latencies
from tests.bench.site import Target


async def sync(target: Target, query: str, clients: int = 1, parse: bool = True) -> tuple[Sample, dict[str, float]]:
    """So many clients read a shape: what it took, and what came (``seconds``, ``rows``, ``bytes``)."""
    answer, used = await target.measured("sync", queries=[query], clients=clients, parse=parse)
    return Sample({}, 0, used, Latencies(answer["latencies"])), answer


def client_of(target: Target) -> Client:
    """A client of this server that keeps bodies."""
    address = urlsplit(target.url)
    return Client(address.hostname or "", address.port or 80)


async def whole(target: Target, query: str) -> list[bytes]:
    """The bodies of a shape, from its beginning until it is up to date."""
    client = client_of(target)
    place, bodies = "offset=-1", []
    while True:
        bodies.append(await client.get(f"/v1/shape?{query}&{place}"))
        answer = client.connection
        assert answer.status == 200, (answer.status, bodies[-1][:500])
        if answer.header("electric-up-to-date") is not None:
            answer.close()
            return bodies
        place = f"handle={answer.header('electric-handle')}&offset={answer.header('electric-offset')}"


async def end_of(target: Target, query: str) -> str:
    """``handle=…&offset=…`` of the end of a shape, which is made if need be."""
    client = client_of(target)
    place = "offset=-1"
    while True:
        await client.get(f"/v1/shape?{query}&{place}")
        answer = client.connection
        assert answer.status == 200, answer.status
        place = f"handle={answer.header('electric-handle')}&offset={answer.header('electric-offset')}"
        if answer.header("electric-up-to-date") is not None:
            answer.close()
            return place

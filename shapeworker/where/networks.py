"""inet and cidr as Postgres reads, compares and prints them.

A value is ``(family, network, bits, address)``: 4 or 6, the address without its host bits, the length of the netmask,
and the whole address, both as integers. In this order, tuples compare as Postgres compares networks.
"""

from __future__ import annotations

import re
import socket
from typing import Final

Network = tuple[int, int, int, int]

_SIZES: Final = {4: 32, 6: 128}
_OCTETS: Final = re.compile(r"(\d{1,3}(?:\.\d{1,3}){0,3})(?:/(\d{1,2}))?\Z", re.ASCII)
_GROUPS: Final = re.compile(r"([0-9a-fA-F:.]+)(?:/(0|[1-9]\d{0,2}))?\Z", re.ASCII)


def inet_input(text: str) -> Network:
    """The input function of inet. Raises ValueError."""
    if ":" in text:
        return _ipv6(text)
    octets, bits = _ipv4(text)
    if bits is None:
        if len(octets) < 4:
            raise ValueError(text)
        bits = 32
    elif bits // 8 > len(octets):
        raise ValueError(text)
    return _network(4, bits, _address(octets))


def cidr_input(text: str) -> Network:
    """The input function of cidr, whose host bits are zero. Raises ValueError."""
    if ":" in text:
        value = _ipv6(text)
    else:
        octets, bits = _ipv4(text)
        value = _network(4, _bits_of_class(octets) if bits is None else bits, _address(octets))
    if value[1] != value[3]:
        raise ValueError(text)
    return value


def read_network(text: bytes) -> Network:
    """An inet or cidr as Postgres prints it."""
    return inet_input(text.decode())


def _network(family: int, bits: int, address: int) -> Network:
    host_bits = _SIZES[family] - bits
    return family, address >> host_bits << host_bits, bits, address


def _ipv4(text: str) -> tuple[list[int], int | None]:
    match = _OCTETS.match(text)
    if match is None:
        raise ValueError(text)
    octets = [int(octet) for octet in match[1].split(".")]
    bits = None if match[2] is None else int(match[2])
    if max(octets) > 255 or (bits or 0) > 32:
        raise ValueError(text)
    return octets, bits


def _address(octets: list[int]) -> int:
    return int.from_bytes(bytes(octets).ljust(4, b"\0"))


def _bits_of_class(octets: list[int]) -> int:
    """The netmask of a cidr that does not say it: that of its class, or as many octets as there are."""
    first, given = octets[0], 8 * len(octets)
    by_class = 32 if first >= 240 else 8 if first >= 224 else 24 if first >= 192 else 16 if first >= 128 else 8
    bits = max(by_class, given)
    return 4 if bits == 8 and first == 224 else bits


def _ipv6(text: str) -> Network:
    match = _GROUPS.match(text)
    if match is None:
        raise ValueError(text)
    try:
        address = int.from_bytes(socket.inet_pton(socket.AF_INET6, match[1]))
    except OSError:
        raise ValueError(text) from None
    bits = 128 if match[2] is None else int(match[2])
    if bits > 128:
        raise ValueError(text)
    return _network(6, bits, address)


def write_inet(value: Network) -> str:
    """The output function of inet, which leaves the netmask of a single address out."""
    return host(value) if value[2] == _SIZES[value[0]] else write_network(value)


def write_network(value: Network) -> str:
    """The output function of cidr, and the cast of both types to text."""
    return f"{host(value)}/{value[2]}"


def host(value: Network) -> str:
    """``host()``: the address alone."""
    if value[0] == 4:
        return ".".join(map(str, value[3].to_bytes(4)))
    words = [value[3] >> shift & 0xFFFF for shift in range(112, -1, -16)]
    start, length = _longest_zeros(words)
    if start == 0 and (length == 6 or (length == 5 and words[5] == 0xFFFF)):
        # An IPv4 address in an IPv6 one.
        return ("::ffff:" if length == 5 else "::") + ".".join(map(str, (value[3] & 0xFFFFFFFF).to_bytes(4)))
    if length < 2:
        return ":".join(f"{word:x}" for word in words)
    before, after = words[:start], words[start + length :]
    return ":".join(f"{word:x}" for word in before) + "::" + ":".join(f"{word:x}" for word in after)


def _longest_zeros(words: list[int]) -> tuple[int, int]:
    best, start = (-1, 0), 0
    while start < len(words):
        end = start
        while end < len(words) and not words[end]:
            end += 1
        if end - start > best[1]:
            best = start, end - start
        start = end + 1
    return best


def to_cidr(value: Network) -> Network:
    """The network that an address is in."""
    return value[0], value[1], value[2], value[1]


def family(value: Network) -> int:
    """``family()``: 4 or 6."""
    return value[0]


def mask_length(value: Network) -> int:
    """``masklen()``."""
    return value[2]


def overlap(left: Network, right: Network) -> bool:
    """``&&``: one of them is the other or inside it."""
    host_bits = _SIZES[left[0]] - min(left[2], right[2])
    return left[0] == right[0] and left[3] >> host_bits == right[3] >> host_bits


def inside(left: Network, right: Network) -> bool:
    """``<<``: in the network, and not all of it."""
    return left[2] > right[2] and overlap(left, right)


def inside_or_equal(left: Network, right: Network) -> bool:
    """``<<=``."""
    return left[2] >= right[2] and overlap(left, right)

"""The layout is what docs/storage-format.md says, byte for byte, and no single flipped bit goes unnoticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.lsn import Offset
from common.shapelog import layout
from common.shapelog.layout import (
    BOUNDARY,
    COMMIT,
    NEW,
    DamagedLog,
    Header,
    Record,
    SnapshotState,
    decode_header,
    decode_record,
    encode_header,
    encode_record,
)

u64 = st.integers(0, (1 << 64) - 1)
u32 = st.integers(0, (1 << 32) - 1)
headers = st.builds(Header, st.booleans(), st.sampled_from(SnapshotState), u32)
records = st.builds(Record, u64, u64, u64, u64, u32, st.integers(1, 3), u32)


def test_header_bytes_are_the_documented_ones() -> None:
    data = encode_header(Header(ended=True, snapshot=SnapshotState.COMPLETE, chunks=0x0102))
    assert data[:24].hex() == b"GALVSHAP".hex() + "01000000" + "01000000" + "01000000" + "02010000"
    assert data[24:60] == bytes(36)
    assert len(data) == 64


def test_record_bytes_are_the_documented_ones() -> None:
    data = encode_record(0x0102, 6, 0x10000, 0x333, 5, COMMIT | BOUNDARY, 0xAABBCCDD)
    assert (
        data.hex()
        == ("02010000000000000600000000000000000001000000000033030000000000000500000003000000ddccbbaa")
        + data[-4:].hex()
    )
    assert len(data) == 48
    assert layout.record_position(0) == 64
    assert layout.record_position(3) == 64 + 3 * 48


def test_checksums_are_crc32c() -> None:
    def crc32c(data: bytes) -> int:
        crc = 0xFFFFFFFF
        for byte in data:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        return crc ^ 0xFFFFFFFF

    assert crc32c(b"123456789") == 0xE3069283
    for data in (encode_header(NEW), encode_record(1, 2, 3, 4, 5, COMMIT, 6)):
        assert int.from_bytes(data[-4:], "little") == crc32c(data[:-4])


@given(headers)
def test_header_round_trip(header: Header) -> None:
    assert decode_header(encode_header(header)) == header


@given(records, st.binary(max_size=50))
def test_record_round_trip(record: Record, before: bytes) -> None:
    assert decode_record(before + encode_record(*record), len(before)) == record
    assert record.offset == Offset(record.lsn, record.op)


@given(headers, st.integers(0, 64 * 8 - 1))
def test_flipped_header_bit_is_noticed(header: Header, bit: int) -> None:
    data = bytearray(encode_header(header))
    data[bit // 8] ^= 1 << bit % 8
    assert decode_header(bytes(data)) is None


@given(records, st.integers(0, 48 * 8 - 1))
def test_flipped_record_bit_is_noticed(record: Record, bit: int) -> None:
    data = bytearray(encode_record(*record))
    data[bit // 8] ^= 1 << bit % 8
    assert decode_record(bytes(data)) is None


def test_what_is_no_record() -> None:
    good = encode_record(1, 2, 3, 4, 5, COMMIT, 6)
    assert decode_record(good[:-1]) is None
    assert decode_record(good, 1) is None
    assert decode_record(bytes(48)) is None
    assert decode_record(encode_record(1, 2, 3, 4, 5, 0, 6)) is None
    assert decode_record(encode_record(1, 2, 3, 4, 5, 4, 6)) is None


def test_header_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "VERSION", 2)
    data = encode_header(NEW)
    monkeypatch.undo()
    with pytest.raises(DamagedLog, match="version 1"):
        decode_header(data)
    assert decode_header(b"") is None


def test_snapshot_names() -> None:
    assert layout.snapshot_name(0) == "snapshot.0000.json"
    assert layout.snapshot_name(12345) == "snapshot.12345.json"

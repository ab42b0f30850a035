"""The files of a shape: its snapshot, its log, and the index that says where the log ends (docs/storage-format.md)."""

from common.shapelog.description import Description, read_description, sync_description, write_description
from common.shapelog.files import REAL, Files
from common.shapelog.layout import DamagedLog, Header, SnapshotState
from common.shapelog.reader import LogRange, ShapeReader
from common.shapelog.snapshot import SnapshotWriter
from common.shapelog.trash import empty_trash, retire
from common.shapelog.writer import LogWriter

__all__ = [
    "REAL",
    "DamagedLog",
    "Description",
    "Files",
    "Header",
    "LogRange",
    "LogWriter",
    "ShapeReader",
    "SnapshotState",
    "SnapshotWriter",
    "empty_trash",
    "read_description",
    "retire",
    "sync_description",
    "write_description",
]

"""The settings of all processes, read from the environment under Electric's names (http-api.md 30; docs/settings.md).

Values are checked when they are read: a process either has valid settings or a `ConfigError` that names the variable.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_type_hints

import msgspec
from msgspec import Struct

from common.database_url import complete_database_url
from common.quantity import parse_boolean, parse_duration, parse_integer, parse_size

UNIX_SOCKET_PATH_BYTES = 107
"""The longest path of a Unix socket on Linux, without the final NUL."""

_IGNORED = """
    ELECTRIC_CLEANUP_INTERVAL_MS ELECTRIC_CONSUMER_GC_HEAP_THRESHOLD ELECTRIC_CONSUMER_PARTITIONS
    ELECTRIC_DROP_EMPTY_RESPONSE_SPANS ELECTRIC_EXCLUDE_SPANS ELECTRIC_EXPERIMENTAL_MAX_BATCH_SIZE
    ELECTRIC_EXPERIMENTAL_MAX_TXN_SIZE ELECTRIC_FEATURE_FLAGS ELECTRIC_FLUSH_STALL_GRACE_PERIOD ELECTRIC_HNY_API_KEY
    ELECTRIC_HNY_DATASET ELECTRIC_INSTANCE_ID ELECTRIC_LIVE_DASHBOARD_PORT ELECTRIC_LOG_COLORS ELECTRIC_LOG_OTP_REPORTS
    ELECTRIC_METRICS_SAMPLING_RATIO ELECTRIC_OTEL_DEBUG ELECTRIC_OTEL_EXPORT_PERIOD ELECTRIC_OTEL_SAMPLING_RATIO
    ELECTRIC_OTLP_ENDPOINT ELECTRIC_PERSISTENT_STATE ELECTRIC_PROCESS_SPAWN_OPTS ELECTRIC_PROFILE_WHERE_CLAUSES
    ELECTRIC_PUBLICATION_ALTER_DEBOUNCE_TIME ELECTRIC_REPLICATION_IDLE_TIMEOUT ELECTRIC_SERVICE_NAME
    ELECTRIC_SHAPE_DB_CACHE_SIZE ELECTRIC_SHAPE_DB_ENABLE_MEMORY_STATS ELECTRIC_SHAPE_DB_ENABLE_STATS
    ELECTRIC_SHAPE_DB_EXCLUSIVE_MODE ELECTRIC_SHAPE_DB_STORAGE_DIR ELECTRIC_SHAPE_DB_SYNCHRONOUS
    ELECTRIC_SHAPE_HIBERNATE_AFTER ELECTRIC_SHAPE_SUSPEND_AFTER ELECTRIC_SHAPE_SUSPEND_CONSUMER
    ELECTRIC_STACK_TELEMETRY_INIT_DELAY ELECTRIC_STATSD_HOST ELECTRIC_SUBQUERY_BUFFER_MAX_TRANSACTIONS
    ELECTRIC_SYSTEM_METRICS_POLL_INTERVAL ELECTRIC_TELEMETRY_LONG_GC_THRESHOLD
    ELECTRIC_TELEMETRY_LONG_MESSAGE_QUEUE_DISABLE_THRESHOLD ELECTRIC_TELEMETRY_LONG_MESSAGE_QUEUE_ENABLE_THRESHOLD
    ELECTRIC_TELEMETRY_LONG_SCHEDULE_THRESHOLD ELECTRIC_TELEMETRY_TOP_PROCESS_COUNT ELECTRIC_TELEMETRY_TOP_PROCESS_LIMIT
    ELECTRIC_TWEAKS_HANDLER_FULLSWEEP_AFTER ELECTRIC_TWEAKS_HTTP_API_NUM_ACCEPTORS
    ELECTRIC_TWEAKS_PROCESS_REGISTRY_PARTITIONS ELECTRIC_TWEAKS_SCHEMA_RECONCILER_PERIOD SENTRY_DSN
    """
IGNORED_VARIABLES = frozenset(_IGNORED.split())
"""Electric's variables that mean nothing here: accepted so that an environment can be taken over, and named once."""

_OTHER_VARIABLES = frozenset({"GALVANIC_PG_BIN", "GALVANIC_DEV_DIR"})


class ConfigError(Exception):
    """A setting that cannot be used; the text is one line that names the variable and what to do, without secrets."""


class Variable(NamedTuple):
    """Where a setting comes from: the first of these variables that is set and not empty. A secret is not shown."""

    names: tuple[str, ...]
    parse: Callable[[str], Any]
    secret: bool = False


def _text(*names: str, secret: bool = False) -> Variable:
    return Variable(names, str, secret)


def _boolean(name: str) -> Variable:
    return Variable((name,), parse_boolean)


def _seconds(name: str) -> Variable:
    return Variable((name,), parse_duration)


def _number(*names: str, low: int = 1, high: int | None = None) -> Variable:
    return Variable(names, partial(parse_integer, low=low, high=high))


def _port(name: str) -> Variable:
    return _number(name, high=65535)


def _path(*names: str) -> Variable:
    return Variable(names, Path)


def _choice(name: str, choices: Any) -> Variable:
    """One of the texts of a ``Literal``, in any case."""
    texts = get_args(choices)

    def parse(text: str) -> str:
        for choice in texts:
            if text.lower() == choice.lower():
                return str(choice)
        *first, last = map(repr, texts)
        raise ValueError(f"must be one of {', '.join(first)} or {last}")

    return Variable((name,), parse)


def _readable_file(path: str) -> str:
    if not os.access(path, os.R_OK):
        raise ValueError(f"names a file that cannot be read: {path}")
    return str(Path(path).absolute())


def _stream_id(text: str) -> str:
    # Postgres cuts names at 63 bytes, and slot names know no other characters.
    limit = 63 - len("electric_publication_")
    if not re.fullmatch(rf"[A-Za-z0-9_]{{1,{limit}}}", text):
        raise ValueError(f"must be 1 to {limit} letters, digits or '_', not {text!r}")
    return text.lower()


def _requests(text: str) -> dict[str, int]:
    rule = 'must be a JSON object such as {"initial": 300, "existing": 10000} with both keys'
    try:
        value = json.loads(text)
    except ValueError:
        raise ValueError(rule) from None
    if not isinstance(value, dict) or set(value) != {"initial", "existing"}:
        raise ValueError(rule)
    if any(type(limit) is not int or limit < 1 for limit in value.values()):
        raise ValueError(f"{rule} and whole numbers above zero")
    return value


Storage = Literal["FAST_FILE", "MEMORY"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]


class Settings(Struct, kw_only=True):
    """All settings. Durations are seconds and sizes bytes, unless the name says otherwise; paths are absolute.

    Made in Python or by :func:`load_settings`. Raises ``ValueError`` if they do not go together.
    """

    database_url: Annotated[str, _text("DATABASE_URL", secret=True)]
    pooled_database_url: Annotated[
        str, _text("ELECTRIC_POOLED_DATABASE_URL", "ELECTRIC_QUERY_DATABASE_URL", secret=True)
    ] = ""
    database_use_ipv6: Annotated[bool, _boolean("ELECTRIC_DATABASE_USE_IPV6")] = False
    database_ca_file: Annotated[str | None, Variable(("ELECTRIC_DATABASE_CA_CERTIFICATE_FILE",), _readable_file)] = None
    db_pool_size: Annotated[int, _number("ELECTRIC_DB_POOL_SIZE")] = 20
    tcp_keepalive_idle: Annotated[float | None, _seconds("ELECTRIC_DATABASE_TCP_KEEPALIVE_IDLE")] = None
    tcp_keepalive_interval: Annotated[float | None, _seconds("ELECTRIC_DATABASE_TCP_KEEPALIVE_INTERVAL")] = None
    tcp_keepalive_count: Annotated[int | None, _number("ELECTRIC_DATABASE_TCP_KEEPALIVE_COUNT")] = None
    tcp_user_timeout: Annotated[float | None, _seconds("ELECTRIC_DATABASE_TCP_USER_TIMEOUT")] = None

    stream_id: Annotated[str, Variable(("ELECTRIC_REPLICATION_STREAM_ID",), _stream_id)] = "default"
    stack_id: Annotated[str, _text("ELECTRIC_DATABASE_ID")] = "single_stack"
    temporary_slot: Annotated[bool, _boolean("CLEANUP_REPLICATION_SLOTS_ON_SHUTDOWN")] = False
    temporary_slot_random_name: Annotated[bool, _boolean("ELECTRIC_TEMPORARY_REPLICATION_SLOT_USE_RANDOM_NAME")] = False
    manual_table_publishing: Annotated[bool, _boolean("ELECTRIC_MANUAL_TABLE_PUBLISHING")] = False
    publication_refresh_period: Annotated[float, _seconds("ELECTRIC_TWEAKS_PUBLICATION_REFRESH_PERIOD")] = 60.0

    secret: Annotated[str | None, _text("ELECTRIC_SECRET", secret=True)] = None
    insecure: Annotated[bool, _boolean("ELECTRIC_INSECURE")] = False
    port: Annotated[int, _port("ELECTRIC_PORT")] = 3000
    listen_on_ipv6: Annotated[bool, _boolean("ELECTRIC_LISTEN_ON_IPV6")] = False
    long_poll_timeout_ms: Annotated[int, _number("ELECTRIC_LONG_POLL_TIMEOUT")] = 20_000
    cache_max_age: Annotated[int, _number("ELECTRIC_CACHE_MAX_AGE", low=0)] = 60
    cache_stale_age: Annotated[int, _number("ELECTRIC_CACHE_STALE_AGE", low=0)] = 300
    compression: Annotated[bool, _boolean("GALVANIC_COMPRESSION")] = True
    max_concurrent_requests: Annotated[dict[str, int], Variable(("ELECTRIC_MAX_CONCURRENT_REQUESTS",), _requests)] = (
        msgspec.field(default_factory=lambda: {"initial": 300, "existing": 10_000})
    )
    integration_testing: Annotated[bool, _boolean("ELECTRIC_ENABLE_INTEGRATION_TESTING")] = False
    tcp_send_timeout: Annotated[float, _seconds("ELECTRIC_TCP_SEND_TIMEOUT")] = 30.0
    tcp_read_timeout: Annotated[float, _seconds("ELECTRIC_TCP_READ_TIMEOUT")] = 60.0
    conn_max_requests: Annotated[int, _number("ELECTRIC_TWEAKS_CONN_MAX_REQUESTS")] = 50
    prometheus_port: Annotated[int | None, _port("ELECTRIC_PROMETHEUS_PORT")] = None

    storage: Annotated[Storage, _choice("ELECTRIC_STORAGE", Storage)] = "FAST_FILE"
    storage_dir: Annotated[Path, _path("ELECTRIC_STORAGE_DIR", "STORAGE_DIR")] = Path("persistent")
    chunk_bytes: Annotated[int, Variable(("ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD",), parse_size)] = 10_485_760
    max_shapes: Annotated[int | None, _number("ELECTRIC_MAX_SHAPES", "ELECTRIC_EXPERIMENTAL_MAX_SHAPES")] = None
    partitions: Annotated[int, _number("GALVANIC_PARTITIONS", high=1024)] = 32

    workers: Annotated[int, _number("GALVANIC_WORKERS", high=64)] = 2
    gateways: Annotated[int, _number("GALVANIC_GATEWAYS", high=64)] = 1
    run_dir: Annotated[Path, _path("GALVANIC_RUN_DIR")] = Path("run")
    stream_endpoint: Annotated[str, _text("GALVANIC_STREAM_ENDPOINT")] = ""
    status_endpoint: Annotated[str, _text("GALVANIC_STATUS_ENDPOINT")] = ""
    metrics_endpoint: Annotated[str, _text("GALVANIC_METRICS_ENDPOINT")] = ""
    worker_host: Annotated[str | None, _text("GALVANIC_WORKER_HOST")] = None
    log_level: Annotated[LogLevel, _choice("ELECTRIC_LOG_LEVEL", LogLevel)] = "info"
    log_format: Annotated[LogFormat, _choice("GALVANIC_LOG_FORMAT", LogFormat)] = "text"

    ignored: list[str] = []
    """Variables that are set in the environment but have no meaning for Galvanic, by name."""
    unknown: list[str] = []
    """ELECTRIC_* and GALVANIC_* variables nobody reads, each with the name that was perhaps meant."""
    random_suffix: str = msgspec.field(default_factory=lambda: secrets.token_hex(8))

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """What may be shown. Of a Struct, tools that format tracebacks would ask for it all, secrets included."""
        return [(name, getattr(self, name)) for name, variable in _VARIABLES.items() if not variable.secret]

    @property
    def slot_name(self) -> str:
        """The replication slot. A random one differs between processes: only the ingester may ask."""
        random = self.temporary_slot and self.temporary_slot_random_name
        return f"electric_slot_{self.random_suffix if random else self.stream_id}"

    @property
    def pooled_setting(self) -> str:
        """The variable that `pooled_database_url` comes from, to be named when it leads nowhere."""
        return "DATABASE_URL" if self.pooled_database_url == self.database_url else "ELECTRIC_POOLED_DATABASE_URL"

    @property
    def has_pooler(self) -> bool:
        """Whether queries go to another place than replication, so that each transaction may get another session."""
        return self.pooled_database_url != self.database_url

    @property
    def publication_name(self) -> str:
        """The publication that Galvanic adds tables to."""
        return f"electric_publication_{self.stream_id}"

    def worker_requests_endpoint(self, worker_id: str) -> str:
        """Where this worker binds its ROUTER for gateways; with GALVANIC_WORKER_HOST a tcp wildcard port.

        What was bound (`LAST_ENDPOINT`) is what the worker announces in `Hello`.
        """
        return self._worker_endpoint(worker_id, "requests")

    def worker_events_endpoint(self, worker_id: str) -> str:
        """Where this worker binds its XPUB, like `worker_requests_endpoint`."""
        return self._worker_endpoint(worker_id, "events")

    def _worker_endpoint(self, worker_id: str, kind: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", worker_id):
            raise ConfigError(f"the worker id {worker_id!r} must be 1 to 32 letters, digits, '-' or '_'")
        if self.worker_host:
            return f"tcp://{self.worker_host}:*"
        try:
            return _ipc_endpoint(self.run_dir, f"{worker_id}-{kind}.sock")
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def __post_init__(self) -> None:
        self.storage_dir, self.run_dir = self.storage_dir.absolute(), self.run_dir.absolute()
        if self.secret and self.insecure:
            raise ValueError("ELECTRIC_SECRET and ELECTRIC_INSECURE=true exclude each other; unset one of them")
        if not self.secret and not self.insecure:
            raise ValueError(
                "ELECTRIC_SECRET must be set, or ELECTRIC_INSECURE=true to serve everybody without a secret"
            )
        if self.temporary_slot_random_name and not self.temporary_slot:
            raise ValueError(
                "ELECTRIC_TEMPORARY_REPLICATION_SLOT_USE_RANDOM_NAME needs CLEANUP_REPLICATION_SLOTS_ON_SHUTDOWN=true"
            )
        pooled = self.pooled_database_url or self.database_url
        self.database_url = self._completed("DATABASE_URL", self.database_url)
        self.pooled_database_url = self._completed("ELECTRIC_POOLED_DATABASE_URL", pooled)
        # supervisord makes its socket under a longer, temporary name first.
        _ipc_endpoint(self.run_dir, "supervisor.sock.4194304")
        self.stream_endpoint = _checked_endpoint(
            "GALVANIC_STREAM_ENDPOINT", self.stream_endpoint or _ipc_endpoint(self.run_dir, "stream.sock")
        )
        self.status_endpoint = _checked_endpoint(
            "GALVANIC_STATUS_ENDPOINT", self.status_endpoint or _ipc_endpoint(self.run_dir, "status.sock")
        )
        self.metrics_endpoint = _checked_endpoint(
            "GALVANIC_METRICS_ENDPOINT", self.metrics_endpoint or _ipc_endpoint(self.run_dir, "metrics.sock")
        )

    def _completed(self, variable: str, url: str) -> str:
        def rounded(seconds: float | None) -> str | None:
            return None if seconds is None else str(max(1, round(seconds)))

        options = {
            "keepalives_idle": rounded(self.tcp_keepalive_idle),
            "keepalives_interval": rounded(self.tcp_keepalive_interval),
            "keepalives_count": None if self.tcp_keepalive_count is None else str(self.tcp_keepalive_count),
            "tcp_user_timeout": None if self.tcp_user_timeout is None else str(round(self.tcp_user_timeout * 1000)),
        }
        try:
            return complete_database_url(url, self.database_ca_file, options)
        except ValueError as error:
            raise ValueError(f"{variable} {error}") from None


_VARIABLES: Final[dict[str, Variable]] = {
    name: variable
    for name, hint in get_type_hints(Settings, include_extras=True).items()
    for variable in getattr(hint, "__metadata__", ())
}


def load_settings() -> Settings:
    """The settings of this process's environment. Raises ConfigError for the first variable that cannot be used."""
    environment = {name: value for name, value in os.environ.items() if value}
    if "DATABASE_URL" not in environment:
        if "DATABASE_URL" in os.environ:
            raise ConfigError("DATABASE_URL must not be empty; set it or unset it")
        raise ConfigError(
            "DATABASE_URL is not set; set it to postgresql://USER:PASSWORD@HOST:5432/DATABASE, or run "
            "'galvanic up', which starts a Postgres of its own when it is missing"
        )
    try:
        settings = Settings(**_parsed(environment))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    names = sorted(environment)
    settings.ignored = [name for name in names if name in IGNORED_VARIABLES]
    if settings.storage == "MEMORY":
        settings.ignored.append("ELECTRIC_STORAGE")
    settings.unknown = [
        _with_suggestion(name)
        for name in names
        if name.startswith(("ELECTRIC_", "GALVANIC_"))
        and name not in IGNORED_VARIABLES | _OTHER_VARIABLES
        and name not in variable_names()
    ]
    return settings


def variable_names() -> set[str]:
    """Every variable that is read into `Settings`."""
    return {name for variable in _VARIABLES.values() for name in variable.names}


def _parsed(environment: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for field, variable in _VARIABLES.items():
        name = next((name for name in variable.names if name in environment), None)
        if name is not None:
            try:
                values[field] = variable.parse(environment[name])
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
    return values


def _with_suggestion(name: str) -> str:
    close = difflib.get_close_matches(name, variable_names(), n=1, cutoff=0.85)
    return f"{name} (did you mean {close[0]}?)" if close else name


def _ipc_endpoint(run_dir: Path, name: str) -> str:
    path = run_dir / name
    if len(os.fsencode(path)) > UNIX_SOCKET_PATH_BYTES:
        raise ValueError(
            f"GALVANIC_RUN_DIR {run_dir} is too long for the path of a Unix socket (at most {UNIX_SOCKET_PATH_BYTES} "
            f"bytes with the file name); set it to a shorter directory such as /tmp/galvanic"
        )
    return f"ipc://{path}"


def _checked_endpoint(variable: str, endpoint: str) -> str:
    if endpoint.startswith("ipc:///"):
        if len(os.fsencode(endpoint.removeprefix("ipc://"))) > UNIX_SOCKET_PATH_BYTES:
            raise ValueError(f"{variable} is longer than the {UNIX_SOCKET_PATH_BYTES} bytes of a Unix socket's path")
    elif not re.fullmatch(r"tcp://[^/\s]+:[0-9]{1,5}", endpoint):
        raise ValueError(f"{variable} must be ipc:///PATH or tcp://HOST:PORT, not {endpoint!r}")
    return endpoint

"""The settings of all processes, read from the environment under Electric's names (http-api.md 30; docs/settings.md).

Values are checked when they are read: a process either has valid settings or a `ConfigError` that names the variable.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

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


def _parsed(parse: Callable[[str], Any]) -> BeforeValidator:
    """Parses what comes as text from the environment; values given in Python are left to their type."""
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


def _number(low: int, high: int | None = None) -> BeforeValidator:
    return BeforeValidator(lambda value: parse_integer(str(value), low, high))


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


Boolean = Annotated[bool, _parsed(parse_boolean)]
Seconds = Annotated[float, _parsed(parse_duration)]
Bytes = Annotated[int, _parsed(parse_size)]
Port = Annotated[int, _number(1, 65535)]
Count = Annotated[int, _number(1)]
Natural = Annotated[int, _number(0)]


def _from(*names: str, default: Any = None, shown: bool = True) -> Any:
    """A field read from the first of these variables that is set; `shown=False` keeps it out of repr."""
    return Field(default=default, validation_alias=AliasChoices(*names), repr=shown)


class Settings(BaseSettings):
    """All settings. Durations are seconds and sizes bytes, unless the name says otherwise; paths are absolute."""

    model_config = SettingsConfigDict(
        case_sensitive=True, env_ignore_empty=True, extra="ignore", populate_by_name=True, hide_input_in_errors=True
    )

    database_url: str = Field(validation_alias=AliasChoices("DATABASE_URL"), repr=False)
    pooled_database_url: str = _from(
        "ELECTRIC_POOLED_DATABASE_URL", "ELECTRIC_QUERY_DATABASE_URL", default="", shown=False
    )
    database_use_ipv6: Boolean = _from("ELECTRIC_DATABASE_USE_IPV6", default=False)
    database_ca_file: str | None = _from("ELECTRIC_DATABASE_CA_CERTIFICATE_FILE")
    db_pool_size: Count = _from("ELECTRIC_DB_POOL_SIZE", default=20)
    tcp_keepalive_idle: Seconds | None = _from("ELECTRIC_DATABASE_TCP_KEEPALIVE_IDLE")
    tcp_keepalive_interval: Seconds | None = _from("ELECTRIC_DATABASE_TCP_KEEPALIVE_INTERVAL")
    tcp_keepalive_count: Count | None = _from("ELECTRIC_DATABASE_TCP_KEEPALIVE_COUNT")
    tcp_user_timeout: Seconds | None = _from("ELECTRIC_DATABASE_TCP_USER_TIMEOUT")

    stream_id: str = _from("ELECTRIC_REPLICATION_STREAM_ID", default="default")
    stack_id: str = _from("ELECTRIC_DATABASE_ID", default="single_stack")
    temporary_slot: Boolean = _from("CLEANUP_REPLICATION_SLOTS_ON_SHUTDOWN", default=False)
    temporary_slot_random_name: Boolean = _from("ELECTRIC_TEMPORARY_REPLICATION_SLOT_USE_RANDOM_NAME", default=False)
    manual_table_publishing: Boolean = _from("ELECTRIC_MANUAL_TABLE_PUBLISHING", default=False)
    publication_refresh_period: Seconds = _from("ELECTRIC_TWEAKS_PUBLICATION_REFRESH_PERIOD", default=60.0)

    secret: str | None = _from("ELECTRIC_SECRET", shown=False)
    insecure: Boolean = _from("ELECTRIC_INSECURE", default=False)
    port: Port = _from("ELECTRIC_PORT", default=3000)
    listen_on_ipv6: Boolean = _from("ELECTRIC_LISTEN_ON_IPV6", default=False)
    long_poll_timeout_ms: Count = _from("ELECTRIC_LONG_POLL_TIMEOUT", default=20_000)
    cache_max_age: Natural = _from("ELECTRIC_CACHE_MAX_AGE", default=60)
    cache_stale_age: Natural = _from("ELECTRIC_CACHE_STALE_AGE", default=300)
    compression: Boolean = _from("GALVANIC_COMPRESSION", default=True)
    max_concurrent_requests: Annotated[dict[str, int], NoDecode, _parsed(_requests)] = _from(
        "ELECTRIC_MAX_CONCURRENT_REQUESTS", default={"initial": 300, "existing": 10_000}
    )
    integration_testing: Boolean = _from("ELECTRIC_ENABLE_INTEGRATION_TESTING", default=False)
    tcp_send_timeout: Seconds = _from("ELECTRIC_TCP_SEND_TIMEOUT", default=30.0)
    tcp_read_timeout: Seconds = _from("ELECTRIC_TCP_READ_TIMEOUT", default=60.0)
    conn_max_requests: Count = _from("ELECTRIC_TWEAKS_CONN_MAX_REQUESTS", default=50)
    prometheus_port: Port | None = _from("ELECTRIC_PROMETHEUS_PORT")

    storage: Literal["FAST_FILE", "MEMORY"] = _from("ELECTRIC_STORAGE", default="FAST_FILE")
    storage_dir: Path = _from("ELECTRIC_STORAGE_DIR", "STORAGE_DIR", default=Path("persistent"))
    chunk_bytes: Bytes = _from("ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD", default=10_485_760)
    max_shapes: Count | None = _from("ELECTRIC_MAX_SHAPES", "ELECTRIC_EXPERIMENTAL_MAX_SHAPES")
    partitions: Annotated[int, _number(1, 1024)] = _from("GALVANIC_PARTITIONS", default=32)

    workers: Annotated[int, _number(1, 64)] = _from("GALVANIC_WORKERS", default=2)
    gateways: Annotated[int, _number(1, 64)] = _from("GALVANIC_GATEWAYS", default=1)
    run_dir: Path = _from("GALVANIC_RUN_DIR", default=Path("run"))
    stream_endpoint: str = _from("GALVANIC_STREAM_ENDPOINT", default="")
    status_endpoint: str = _from("GALVANIC_STATUS_ENDPOINT", default="")
    metrics_endpoint: str = _from("GALVANIC_METRICS_ENDPOINT", default="")
    worker_host: str | None = _from("GALVANIC_WORKER_HOST")
    log_level: Literal["debug", "info", "warning", "error"] = _from("ELECTRIC_LOG_LEVEL", default="info")
    log_format: Literal["text", "json"] = _from("GALVANIC_LOG_FORMAT", default="text")

    _random_suffix: str = PrivateAttr(default_factory=lambda: secrets.token_hex(8))
    _ignored: list[str] = PrivateAttr(default_factory=list)
    _unknown: list[str] = PrivateAttr(default_factory=list)

    @property
    def ignored(self) -> list[str]:
        """Variables that are set in the environment but have no meaning for Galvanic, by name."""
        return self._ignored

    @property
    def unknown(self) -> list[str]:
        """ELECTRIC_* and GALVANIC_* variables nobody reads, each with the name that was perhaps meant."""
        return self._unknown

    @property
    def slot_name(self) -> str:
        """The replication slot. A random one differs between processes: only the ingester may ask."""
        random = self.temporary_slot and self.temporary_slot_random_name
        return f"electric_slot_{self._random_suffix if random else self.stream_id}"

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

    @field_validator("database_ca_file")
    @classmethod
    def _check_ca_file(cls, path: str | None) -> str | None:
        if path is not None and not os.access(path, os.R_OK):
            raise ValueError(f"names a file that cannot be read: {path}")
        return path and str(Path(path).absolute())

    @field_validator("stream_id")
    @classmethod
    def _check_stream_id(cls, stream_id: str) -> str:
        # Postgres cuts names at 63 bytes, and slot names know no other characters.
        limit = 63 - len("electric_publication_")
        if not re.fullmatch(rf"[A-Za-z0-9_]{{1,{limit}}}", stream_id):
            raise ValueError(f"must be 1 to {limit} letters, digits or '_', not {stream_id!r}")
        return stream_id.lower()

    @field_validator("log_level", mode="before")
    @classmethod
    def _fold_log_level(cls, level: object) -> object:
        return level.lower() if isinstance(level, str) else level

    @field_validator("storage_dir", "run_dir")
    @classmethod
    def _make_absolute(cls, path: Path) -> Path:
        return path.absolute()

    @model_validator(mode="after")
    def _complete(self) -> Self:
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
        return self

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


def load_settings() -> Settings:
    """The settings of this process's environment. Raises ConfigError for the first variable that cannot be used."""
    if "DATABASE_URL" not in os.environ:
        raise ConfigError(
            "DATABASE_URL is not set; set it to postgresql://USER:PASSWORD@HOST:5432/DATABASE, or run "
            "'galvanic up', which starts a Postgres of its own when it is missing"
        )
    try:
        settings = Settings()  # type: ignore[call-arg]
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None
    names = sorted(name for name, value in os.environ.items() if value)
    settings._ignored = [name for name in names if name in IGNORED_VARIABLES]
    if settings.storage == "MEMORY":
        settings._ignored.append("ELECTRIC_STORAGE")
    settings._unknown = [
        _with_suggestion(name)
        for name in names
        if name.startswith(("ELECTRIC_", "GALVANIC_"))
        and name not in IGNORED_VARIABLES | _OTHER_VARIABLES
        and name not in variable_names()
    ]
    return settings


def variable_names() -> set[str]:
    """Every variable that is read into `Settings`."""
    return {name for field in Settings.model_fields.values() for name in _aliases(field.validation_alias)}


def _aliases(alias: object) -> list[str]:
    return [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else []


def _with_suggestion(name: str) -> str:
    close = difflib.get_close_matches(name, variable_names(), n=1, cutoff=0.85)
    return f"{name} (did you mean {close[0]}?)" if close else name


def _one_line(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_input=False)[0]
    message = detail["msg"].removeprefix("Value error, ").replace("\n", " ")
    if not detail["loc"]:
        return message
    variable = str(detail["loc"][0])
    if variable in Settings.model_fields:
        variable = next(iter(_aliases(Settings.model_fields[variable].validation_alias)), variable)
    if detail["type"] == "missing":
        return f"{variable} must not be empty; set it or unset it"
    if detail["type"] == "literal_error":
        return f"{variable} must be one of {detail['ctx']['expected']}"
    if detail["type"] == "value_error":
        return f"{variable} {message}"
    return f"{variable} is not valid: {message}"


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

from __future__ import annotations

import os
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from common.config import IGNORED_VARIABLES, ConfigError, Settings, load_settings, variable_names

URL = "postgresql://ann:hunter22@db.example:5433/shop"

# One valid value for every variable of http-api.md 30.
ELECTRIC_EXAMPLES = {
    "DATABASE_URL": URL,
    "ELECTRIC_POOLED_DATABASE_URL": "postgres://ann:hunter22@pool.example/shop",
    "ELECTRIC_QUERY_DATABASE_URL": "postgres://ann:hunter22@pool.example/shop",
    "ELECTRIC_DATABASE_USE_IPV6": "true",
    "ELECTRIC_DB_POOL_SIZE": "12",
    "ELECTRIC_DATABASE_TCP_KEEPALIVE_IDLE": "30s",
    "ELECTRIC_DATABASE_TCP_KEEPALIVE_INTERVAL": "10s",
    "ELECTRIC_DATABASE_TCP_KEEPALIVE_COUNT": "3",
    "ELECTRIC_DATABASE_TCP_USER_TIMEOUT": "1m",
    "ELECTRIC_REPLICATION_STREAM_ID": "blue",
    "CLEANUP_REPLICATION_SLOTS_ON_SHUTDOWN": "true",
    "ELECTRIC_TEMPORARY_REPLICATION_SLOT_USE_RANDOM_NAME": "true",
    "ELECTRIC_REPLICATION_IDLE_TIMEOUT": "60s",
    "ELECTRIC_MANUAL_TABLE_PUBLISHING": "true",
    "ELECTRIC_SECRET": "s3cr3t-s3cr3t",
    "ELECTRIC_INSECURE": "false",
    "ELECTRIC_PORT": "4000",
    "ELECTRIC_LISTEN_ON_IPV6": "1",
    "ELECTRIC_LONG_POLL_TIMEOUT": "15000",
    "ELECTRIC_CACHE_MAX_AGE": "0",
    "ELECTRIC_CACHE_STALE_AGE": "10",
    "ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD": "2MiB",
    "ELECTRIC_MAX_CONCURRENT_REQUESTS": '{"initial": 3, "existing": 4}',
    "ELECTRIC_MAX_SHAPES": "100",
    "ELECTRIC_EXPERIMENTAL_MAX_SHAPES": "100",
    "ELECTRIC_ENABLE_INTEGRATION_TESTING": "TRUE",
    "ELECTRIC_TCP_SEND_TIMEOUT": "20s",
    "ELECTRIC_TCP_READ_TIMEOUT": "1500",
    "ELECTRIC_TWEAKS_CONN_MAX_REQUESTS": "7",
    "ELECTRIC_TWEAKS_HTTP_API_NUM_ACCEPTORS": "100",
    "ELECTRIC_TWEAKS_HANDLER_FULLSWEEP_AFTER": "20",
    "ELECTRIC_FEATURE_FLAGS": "a,b",
    "ELECTRIC_STORAGE": "MEMORY",
    "ELECTRIC_STORAGE_DIR": "/data/shapes",
    "ELECTRIC_PERSISTENT_STATE": "FILE",
    "ELECTRIC_SHAPE_DB_STORAGE_DIR": "/data/db",
    "ELECTRIC_SHAPE_DB_EXCLUSIVE_MODE": "true",
    "ELECTRIC_SHAPE_DB_SYNCHRONOUS": "OFF",
    "ELECTRIC_SHAPE_DB_CACHE_SIZE": "4096KiB",
    "ELECTRIC_SHAPE_DB_ENABLE_STATS": "true",
    "ELECTRIC_SHAPE_DB_ENABLE_MEMORY_STATS": "true",
    "ELECTRIC_SHAPE_HIBERNATE_AFTER": "30s",
    "ELECTRIC_SHAPE_SUSPEND_CONSUMER": "false",
    "ELECTRIC_SHAPE_SUSPEND_AFTER": "10m",
    "ELECTRIC_FLUSH_STALL_GRACE_PERIOD": "1m",
    "ELECTRIC_SUBQUERY_BUFFER_MAX_TRANSACTIONS": "1000",
    "ELECTRIC_CLEANUP_INTERVAL_MS": "10s",
    "ELECTRIC_CONSUMER_PARTITIONS": "4",
    "ELECTRIC_CONSUMER_GC_HEAP_THRESHOLD": "4",
    "ELECTRIC_PROCESS_SPAWN_OPTS": "{}",
    "ELECTRIC_PUBLICATION_ALTER_DEBOUNCE_TIME": "5ms",
    "ELECTRIC_TWEAKS_PUBLICATION_REFRESH_PERIOD": "2 min",
    "ELECTRIC_TWEAKS_SCHEMA_RECONCILER_PERIOD": "60s",
    "ELECTRIC_TWEAKS_PROCESS_REGISTRY_PARTITIONS": "4",
    "ELECTRIC_EXPERIMENTAL_MAX_TXN_SIZE": "262144000",
    "ELECTRIC_EXPERIMENTAL_MAX_BATCH_SIZE": "100",
    "ELECTRIC_DATABASE_ID": "stack-1",
    "ELECTRIC_INSTANCE_ID": "3c7b",
    "ELECTRIC_SERVICE_NAME": "electric",
    "ELECTRIC_LOG_LEVEL": "WARNING",
    "ELECTRIC_LOG_COLORS": "true",
    "ELECTRIC_LOG_OTP_REPORTS": "false",
    "ELECTRIC_PROFILE_WHERE_CLAUSES": "false",
    "ELECTRIC_PROMETHEUS_PORT": "9090",
    "ELECTRIC_LIVE_DASHBOARD_PORT": "8080",
    "ELECTRIC_STATSD_HOST": "localhost",
    "ELECTRIC_OTLP_ENDPOINT": "http://localhost:4318",
    "ELECTRIC_HNY_API_KEY": "k",
    "ELECTRIC_HNY_DATASET": "d",
    "SENTRY_DSN": "https://k@sentry.example/1",
    "ELECTRIC_OTEL_DEBUG": "false",
    "ELECTRIC_OTEL_SAMPLING_RATIO": "0.01",
    "ELECTRIC_METRICS_SAMPLING_RATIO": "1",
    "ELECTRIC_OTEL_EXPORT_PERIOD": "30s",
    "ELECTRIC_SYSTEM_METRICS_POLL_INTERVAL": "5s",
    "ELECTRIC_STACK_TELEMETRY_INIT_DELAY": "0s",
    "ELECTRIC_DROP_EMPTY_RESPONSE_SPANS": "false",
    "ELECTRIC_EXCLUDE_SPANS": "a,b",
    "ELECTRIC_TELEMETRY_TOP_PROCESS_LIMIT": "count:5",
    "ELECTRIC_TELEMETRY_TOP_PROCESS_COUNT": "5",
    "ELECTRIC_TELEMETRY_LONG_GC_THRESHOLD": "500",
    "ELECTRIC_TELEMETRY_LONG_SCHEDULE_THRESHOLD": "500",
    "ELECTRIC_TELEMETRY_LONG_MESSAGE_QUEUE_ENABLE_THRESHOLD": "20",
    "ELECTRIC_TELEMETRY_LONG_MESSAGE_QUEUE_DISABLE_THRESHOLD": "0",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment with the least that is valid."""
    for name in list(os.environ):
        if name.startswith(("ELECTRIC_", "GALVANIC_")) or name in ("DATABASE_URL", "STORAGE_DIR", "SENTRY_DSN"):
            monkeypatch.delenv(name)
    # Not the test's own directory: its path may be too long for a socket.
    monkeypatch.chdir("/")
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv("ELECTRIC_INSECURE", "true")


def with_environment(monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def error_of(monkeypatch: pytest.MonkeyPatch, **values: str) -> str:
    with pytest.raises(ConfigError) as caught:
        with_environment(monkeypatch, **values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_those_of_the_reference() -> None:
    settings = load_settings()
    assert settings.port == 3000
    assert settings.storage_dir == Path("/persistent")
    assert settings.slot_name == "electric_slot_default"
    assert settings.publication_name == "electric_publication_default"
    assert settings.db_pool_size == 20
    assert settings.chunk_bytes == 10_485_760
    assert settings.long_poll_timeout_ms == 20_000
    assert (settings.cache_max_age, settings.cache_stale_age) == (60, 300)
    assert settings.max_concurrent_requests == {"initial": 300, "existing": 10_000}
    assert (settings.tcp_send_timeout, settings.tcp_read_timeout) == (30.0, 60.0)
    assert settings.conn_max_requests == 50
    assert settings.max_shapes is None
    assert settings.pooled_database_url == settings.database_url
    assert settings.partitions == 32
    assert settings.ignored == []
    assert settings.unknown == []


def test_every_variable_of_the_reference_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = with_environment(monkeypatch, **ELECTRIC_EXAMPLES)
    assert settings.unknown == []
    assert set(settings.ignored) == (IGNORED_VARIABLES & set(ELECTRIC_EXAMPLES)) | {"ELECTRIC_STORAGE"}
    assert settings.port == 4000
    assert settings.listen_on_ipv6
    assert settings.integration_testing
    assert settings.chunk_bytes == 2 * 1024**2
    assert settings.tcp_read_timeout == 1.5
    assert settings.publication_refresh_period == 120.0
    assert settings.max_concurrent_requests == {"initial": 3, "existing": 4}
    assert settings.log_level == "warning"
    assert settings.storage_dir == Path("/data/shapes")
    assert conninfo_to_dict(settings.pooled_database_url)["host"] == "pool.example"
    assert settings.slot_name.startswith("electric_slot_")
    assert settings.slot_name != "electric_slot_blue"
    assert settings.publication_name == "electric_publication_blue"


def test_every_ignored_variable_is_in_the_table() -> None:
    assert set(ELECTRIC_EXAMPLES) >= IGNORED_VARIABLES
    assert not IGNORED_VARIABLES & variable_names()


def test_every_variable_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs/settings.md").read_text()
    names = variable_names() | IGNORED_VARIABLES | {"GALVANIC_PG_BIN", "GALVANIC_DEV_DIR"}
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    ("text", "value"), [("false", False), ("FALSE", False), ("0", False), ("", False), ("no", True)]
)
def test_booleans(monkeypatch: pytest.MonkeyPatch, text: str, value: bool) -> None:
    assert with_environment(monkeypatch, ELECTRIC_MANUAL_TABLE_PUBLISHING=text).manual_table_publishing is value


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250", 0.25),
        ("5ms", 0.005),
        ("5msec", 0.005),
        ("2s", 2),
        ("2sec", 2),
        ("3m", 180),
        ("3 min", 180),
        ("1.5s", 1.5),
    ],
)
def test_durations(monkeypatch: pytest.MonkeyPatch, text: str, seconds: float) -> None:
    assert with_environment(monkeypatch, ELECTRIC_TCP_SEND_TIMEOUT=text).tcp_send_timeout == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["0", "0s", "-1s", "soon", "5h", "s"])
def test_a_wrong_duration_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    error = error_of(monkeypatch, ELECTRIC_TCP_SEND_TIMEOUT=text)
    assert error.startswith("ELECTRIC_TCP_SEND_TIMEOUT must be a duration")
    assert repr(text) in error


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000", 1000),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("2MB", 2_000_000),
        ("2MiB", 2_097_152),
        ("1GB", 10**9),
        ("1GiB", 2**30),
    ],
)
def test_sizes(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    assert with_environment(monkeypatch, ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD=text).chunk_bytes == size


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("ELECTRIC_PORT", "99999", "ELECTRIC_PORT must be a whole number from 1 to 65535, not '99999'"),
        ("ELECTRIC_PORT", "http", "ELECTRIC_PORT must be a whole number from 1 to 65535, not 'http'"),
        ("ELECTRIC_DB_POOL_SIZE", "0", "ELECTRIC_DB_POOL_SIZE must be a whole number of at least 1"),
        ("ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD", "10 apples", "ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD must be a size"),
        ("ELECTRIC_MAX_CONCURRENT_REQUESTS", "{}", "ELECTRIC_MAX_CONCURRENT_REQUESTS must be a JSON object"),
        ("ELECTRIC_MAX_CONCURRENT_REQUESTS", "[", "ELECTRIC_MAX_CONCURRENT_REQUESTS must be a JSON object"),
        ("ELECTRIC_STORAGE", "MIXED_DISK", "ELECTRIC_STORAGE must be one of 'FAST_FILE' or 'MEMORY'"),
        ("ELECTRIC_LOG_LEVEL", "loud", "ELECTRIC_LOG_LEVEL must be one of"),
        ("ELECTRIC_REPLICATION_STREAM_ID", "a-b", "ELECTRIC_REPLICATION_STREAM_ID must be 1 to 42 letters"),
        ("ELECTRIC_REPLICATION_STREAM_ID", "x" * 43, "ELECTRIC_REPLICATION_STREAM_ID must be 1 to 42 letters"),
        ("ELECTRIC_DATABASE_CA_CERTIFICATE_FILE", "/no/such", "ELECTRIC_DATABASE_CA_CERTIFICATE_FILE names a file"),
        ("ELECTRIC_POOLED_DATABASE_URL", "mysql://a@b/c", "ELECTRIC_POOLED_DATABASE_URL must start with postgresql://"),
        ("ELECTRIC_SECRET", "abc", "ELECTRIC_SECRET and ELECTRIC_INSECURE=true exclude each other"),
        ("ELECTRIC_INSECURE", "false", "ELECTRIC_SECRET must be set, or ELECTRIC_INSECURE=true"),
        (
            "ELECTRIC_TEMPORARY_REPLICATION_SLOT_USE_RANDOM_NAME",
            "1",
            "ELECTRIC_TEMPORARY_REPLICATION_SLOT_USE_RANDOM_NAME",
        ),
        ("GALVANIC_WORKERS", "0", "GALVANIC_WORKERS must be a whole number from 1 to 64"),
        ("GALVANIC_STREAM_ENDPOINT", "udp://x:1", "GALVANIC_STREAM_ENDPOINT must be ipc:///PATH or tcp://HOST:PORT"),
        ("GALVANIC_STATUS_ENDPOINT", "ipc:///" + "x" * 120, "GALVANIC_STATUS_ENDPOINT is longer than the 107 bytes"),
        ("GALVANIC_RUN_DIR", "/" + "x" * 100, "GALVANIC_RUN_DIR /xxx"),
    ],
)
def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: str) -> None:
    assert error_of(monkeypatch, **{variable: value}).startswith(expected)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", "must not be empty"),
        ("mysql://ann:hunter22@h/d", "must start with postgresql://"),
        ("//ann:hunter22@h/d", "must start with postgresql://"),
        ("postgresql://h/d", "has no user name"),
        ("postgresql://ann:hunter22@/d", "has no host"),
        ("postgresql://ann:hunter22@h:99999/d", "has no valid port number"),
        ("postgresql://ann:hunter22@h:abc/d", "has no valid port number"),
        ("postgresql://ann:hunter22@[h/d", "is not a valid URL"),
        ("postgresql://ann:hunter22#1@h/d", "percent-encoded"),
        ("postgresql://ann:hunter22%zz@h/d", "percent-encoded"),
        ("postgresql://ann:hunter22@h/d/e", "names no valid database"),
        ("postgresql://ann:hunter22@h/d?sslmode=maybe", "has an unknown sslmode"),
        ("postgresql://ann:hunter22@h/d?sslmode=verify-full", "must not use sslmode=verify-full"),
        ("postgresql://ann:hunter22@h/d?sslmode=verify-ca", "must not use sslmode=verify-ca"),
        ("postgresql://ann:hunter22@h/d?replication=database", "must not set replication="),
    ],
)
def test_a_wrong_database_url_is_explained_without_its_password(
    monkeypatch: pytest.MonkeyPatch, url: str, expected: str
) -> None:
    error = error_of(monkeypatch, DATABASE_URL=url)
    assert error.startswith("DATABASE_URL ")
    assert expected in error
    assert "hunter22" not in error


def test_a_missing_database_url_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL")
    assert error_of(monkeypatch).startswith("DATABASE_URL is not set")


def test_the_database_url_is_complete_for_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = with_environment(
        monkeypatch,
        DATABASE_URL="postgres://a%40b:p%2Fw@[::1]?flavour=mint&application_name=my%20app",
        ELECTRIC_DATABASE_TCP_KEEPALIVE_IDLE="500ms",
        ELECTRIC_DATABASE_TCP_KEEPALIVE_COUNT="4",
        ELECTRIC_DATABASE_TCP_USER_TIMEOUT="2s",
    )
    assert conninfo_to_dict(settings.database_url) == {
        "user": "a@b",
        "password": "p/w",
        "host": "::1",
        "dbname": "a@b",
        "application_name": "my app",
        "keepalives_idle": "1",
        "keepalives_count": "4",
        "tcp_user_timeout": "2000",
    }


def test_a_ca_file_demands_verification(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text("certificate")
    settings = with_environment(
        monkeypatch, DATABASE_URL=f"{URL}?sslmode=require", ELECTRIC_DATABASE_CA_CERTIFICATE_FILE=str(ca_file)
    )
    parsed = conninfo_to_dict(settings.database_url)
    assert (parsed["sslmode"], parsed["sslrootcert"]) == ("verify-full", str(ca_file))
    assert "sslmode=disable" in error_of(monkeypatch, DATABASE_URL=f"{URL}?sslmode=disable")


def test_repr_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ELECTRIC_INSECURE")
    settings = with_environment(monkeypatch, ELECTRIC_SECRET="s3cr3t-s3cr3t")
    shown = repr(settings) + str(settings) + str(settings.__rich_repr__())
    assert "hunter22" not in shown
    assert "s3cr3t-s3cr3t" not in shown


def test_unknown_variables_come_with_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = with_environment(monkeypatch, ELECTRIC_CACHE_MAXAGE="5", GALVANIC_COLOUR="blue")
    assert settings.unknown == ["ELECTRIC_CACHE_MAXAGE (did you mean ELECTRIC_CACHE_MAX_AGE?)", "GALVANIC_COLOUR"]


def test_endpoints_lie_in_the_run_directory_or_on_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = with_environment(monkeypatch, GALVANIC_RUN_DIR="/run/g")
    assert settings.stream_endpoint == "ipc:///run/g/stream.sock"
    assert settings.status_endpoint == "ipc:///run/g/status.sock"
    assert settings.worker_requests_endpoint("w01") == "ipc:///run/g/w01-requests.sock"
    assert settings.worker_events_endpoint("w01") == "ipc:///run/g/w01-events.sock"
    settings = with_environment(
        monkeypatch, GALVANIC_WORKER_HOST="10.0.0.7", GALVANIC_STREAM_ENDPOINT="tcp://10.0.0.1:5"
    )
    assert settings.stream_endpoint == "tcp://10.0.0.1:5"
    assert settings.worker_requests_endpoint("w01") == "tcp://10.0.0.7:*"


@pytest.mark.parametrize("worker_id", ["", "a/b", "x" * 33])
def test_a_wrong_worker_id_is_refused(worker_id: str) -> None:
    with pytest.raises(ConfigError, match="worker id"):
        load_settings().worker_requests_endpoint(worker_id)


def test_a_worker_id_that_makes_the_path_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = with_environment(monkeypatch, GALVANIC_RUN_DIR="/" + "x" * 79)
    assert settings.worker_events_endpoint("w01")
    with pytest.raises(ConfigError, match="GALVANIC_RUN_DIR"):
        settings.worker_requests_endpoint("w" * 32)


def test_settings_can_be_made_in_python() -> None:
    settings = Settings(database_url=URL, insecure=True, workers=3, long_poll_timeout_ms=100)
    assert (settings.workers, settings.long_poll_timeout_ms) == (3, 100)


def test_the_completed_url_connects(monkeypatch: pytest.MonkeyPatch, database: str) -> None:
    settings = with_environment(monkeypatch, DATABASE_URL=f"{database}?nonsense=1&sslmode=prefer")
    with psycopg.connect(settings.database_url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)

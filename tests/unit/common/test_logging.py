from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from common.logging import REDACTED, Redaction

PROGRAM = """
import logging
import structlog
from common.config import load_settings
from common.logging import configure_logging

log = structlog.get_logger(__name__)
settings = load_settings()
configure_logging(settings, "first")
configure_logging(settings, "ingester")
log.debug("unheard")
log.info("started", database=settings.database_url, lsn=7)
try:
    raise ValueError("no entry for hunter22\\nsecond line")
except ValueError:
    log.exception("failed")
logging.getLogger("aiohttp").info("unheard")
logging.getLogger("aiohttp").warning("bad request for /v1/shape?secret=%s", "tell-nobody")
"""


def output_of_program(**environment: str) -> str:
    """What a process of its own prints on standard error; logging is a matter of the whole process."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ELECTRIC_", "GALVANIC_"))}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={
            **inherited,
            "DATABASE_URL": "postgresql://ann:hunter22@h/d",
            "ELECTRIC_SECRET": "tell-nobody",
            "GALVANIC_RUN_DIR": "/tmp/galvanic-unused",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout == ""
    return result.stderr


@pytest.fixture
def redaction() -> Redaction:
    return Redaction(["hunter22", "abc"])


def redacted(redaction: Redaction, **event: object) -> dict[str, object]:
    return dict(redaction(None, "info", event))


@pytest.mark.parametrize(
    "key", ["secret", "api_secret", "password", "db_password", "token", "access_token", "api_key", "authorization"]
)
def test_values_of_secret_keys_are_removed(redaction: Redaction, key: str) -> None:
    assert redacted(redaction, **{key: "x"}) == {key: REDACTED}


def test_keys_that_only_look_alike_are_kept(redaction: Redaction) -> None:
    event = {"key": "k", "tokenizer": "t", "secretary": "s", "handle": "h", "n": 3, "flag": True, "nothing": None}
    assert redacted(redaction, **event) == event


def test_passwords_in_urls_are_removed(redaction: Redaction) -> None:
    assert redaction.text("at postgresql://ann:p@ss:w%40rd@h:1/d now") == f"at postgresql://ann:{REDACTED}@h:1/d now"
    assert redaction.text("see http://h:3000/v1/shape?table=a") == "see http://h:3000/v1/shape?table=a"


@pytest.mark.parametrize("name", ["secret", "api_secret", "token", "access_token", "api_key", "password"])
def test_secret_query_parameters_are_removed(redaction: Redaction, name: str) -> None:
    assert redaction.text(f"/v1/shape?{name}=xyz&table=a") == f"/v1/shape?{name}={REDACTED}&table=a"


def test_known_secrets_are_removed_wherever_they_are(redaction: Redaction) -> None:
    event = redacted(redaction, event="hunter22!", detail={"list": ["a hunter22", {"b": b"hunter22"}]})
    assert event == {"event": f"{REDACTED}!", "detail": {"list": [f"a {REDACTED}", {"b": REDACTED}]}}


def test_a_short_known_secret_does_not_blot_out_words(redaction: Redaction) -> None:
    assert redaction.text("abcdef") == "abcdef"


def test_text_is_one_line_per_event_without_secrets() -> None:
    lines = output_of_program().splitlines()
    assert len(lines) == 3
    assert all(line.startswith("time=") and " process=ingester " in line for line in lines)
    assert "event=started" in lines[0]
    assert "lsn=7" in lines[0]
    assert "ValueError" in lines[1]
    assert "level=warning" in lines[2]
    assert not any(secret in line for secret in ("hunter22", "tell-nobody") for line in lines)


def test_json_is_one_object_per_event_without_secrets() -> None:
    output = output_of_program(GALVANIC_LOG_FORMAT="json")
    events = [json.loads(line) for line in output.splitlines()]
    assert [event["level"] for event in events] == ["info", "error", "warning"]
    assert events[0]["database"] == f"postgresql://ann:{REDACTED}@h/d"
    assert "hunter22" not in output
    assert "tell-nobody" not in output


def test_the_level_is_obeyed() -> None:
    assert "event=started" not in output_of_program(ELECTRIC_LOG_LEVEL="error")
    assert "event=unheard" in output_of_program(ELECTRIC_LOG_LEVEL="debug")

from __future__ import annotations

from pathlib import Path

from common.config import Settings
from deploy.development import prepare_environment
from deploy.launcher import first_sync_url, live_url


def test_without_a_database_the_environment_is_completed() -> None:
    environ: dict[str, str] = {}
    assert prepare_environment(environ)
    assert environ["DATABASE_URL"].startswith("postgresql://")
    assert environ["ELECTRIC_INSECURE"] == "true"


def test_a_secret_is_respected() -> None:
    environ = {"ELECTRIC_SECRET": "s"}
    assert prepare_environment(environ)
    assert "ELECTRIC_INSECURE" not in environ


def test_an_empty_database_url_is_not_a_wish_for_another_database() -> None:
    environ = {"DATABASE_URL": ""}
    assert not prepare_environment(environ)
    assert environ == {"DATABASE_URL": ""}


def test_urls_work_as_they_are_and_hold_no_secret() -> None:
    insecure = Settings(database_url="postgresql://a@h/d", run_dir=Path("/tmp/g"), port=3001, insecure=True)
    assert first_sync_url(insecure, "items") == "http://localhost:3001/v1/shape?table=items&offset=-1"
    assert live_url(insecure, "items", "5-6", "0_0") == (
        "http://localhost:3001/v1/shape?table=items&offset=0_0&handle=5-6&live=true"
    )
    secure = Settings(database_url="postgresql://a@h/d", run_dir=Path("/tmp/g"), port=3001, secret="s3cr3t")
    assert first_sync_url(secure, "items").endswith("&secret=$ELECTRIC_SECRET")
    assert live_url(secure, "items").endswith("&secret=$ELECTRIC_SECRET")

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from contracts.adapters.blobs import Blobs
from contracts.clock import SystemClock
from contracts.errors import ConfigurationError
from contracts.settings import BlobSettings
from deploy.cli.app import app

ELSEWHERE = {"HEADRACE_KAFKA__BOOTSTRAP": "127.0.0.1:1", "HEADRACE_REDIS__URL": "redis://127.0.0.1:1/0"}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with one old object and one young one, as the environment names it."""

    async def fill() -> Path:
        blobs = Blobs(BlobSettings(url=tmp_path.as_uri()))
        old, _ = await blobs.put(b"old"), await blobs.put(b"young")
        blobs.close()
        return tmp_path / "default" / old.digest[:2] / old.digest

    path = asyncio.run(fill())
    then = SystemClock().unix_ms() / 1000 - 100_000
    os.utime(path, (then, then))
    for name, value in {**ELSEWHERE, "HEADRACE_BLOBS__URL": tmp_path.as_uri()}.items():
        monkeypatch.setenv(name, value)
    return path


def test_a_dry_run_counts_and_a_sweep_deletes(store: Path) -> None:
    shown = CliRunner().invoke(app, ["blobs", "sweep", "--dry-run"], catch_exceptions=False)
    assert "1 objects of 3 bytes are too old" in shown.output
    assert "1 would stay" in shown.output
    assert store.exists()
    swept = CliRunner().invoke(app, ["blobs", "sweep", "--json"], catch_exceptions=False)
    found = json.loads(swept.output)
    assert (found["objects"], found["bytes"], found["kept"], found["dry_run"]) == (1, 3, 1, False)
    assert not store.exists()


def test_what_is_too_old_can_be_said(store: Path) -> None:
    found = CliRunner().invoke(app, ["blobs", "sweep", "--older-than", "200000", "--json"], catch_exceptions=False)
    assert json.loads(found.output)["kept"] == 2


def test_without_a_store_the_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ELSEWHERE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HEADRACE_BLOBS__URL", raising=False)
    with pytest.raises(ConfigurationError, match="HEADRACE_BLOBS__URL"):
        CliRunner().invoke(app, ["blobs", "sweep"], catch_exceptions=False)

"""Settings: a typo never passes silently, and fields that contradict each other are refused."""

from __future__ import annotations

import pytest

from contracts.errors import ConfigurationError
from contracts.settings import HeadraceSettings, KafkaSettings, LeaseSettings, load_settings, unknown_variables


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("HEADRACE_KAFKA__BOOTSRAP", "HEADRACE_KAFKA__BOOTSTRAP"),
        ("HEADRACE_KAFAK__BOOTSTRAP", "HEADRACE_KAFKA__BOOTSTRAP"),
        ("HEADRACE_REDIS_URL", "HEADRACE_REDIS__URL"),
    ],
)
def test_a_misspelt_variable_aborts_and_names_the_nearest(name: str, near: str) -> None:
    assert unknown_variables({name: "x"}) == {name: near}
    with pytest.raises(ConfigurationError, match=f"{name}: did you mean {near}"):
        load_settings(HeadraceSettings, {name: "x"})


def test_groups_of_other_processes_are_theirs_to_check() -> None:
    assert unknown_variables({"HEADRACE_GATEWAY__PORT": "1", "HEADRACE_TEST_ANYTHING": "1", "PATH": "x"}) == {}


def test_the_environment_fills_nested_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_KAFKA__BOOTSTRAP", "kafka:1")
    assert load_settings(HeadraceSettings).kafka.bootstrap == "kafka:1"


def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_KAFKA__REPLICATION", "many")
    with pytest.raises(ConfigurationError, match=r"kafka\.replication"):
        load_settings(HeadraceSettings)


def test_relations_between_fields_are_checked() -> None:
    with pytest.raises(ValueError, match="three times the renew interval"):
        LeaseSettings(ttl_seconds=10, renew_seconds=5)
    with pytest.raises(ValueError, match="never trusts"):
        LeaseSettings(ttl_seconds=15, renew_seconds=5, margin_seconds=10)
    with pytest.raises(ValueError, match="nothing could be written"):
        KafkaSettings(replication=1, min_insync=2)


def test_a_password_is_not_printed() -> None:
    assert "hunter2" not in repr(KafkaSettings(password="hunter2"))

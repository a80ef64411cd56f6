"""What the agent reads from its environment and command line."""

from __future__ import annotations

import pytest

from contracts.errors import ConfigurationError
from contracts.names import is_name
from workers.agent.__main__ import parse
from workers.agent.settings import default_node


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_AGENT__NODE", "n1")
    monkeypatch.setenv("HEADRACE_AGENT__CORES", "3")
    settings = parse(["--node", "n2", "--run-dir", "/run/h"])
    assert (settings.agent.node, settings.agent.cores, str(settings.agent.run_folder)) == ("n2", 3, "/run/h")
    assert parse([]).agent.node == "n1"


def test_each_node_has_a_folder_of_its_own() -> None:
    assert parse(["--node", "n1"]).agent.run_folder != parse(["--node", "n2"]).agent.run_folder


def test_a_node_that_would_be_dead_before_it_is_suspect_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_AGENT__DEAD_SECONDS", "4")
    with pytest.raises(ConfigurationError, match="three times suspect"):
        parse([])


def test_a_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_AGENT__CORE", "4")
    with pytest.raises(ConfigurationError, match="HEADRACE_AGENT__CORES"):
        parse([])


@pytest.mark.parametrize("host", ["Lab-7.example.org", "___", "", "x" * 200, "a..b", "Büro"])
def test_any_host_name_becomes_a_valid_node_name(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    assert is_name(default_node())

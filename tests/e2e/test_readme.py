"""The commands and programs of README.md and docs/, executed word for word against a stack that the README's own
command started; what they print must be what is shown, where `…` stands for anything."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from deploy.cli.app import run
from tests.e2e.conftest import ROOT, UP_COMMAND, Terminal, Up
from tests.helpers import wait_until_sync
from workers.agent.settings import default_node

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

PAGES = ("README.md", "docs/getting-started.md", "docs/cli.md", "docs/idempotency.md")
LINKED = ("README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")))
_fence = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    return [body for kind, body in _fence.findall((ROOT / page).read_text()) if kind == language]


def programs(page: str) -> list[tuple[str, str]]:
    """Each Python block with the text block that follows it: what it prints."""
    found = _fence.findall((ROOT / page).read_text())
    return [
        (body, output)
        for (kind, body), (after, output) in zip(found, [*found[1:], ("", "")], strict=True)
        if kind == "python" and after == "text"
    ]


def commands(page: str) -> list[tuple[str, str]]:
    """Each `$ command` of the console blocks with what is shown below it."""
    found: list[tuple[str, str]] = []
    for block in blocks(page, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def expect(shown: str, printed: str) -> None:
    """Compare line by line; spaces and rules count as one, since columns are as wide as what they hold."""
    assert follows(lines(shown), lines(printed)), f"shown:\n{shown}\nprinted:\n{printed}"


def lines(text: str) -> list[str]:
    found = (re.sub("─+", "─", re.sub(r"\s+", " ", line)).strip() for line in text.splitlines())
    return [line for line in found if line]


def follows(wanted: list[str], got: list[str]) -> bool:
    """Whether the lines are those; `…` alone stands for any number of lines."""
    if not wanted:
        return not got
    if wanted[0] == "…":
        return any(follows(wanted[1:], got[skipped:]) for skipped in range(len(got) + 1))
    fits = bool(got) and re.fullmatch(re.escape(wanted[0]).replace("…", ".*"), got[0]) is not None
    return fits and follows(wanted[1:], got[1:])


@pytest.mark.parametrize("page", PAGES)
def test_every_program_prints_what_is_shown(page: str, up: Up, terminal: Terminal, tmp_path: Path) -> None:
    found = programs(page)
    environment = json.loads(terminal.run("headrace env --json").stdout)
    for number, (program, shown) in enumerate(found):
        script = tmp_path / f"example_{number}.py"
        script.write_text(program)
        done = terminal.run(f"{sys.executable} -W error::ResourceWarning {script}", more=environment)
        assert done.returncode == 0, f"{program}\n{done.stderr}"
        expect(shown, done.stdout)


def test_every_command_of_the_readme_prints_what_is_shown(up: Up, terminal: Terminal) -> None:
    wait_until_settled(terminal)
    for command, shown in commands("README.md"):
        done = terminal.run(f"{command} 2>&1")  # as a terminal shows it
        expect(shown, done.stdout)


@pytest.mark.parametrize("page", PAGES[1:])
def test_every_command_prints_what_is_shown(
    page: str, up: Up, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", terminal.environment.copy())
    monkeypatch.chdir(ROOT)
    wait_until_settled(terminal)
    for command, shown in commands(page):
        expect(shown, call(command, monkeypatch))


def wait_until_settled(terminal: Terminal) -> None:
    """Wait until the stack is as its fleet says again: pages scale what other pages show."""

    def is_settled() -> bool:
        deployments = json.loads(terminal.run("headrace status --json").stdout)["deployments"]
        return all(worker["state"] == "active" for deployment in deployments for worker in deployment["workers"])

    wait_until_sync(is_settled, "workers of an earlier page's commands have not ended")


def call(command: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command prints; run in this process, where everything is imported already."""
    monkeypatch.setattr(sys, "argv", shlex.split(command.replace("$(hostname)", default_node())))
    terminal = io.StringIO()
    with redirect_stdout(terminal), redirect_stderr(terminal), contextlib.suppress(SystemExit):
        run()
    return terminal.getvalue()


def test_the_readme_has_its_examples_and_starts_the_stack_as_these_tests_do() -> None:
    assert len(programs("README.md")) == 2
    assert all(len([line for line in program.splitlines() if line]) <= 8 for program, _ in programs("README.md"))
    assert any(UP_COMMAND in block for block in blocks("README.md", "sh"))
    assert commands("README.md")


def test_a_second_stack_on_the_same_data_is_refused(up: Up, terminal: Terminal) -> None:
    done = terminal.run("headrace up")
    assert done.returncode == 2
    assert f"(process {up.process.pid})" in done.stderr


def test_what_up_said_names_the_broker_and_redis_and_how_to_choose_others(up: Up) -> None:
    lines = up.text.splitlines()
    assert re.search(r"^Kafka: .* \(.*(--kafka|HEADRACE_KAFKA__BOOTSTRAP)", lines[0])
    assert re.search(r"^Redis: .* \(.*HEADRACE_REDIS__URL", lines[1])


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", (ROOT / page).read_text())
    assert [link for link in links if not (folder / link).exists()] == []


def test_the_readme_leads_to_every_page() -> None:
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages - set(re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text())) == set()

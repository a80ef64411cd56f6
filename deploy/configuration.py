"""The page of all settings, from the settings themselves: `python -m deploy.configuration > docs/configuration.md`.

A test compares the page with what this prints, so it cannot fall behind.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from contracts.settings import ENV_PREFIX, HeadraceSettings
from producer.settings import ClientSettings
from scheduler.settings import SchedulerSettings
from workers.agent.settings import AgentSettings
from workers.ingest.settings import WorkerSettings
from workers.joiner.settings import JoinerSettings

_HEAD = """# Configuration

Every process reads its settings from the environment: `HEADRACE_KAFKA__BOOTSTRAP` is the field `bootstrap` of the group
`kafka`. All processes share one environment and each reads the groups it needs; a variable that nothing reads stops the
process that would read its group, with the nearest valid name. `headrace env` prints what a running stack uses.

This page is made by `python -m deploy.configuration`.
"""
_READERS: dict[str, type[HeadraceSettings]] = {
    "every process": HeadraceSettings,
    "worker": WorkerSettings,
    "joiner": JoinerSettings,
    "agent": AgentSettings,
    "scheduler": SchedulerSettings,
    "client": ClientSettings,
}


def render() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(line for group in _groups() for line in group)]).rstrip() + "\n"


def _groups() -> Iterator[list[str]]:
    readers: dict[str, list[str]] = {}
    groups: dict[str, type[BaseModel]] = {}
    for reader, settings in _READERS.items():
        for name, field in settings.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                groups[name] = field.annotation
                readers.setdefault(name, []).append(reader)
    for name, group in groups.items():
        who = "every process" if "every process" in readers[name] else ", ".join(readers[name])
        rows = [_row(name, field_name, field) for field_name, field in group.model_fields.items()]
        yield [f"## {name}", "", f"Read by: {who}.", "", "| variable | default | meaning |", "|---|---|---|", *rows, ""]


def _row(group: str, name: str, field: FieldInfo) -> str:
    variable = f"{ENV_PREFIX}{group}__{name}".upper()
    meaning = " ".join((field.description or "").split()).replace("|", "\\|")
    return f"| `{variable}` | {_default(field)} | {meaning} |"


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "by machine"
    value = field.default
    if isinstance(value, SecretStr):
        return f"`{value.get_secret_value()}`" if value.get_secret_value() else "empty"
    if value is None:
        return "unset"
    return f"`{value}`" if str(value) else "empty"


if __name__ == "__main__":
    sys.stdout.write(render())

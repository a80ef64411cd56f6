"""`headrace knobs`: see and set how a model's requests are batched, while it serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from contracts.errors import ConfigurationError
from deploy.cli.options import AsJson, Data

if TYPE_CHECKING:
    from contracts.adapters.registry import RegistryState
    from contracts.names import ModelVersion
    from contracts.settings import HeadraceSettings

_RESET = "default"


def knobs(
    model: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="A registered model version.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KNOB=VALUE", help=f"Such as max_batch_delay_ms=5; {_RESET} gives it back to its spec."),
    ] = None,
    *,
    data: Data = None,
    json: AsJson = False,
) -> None:
    """Show or set how a model's requests are batched.

    Its workers follow within a second, without a restart.
    """
    from deploy.cli import connection

    connection.run(_knobs(connection.load(data), model, changes or [], as_json=json))


def changed(before: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    """Knobs after KNOB=VALUE changes. Raises ConfigurationError for what is no knob."""
    from contracts.specs import Knobs

    after = dict(before)
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or name not in Knobs.model_fields:
            msg = f"{change!r} is no KNOB=VALUE; knobs: {', '.join(Knobs.model_fields)}"
            raise ConfigurationError(msg)
        if value == _RESET:
            after.pop(name, None)
        elif name == "preferred_batch_sizes":
            after[name] = [part for part in value.split(",") if part]
        else:
            after[name] = value
    return after


def shown(value: Any) -> str:
    """A knob's value as it would be set; a dash where there is none."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def _unknown(key: ModelVersion, state: RegistryState) -> str:
    if key in state.pipelines:
        return f"{key} is a pipeline: its models have the knobs, and `headrace pipeline graph {key}` shows them"
    return f"{key} is not registered: `headrace models` lists what is"


async def _knobs(settings: HeadraceSettings, name: str, changes: list[str], *, as_json: bool) -> None:
    from pydantic import ValidationError

    from contracts.names import ModelVersion
    from contracts.specs import Knobs
    from deploy.cli.connection import open_control
    from deploy.cli.output import console, print_json, table

    key = ModelVersion.parse(name)
    async with open_control(settings) as control:
        model = await control.registry.get_model(key)
        if model is None:
            raise ConfigurationError(_unknown(key, await control.registry.snapshot()))
        found = await control.registry.get_knobs(key)
        if changes:
            try:
                found = Knobs.model_validate(changed(found.model_dump(exclude_none=True), changes))
            except ValidationError as exc:
                faults = "; ".join(f"{fault['loc'][0]}: {fault['msg']}" for fault in exc.errors())
                raise ConfigurationError(faults) from exc
        effective = found.applied(model.spec.batching)
        ceilings = await control.registry.ceilings(key)
        living = (await control.leases.state()).leases if ceilings else {}
        ceilings = {lease: rows for lease, rows in sorted(ceilings.items()) if lease in living}
        if changes:
            await control.registry.put_knobs(key, found)
    set_by_hand = found.model_dump(exclude_none=True)
    values = {knob: getattr(effective, knob) for knob in Knobs.model_fields}
    if as_json:
        print_json({"model": name, "knobs": values, "set_by_hand": sorted(set_by_hand), "memory_rows": ceilings})
        return
    rows = [(knob, shown(value), "by hand" if knob in set_by_hand else "") for knob, value in values.items()]
    rows += [("(memory)", f"{most} rows", f"learned by {lease}") for lease, most in ceilings.items()]
    console().print(table("knob", "value", "set", rows=rows))

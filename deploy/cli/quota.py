"""`headrace quota`: how much of the pool a tenant's workers may hold together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from contracts.errors import ConfigurationError
from deploy.cli.options import AsJson, Data

if TYPE_CHECKING:
    from contracts.settings import HeadraceSettings


def quota(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="As deployments name it (`tenant:`).")],
    compute: Annotated[
        str, typer.Argument(metavar="COMPUTE|none", help="Percent of devices, summed up; 100 is one core or one GPU.")
    ],
    *,
    data: Data = None,
    json: AsJson = False,
) -> None:
    """Limit what a tenant's workers may hold together.

    Those that run stay, further ones wait.
    """
    from contracts.names import check_name
    from deploy.cli import connection

    if compute != "none" and not compute.isdecimal():
        msg = f"{compute!r} is no quota: write a whole number such as 400, or none"
        raise ConfigurationError(msg)
    limit = None if compute == "none" else int(compute)
    connection.run(_quota(connection.load(data), check_name(tenant, "tenant"), limit, as_json=json))


async def _quota(settings: HeadraceSettings, tenant: str, limit: int | None, *, as_json: bool) -> None:
    from deploy.cli.connection import open_control
    from deploy.cli.output import print_json

    async with open_control(settings) as control:
        await control.leases.set_quota(tenant, limit)
    if as_json:
        print_json({"tenant": tenant, "compute": limit})
    else:
        print(f"{tenant}: {'no limit' if limit is None else f'{limit} % of compute at most'}")

"""`headrace blobs`: the store of large tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from contracts.errors import ConfigurationError
from deploy.cli.options import AsJson, Data

if TYPE_CHECKING:
    from contracts.settings import BlobSettings

blobs = typer.Typer(help="Look after the store of large tensors.", no_args_is_help=True)


@blobs.callback()
def _root() -> None:
    pass


@blobs.command("sweep")
def sweep(
    *,
    older_than: Annotated[
        float | None,
        typer.Option(
            "--older-than",
            metavar="SECONDS",
            min=0,
            help="Younger ones stay, however old they may get otherwise. [default: HEADRACE_BLOBS__KEEP_SECONDS]",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count them, and delete nothing.")] = False,
    data: Data = None,
    json: AsJson = False,
) -> None:
    """Delete objects that are too old to be referred to by a request under way."""
    from contracts.settings import load_settings
    from deploy.cli import connection
    from producer.settings import ClientSettings

    connection.load(data)
    settings = load_settings(ClientSettings).blobs
    connection.run(_sweep(settings, older_than, dry_run=dry_run, as_json=json))


async def _sweep(settings: BlobSettings, older_than: float | None, *, dry_run: bool, as_json: bool) -> None:
    from contracts.adapters.blobs import Blobs
    from contracts.payloads import URL_VARIABLE
    from deploy.cli.output import print_json

    store = Blobs.from_settings(settings)
    if store is None:
        msg = f"there is no store: set {URL_VARIABLE}, as for clients and workers"
        raise ConfigurationError(msg)
    try:
        found = await store.sweep(older_than, dry_run=dry_run)
    finally:
        store.close()
    if as_json:
        print_json({"url": settings.url, "dry_run": dry_run, **found._asdict()})
        return
    print(f"{settings.url}: {found.objects} objects of {found.bytes:,} bytes {'are' if dry_run else 'were'} too old")
    print(
        f"{found.kept} stay." if not dry_run else f"{found.kept} would stay; nothing was deleted: this was a dry run."
    )

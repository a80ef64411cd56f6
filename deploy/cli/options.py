"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Data folder of the stack to use. [default: the one of HEADRACE_KAFKA__BOOTSTRAP and HEADRACE_REDIS__URL,"
        " else ~/.local/share/headrace]",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Fleet = Annotated[
    Path | None,
    typer.Option("--fleet", "-f", metavar="FILE", help="Fleet file to apply.", show_default=False),
]
Kafka = Annotated[
    str | None,
    typer.Option(
        "--kafka",
        metavar="embedded|home|docker",
        help="Which Kafka to start: the embedded log, the distribution at KAFKA_HOME, or a container."
        " [default: HEADRACE_KAFKA__BOOTSTRAP, else KAFKA_HOME, else the embedded log]",
        show_default=False,
    ),
]
Redis = Annotated[
    str | None,
    typer.Option(
        "--redis",
        metavar="URL",
        help="A Redis that runs already. [default: HEADRACE_REDIS__URL, else redis-server on the PATH, else Valkey]",
        show_default=False,
    ),
]

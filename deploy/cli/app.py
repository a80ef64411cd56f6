"""The commands put together, and what becomes of their errors.

Exit status: 0 done, 1 failed, 2 called wrongly (an argument, a file, a setting, inputs that do not fit), 3 not ready in
time; 130 after Ctrl-C. An error is a sentence on standard error that says what to do next; a traceback only with
HEADRACE_LOG__LEVEL=DEBUG.
"""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from contracts.errors import ConfigurationError, HeadraceError, InvalidRequest, ModelNotFound
from deploy.cli import (
    apply,
    blobs,
    dead,
    demo,
    drain,
    environment,
    infer,
    knobs,
    models,
    pipeline,
    quota,
    scale,
    status,
    trace,
    up,
)
from deploy.cli.errors import NotReady

FAILED, CALLED_WRONGLY, NOT_READY, INTERRUPTED = 1, 2, 3, 130
_CALLERS_FAULT = (ConfigurationError, InvalidRequest, ModelNotFound)


class _NobodyReads(Exception):
    """Whoever read standard output has gone."""


class _Commands(TyperGroup):
    """The library would end a command whose output nobody reads any more as one that failed."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _noticing():  # pages of help are printed here
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _noticing():
            return super().invoke(ctx)


@contextmanager
def _noticing() -> Iterator[None]:
    """Tell output that nobody reads from any other broken pipe, which is a failure."""
    try:
        yield
    except BrokenPipeError:
        poll = select.poll()
        poll.register(sys.stdout, 0)  # a pipe without a reader is reported whatever is asked for
        if not poll.poll(0):
            raise
        raise _NobodyReads from None


app = typer.Typer(
    name="headrace",
    cls=_Commands,
    help="Inference requests through Kafka topics to a leased pool of GPU and CPU workers, in dynamic batches.",
    epilog="Exit status: 0 done, 1 failed, 2 called wrongly, 3 not ready in time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(is_asked: bool) -> None:  # noqa: FBT001 - the callback's signature is typer's
    if is_asked:
        from importlib.metadata import version

        print(f"headrace {version('headrace')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command("up")(up.up)
app.command("demo")(demo.demo)
app.command("apply")(apply.apply)
app.command("status")(status.status)
app.command("infer")(infer.infer)
app.command("scale")(scale.scale)
app.command("drain")(drain.drain)
app.command("quota")(quota.quota)
app.add_typer(dead.dead, name="dead")
app.add_typer(pipeline.pipeline, name="pipeline")
app.add_typer(blobs.blobs, name="blobs")
app.command("models")(models.models)
app.command("knobs")(knobs.knobs)
app.command("trace")(trace.trace)
app.command("env")(environment.environment)


def run() -> None:
    """Run the command that was asked for; ends the process."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # in order with standard error, also in a pipe
    try:
        app(prog_name="headrace")
    except HeadraceError as exc:
        raise SystemExit(_report(exc)) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except _NobodyReads:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def _report(exc: HeadraceError) -> int:
    if os.environ.get("HEADRACE_LOG__LEVEL", "").upper() == "DEBUG":
        import traceback

        traceback.print_exception(exc)
    print(f"headrace: {exc}", file=sys.stderr)
    if isinstance(exc, NotReady):
        return NOT_READY
    return CALLED_WRONGLY if isinstance(exc, _CALLERS_FAULT) else FAILED

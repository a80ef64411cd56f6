"""The demo on a terminal, or as plain lines where there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from deploy.cli.output import console, table
from deploy.demo.job import Outcome, Recovery
from deploy.demo.report import PHASES, RunReport
from deploy.demo.verdict import Check

if TYPE_CHECKING:
    from rich.progress import Progress

_BAR_WIDTH = 32
_PLAIN_STEPS = 4
_models = {"digits@1": "linear", "digits@2": "convolutional"}


class TerminalScreen:
    """Shows everything; with `is_quiet` only what happens, and on standard error, for `--json`."""

    def __init__(self, *, is_quiet: bool = False) -> None:
        self._is_quiet = is_quiet
        self._console = console(to_stderr=is_quiet)
        self._progress: Progress | None = None
        encoding = (self._console.encoding or "ascii").lower()
        self._block = "█" if encoding.startswith("utf") else "#"

    def say(self, line: str) -> None:
        """A line about what happens next."""
        self._console.print(line)

    def begin(self, title: str, total: int) -> Callable[[], None]:
        """A progress bar; four lines where nothing can move."""
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            return self._bar(title, total)
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            if done * _PLAIN_STEPS % total < _PLAIN_STEPS:
                self.say(f"{title}: {done:,} of {total:,} answered")

        return advance

    def _bar(self, title: str, total: int) -> Callable[[], None]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=self._console, transient=True)
        bar = self._progress.add_task(title, total=total)
        self._progress.start()
        progress = self._progress
        return lambda: progress.advance(bar)

    def end(self) -> None:
        """Take the bar away."""
        progress, self._progress = self._progress, None
        if progress is not None:
            progress.stop()

    def run(self, title: str, report: RunReport) -> None:
        """The figures of a run."""
        if self._is_quiet:
            return
        self._console.print()
        self._console.print(title, style="bold")
        self._console.print(
            f"{report.answered:,} of {report.asked:,} answered in {report.seconds:.2f} s: "
            f"{report.requests_per_second:,.0f} requests/s, one image each; "
            f"{report.doubled} answered twice, {report.duplicates} repeats dropped"
        )
        versions = report.versions
        heads = [f">{version.model} ({_models[version.model]})" for version in versions]
        rows = [
            ("answered", *(f"{version.answered:,} of {version.asked:,}" for version in versions)),
            ("accuracy, unseen images", *(f"{version.accuracy:.1%}" for version in versions)),
            ("rows in a batch, mean", *(f"{version.mean_batch:.1f}" for version in versions)),
        ]
        for phase in PHASES:
            name = "latency p50 / p99, ms" if phase == "total" else f"  {phase}"
            cells = [f"{v.latency_ms[phase].p50:.1f} / {v.latency_ms[phase].p99:.1f}" for v in versions if v.latency_ms]
            rows.insert(3 if phase == "total" else len(rows), (name, *cells))
        self._console.print(table("", *heads, rows=rows))
        for version in versions:
            self._batches(version.model, version.batches)
        for version in versions:
            workers = "; ".join(f"{count:,} by {worker}" for worker, count in version.workers.items())
            self.say(f"{version.model}: {workers}")

    def _batches(self, model: str, batches: Mapping[str, float]) -> None:
        top = max(batches.values(), default=1.0)
        self._console.print(f"batches of {model} by rows")
        for size, count in batches.items():
            self._console.print(f"  {size:>5}  {self._block * max(1, round(_BAR_WIDTH * count / top))} {count:.0f}")
        self._console.print()

    def recovery(self, recovery: Recovery) -> None:
        """What became of the killed worker's part."""
        if self._is_quiet:
            return
        pids = " and ".join(map(str, recovery.pids))
        self.say(
            f"\nSIGKILL of {recovery.worker} (processes {pids}, {recovery.partitions} partitions) with "
            f"{recovery.in_flight} requests in flight:"
        )
        self.say(f"  its partitions were drained by another worker after {recovery.taken_over_seconds:.2f} s")
        self.say(f"  the longest that any request of the run waited: {recovery.longest_wait_ms:,.0f} ms")
        self.say(f"  a new worker served in its place after {recovery.replaced_seconds:.1f} s")

    def verdict(self, checks: list[Check], outcome: Outcome) -> None:
        """Every claim, and whether it holds."""
        self._console.print()
        for check in checks:
            mark = "ok     " if check.holds else "FAILED "
            self.say(f"{mark}{check.claim}")
        self.say(f"\nThe whole demo took {outcome.seconds:.1f} s on {outcome.kafka} and {outcome.redis}.")
        sys.stdout.flush()

"""What a demo must have shown to be a success. Pure."""

from __future__ import annotations

from msgspec import Struct

from deploy.demo.job import Outcome
from deploy.demo.report import RunReport, VersionReport

LEAST_ACCURACY = {"digits@1": 0.93, "digits@2": 0.97}
"""What the two models reach on images that they were not trained on; less means mixed-up answers."""


class Check(Struct, frozen=True):
    """One claim, and whether it holds."""

    claim: str
    holds: bool


def verdict(outcome: Outcome) -> list[Check]:
    """Every claim of the demo."""
    killed = f"after SIGKILL of {outcome.recovery.worker}"
    return [
        _answered("first run", outcome.first),
        *(_accurate(version) for version in outcome.first.versions),
        _answered(f"second run, {killed}", outcome.second),
        *(_accurate(version) for version in outcome.second.versions),
        Check(f"{outcome.left_in_log} requests left in the log", outcome.left_in_log == 0),
    ]


def _answered(when: str, run: RunReport) -> Check:
    claim = f"{run.answered:,} of {run.asked:,} requests answered exactly once ({when})"
    return Check(claim, run.answered == run.asked and run.doubled == 0)


def _accurate(version: VersionReport) -> Check:
    least = LEAST_ACCURACY[version.model]
    return Check(f"{version.model} is right on {version.accuracy:.1%} of unseen images", version.accuracy >= least)

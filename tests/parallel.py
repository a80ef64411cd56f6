"""How `pytest -n` spreads the suite over processes: what shares a stack stays together, and long things come first.

The tests of a module run in one process, in their order, since most modules with a stack share one; modules that share
a stack of the session go together. Each process starts servers of its own. Whole stacks come first: what is left for
the end is then small enough for all processes to end at once.
"""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

TOGETHER = {
    "tests/e2e/test_other_language.py": "the README's stack",
    "tests/e2e/test_readme.py": "the README's stack",
    "tests/examples/test_examples_run.py": "prepared examples",
    "tests/examples/test_read_page.py": "prepared examples",
    "tests/examples/test_semantic_search.py": "prepared examples",
}
LONGEST_FIRST = ("e2e", "examples", "integration", "contract", "pipelines", "unit")


def unit_of(nodeid: str) -> str:
    """What a test must not be parted from."""
    module = nodeid.partition("::")[0]
    return TOGETHER.get(module, module)


def rank(nodeid: str) -> int:
    """Where a test stands: whole stacks before single functions."""
    folder = PurePosixPath(nodeid.partition("::")[0]).parts[1:2]
    return LONGEST_FIRST.index(folder[0]) if folder and folder[0] in LONGEST_FIRST else 0


class ByStack(LoadScopeScheduling):  # type: ignore[misc]  # the plug-in has no types
    """Deals out units in the order in which they were collected."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    config.option.loadscopereorder = False  # by how many tests there are, that is
    return ByStack(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several processes, which all must come to the same order
        items.sort(key=lambda item: rank(item.nodeid))

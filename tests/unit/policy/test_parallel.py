"""How the suite is dealt out to processes fits the suite that there is."""

from __future__ import annotations

import re
from pathlib import Path

import tests
from tests.parallel import LONGEST_FIRST, TOGETHER, rank, unit_of

TESTS = Path(tests.__file__).parent


def test_modules_that_share_a_stack_of_the_session_stay_together() -> None:
    using = {
        f"tests/e2e/{path.name}"
        for path in (TESTS / "e2e").glob("test_*.py")
        if re.search(r"\bup: Up\b", path.read_text(encoding="utf-8"))
    }
    assert using == {module for module, stack in TOGETHER.items() if stack == "the README's stack"}
    assert [module for module in TOGETHER if not (TESTS.parent / module).exists()] == []


def test_a_module_is_one_unit_and_whole_stacks_come_before_functions() -> None:
    e2e, unit = "tests/e2e/test_joins.py::test_a[x::y]", "tests/unit/contracts/test_keys.py::TestOf::test_b"
    assert (unit_of(e2e), unit_of(unit)) == ("tests/e2e/test_joins.py", "tests/unit/contracts/test_keys.py")
    assert sorted([unit, e2e], key=rank) == [e2e, unit]
    folders = {path.relative_to(TESTS).parts[0] for path in TESTS.rglob("test_*.py")}
    assert folders <= set(LONGEST_FIRST)

"""The guards of the suite itself: each kind of thing that a test can leave behind makes that test fail."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tests

ROOT = Path(tests.__file__).parent.parent
LEAKS = {
    "tasks": """
        import asyncio
        kept = []
        async def test_leak():
            kept.append(asyncio.get_running_loop().create_task(asyncio.Event().wait(), name="forgotten"))
    """,
    "threads": """
        import threading
        def test_leak():
            threading.Thread(target=threading.Event().wait, name="forgotten", daemon=True).start()
    """,
    "child processes": """
        import subprocess
        kept = []
        def test_leak():
            kept.append(subprocess.Popen(["sleep", "20"]))
    """,
    "shared-memory segments": """
        import os, pathlib
        def test_leak():
            pathlib.Path(f"/dev/shm/headrace-forgotten-{os.getpid()}").touch()
    """,
}
SUITE = """
    import os, pathlib, pytest, signal
    import tests.conftest
    tests.conftest.SETTLE_SECONDS = tests.conftest.SEGMENT_SETTLE_SECONDS = 0.2
    tests.conftest.SEGMENTS = f"headrace-forgotten-{os.getpid()}"  # not those of a test beside this one
    @pytest.fixture(autouse=True, scope="session")
    def _clean():
        yield
        pathlib.Path(f"/dev/shm/headrace-forgotten-{os.getpid()}").unlink(missing_ok=True)
        for pid in tests.conftest.child_pids():
            os.kill(pid, signal.SIGKILL)
"""


def dedent(text: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in text.splitlines())


@pytest.mark.skipif(sys.platform != "linux", reason="children and segments are read from Linux's /proc and /dev/shm")
def test_whatever_a_test_leaves_behind_makes_it_fail(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(dedent(SUITE))
    for name, code in LEAKS.items():
        (tmp_path / f"test_{re.sub('[ -]', '_', name)}.py").write_text(dedent(dedent(code)))
    (tmp_path / "test_clean.py").write_text("async def test_clean():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-p", "no:randomly"]
    options = ["-q", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), str(tmp_path)]
    result = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    for name in LEAKS:
        assert f"{name} left behind: [" in result.stdout, result.stdout
    assert f"5 passed, {len(LEAKS)} errors" in result.stdout, result.stdout

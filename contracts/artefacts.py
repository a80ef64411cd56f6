"""What a model version's files are: their digest, and which kinds of them run code of their own.

A version is immutable, so what is registered is a digest of every file in its folder: the sha256 of the sorted list of
their names and their own sha256 sums, in the form that `sha256sum` prints. Whoever loads the files takes it again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

RUNS_CODE = {"python": "its backend runs model.py", "torch": "a torch artefact can run code"}
"""Backends whose models may do whatever they like in their process; the deployment has to allow that."""


def digest_folder(folder: Path) -> str:
    """The digest of all files below a folder, without caches and hidden files."""
    lines = []
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in inner.parts):
            with path.open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {inner.as_posix()}\n")
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"

"""The examples as their READMEs say: every command, in fresh shells, on a stack that the documented `headrace up`
started. What they print must be what is shown; chained and fused, what they write must be the same, byte by byte.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.conftest import ROOT, Terminal, Up
from tests.e2e.test_readme import blocks, commands, expect
from tests.examples.kit import takes_minutes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_PROGRAMS = Path(sys.executable).parent  # `python` is the one that has the package
_SECONDS = 600.0


class Shell:
    """What a reader of a README has in front of them: the repository, and what they exported."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "checkout"
        for name in ("examples", "deploy"):
            shutil.copytree(ROOT / name, self.folder / name)
        shutil.copyfile(ROOT / "README.md", self.folder / "README.md")
        (self.folder / "build").mkdir()
        if (ROOT / "build" / "package").is_dir():  # what was downloaded once need not be again
            (self.folder / "build" / "package").symlink_to(ROOT / "build" / "package")
        self.terminal = Terminal(home, self.folder)
        self.terminal.environment["PATH"] = f"{_PROGRAMS}{os.pathsep}{self.terminal.environment['PATH']}"

    def run(self, line: str) -> str:
        """What a terminal shows of a command; only those that are shown to fail may."""
        done = self.terminal.run(f"( {line} ) 2>&1", seconds=_SECONDS)
        assert done.returncode == 0 or done.stdout.startswith("headrace: "), f"{line}\n{done.stdout}"
        return done.stdout

    def export(self, line: str) -> None:
        """Set a variable for all commands that follow."""
        name, _, value = line.removeprefix("export ").partition("=")
        self.terminal.environment[name] = value.replace("$PWD", str(self.folder))


@contextmanager
def reader(example: str, home: Path) -> Iterator[Shell]:
    """Follow a README's first block to its end: prepare, start the stack, apply."""
    shell, running = Shell(home), None
    block = blocks(f"examples/{example}/README.md", "sh")[0]
    try:
        for line in (line.partition(" #")[0].strip() for line in block.splitlines()):
            if line.startswith("export "):
                shell.export(line)
            elif line == "headrace up":
                running = Up(shell.terminal, "headrace up --kafka embedded")
                running.wait_ready()
            else:
                shell.run(line)
        yield shell
    finally:
        if running is not None:
            running.interrupt()


def follow(example: str, shell: Shell) -> dict[str, str]:
    """Run the commands of a README's console blocks; what each printed."""
    printed = {}
    for command, shown in commands(f"examples/{example}/README.md"):
        printed[command] = shell.run(command)
        expect(shown, printed[command])
    return printed


def answers(file: Path) -> list[dict[str, Any]]:
    """The lines of an output file, each as arrays by name."""
    found = []
    for line in file.read_text().splitlines():
        outputs = json.loads(line)["outputs"]
        found.append({output["name"]: np.array(output["data"], object).reshape(output["shape"]) for output in outputs})
    return found


def the_same(shell: Shell, pipeline: str, question: str) -> list[dict[str, Any]]:
    """Ask version 1 and version 2; the answers, which must be the same, byte by byte."""
    files = [shell.folder / "build" / f"{pipeline}-{version}.jsonl" for version in (1, 2)]
    for version, file in enumerate(files, 1):
        print(shell.run(f"headrace infer {pipeline}@{version} {question} --per-row --ttl 300 -o {file}").strip())
    first, second = (file.read_bytes() for file in files)
    assert first == second
    return answers(files[0])


def test_digits_ensemble(tmp_path: Path) -> None:
    with reader("digits-ensemble", tmp_path) as shell:
        printed = follow("digits-ensemble", shell)
        (scores,) = (text for command, text in printed.items() if "--score" in command)
        (settled,) = (text for command, text in printed.items() if "grep -c" in command)
        question = "--input image=@build/held-out/images.npy --in-flight 128"
        for pipeline in ("digits-vote", "digits-cascade"):
            assert len(the_same(shell, pipeline, question)) == 359
        for model in ("digits@1", "digits-forest@1"):
            shell.run(f"headrace infer {model} {question} --per-row -o build/held-out/{model}.jsonl")
        scores += shell.run("python examples/digits-ensemble/held_out.py --score build/held-out/*@1.jsonl")

    right = {name: int(count) for name, count in re.findall(r"^(\S+): (\d+) of 359 right", scores, re.MULTILINE)}
    saved = int(settled) / 359
    print(f"{scores}{saved:.1%} of the convolutional network's rows saved by the cascade")
    members = [right[name] for name in ("digits@1", "digits-forest@1", "convolutional")]
    assert right["vote"] == right["vote-fused"] >= max(members)
    assert saved >= 0.6
    assert (right["convolutional"] - right["cascade"]) / 359 <= 0.003


@takes_minutes
@pytest.mark.timeout(900)
def test_read_page(tmp_path: Path) -> None:
    pytest.importorskip("rapidocr_onnxruntime", reason="the page reader's models: install the extra 'examples'")
    with reader("read-page", tmp_path) as shell:
        for text in follow("read-page", shell).values():
            print(text.splitlines()[-1])
        pages = the_same(shell, "read-page", "--input 'page=@build/pages/*' --in-flight 5")
    assert len(pages) >= 20
    assert sum(page["line"].size for page in pages) > 200


@takes_minutes
@pytest.mark.timeout(900)
def test_semantic_search(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="the search cuts text with it: install the extra 'examples'")
    with reader("semantic-search", tmp_path) as shell:
        follow("semantic-search", shell)
        with np.load(shell.folder / "examples/semantic-search/models/text-nearest/1/index.npz") as index:
            sentences = [sentence.decode() for sentence in index["sentences"][::20]]
        (shell.folder / "build" / "sentences.json").write_text(json.dumps({"text": sentences}))
        found = the_same(shell, "semantic-search", "--input-json build/sentences.json")
    assert [answer["sentence"][0, 0] for answer in found] == sentences
    print(f"{len(sentences)} sentences find themselves, chained and fused to the last bit")

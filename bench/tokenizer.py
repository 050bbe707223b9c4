"""Are a GGUF file's token ids those that llama.cpp gives?

The tokenizer is built from the file's own tables and the pre-tokenizer that it names; llama.cpp is the program that
such files are made for. Lines of a corpus (or of this project) and lines made up of what is hard (digits behind blanks,
newlines and tabs in runs, CJK, emoji, marks that combine) are given to both. Needs llama-cpp-python, and loads its
vocabulary alone. ``--fixture`` writes the hard lines with llama.cpp's ids for the tests.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from bench.common import ROOT, report
from mc_core.lab.data.corpus import corpus_files, read_documents
from mc_core.models.gguf_file import GgufFile
from mc_core.models.gguf_tokenizer import load_tokenizer
from server.fetch import SMOLLM2, fetch, model_cache

FIXTURE = ROOT / "tests" / "models" / "smollm2_lines.json"
ODD = (
    *("0", "7", "12", "2026", "3.14", "1,000,000", "-5", "٣٤", "½", "²", "Ⅻ"),
    *(" ", "  ", "    ", "\t", "\t\t", "\n", "\n\n", " \n", "\n ", "\r\n", "\u00a0", "\u3000", "\u200b", "\x0b"),
    *("the", "The", " house", "don't", "we'll", "IT'S", "x", "naïve", "Größe", "e\u0301", "ﬁ", "İ", "ß"),
    *("東京", "北京市", "こんにちは", "カタカナ", "한국어", "Привет", "שלום", "مرحبا", "नमस्ते", "ไทย"),
    *("🙂", "👩‍👩‍👧", "🇫🇷", "👍🏽", "❤️", "🚀🚀"),
    *(".", "...", "?!", "'", '"', "''", "_", "__init__", "::", "->", "!=", "{", "})", "/*", "#", "\\n", "$", "€", "—"),
    *("def f(x):", "return x+1", "if (a<b)", "<div>", "http://a.example/b?c=1", "<|im", "|>", "<|im_end|>"),
)


def hard_lines(count: int, seed: int = 0) -> Iterator[str]:
    """Lines of a few odd pieces each, in any order, with or without blanks between them."""
    random = Random(seed)
    for _ in range(count):
        joint = random.choice(["", "", " "])
        yield joint.join(random.choices(ODD, k=random.randint(1, 12)))


def plain_lines(data: Path | None) -> Iterator[str]:
    """Lines of a corpus folder, file after file in turn; or of this project's own texts and source."""
    if data is None:
        for file in sorted(file for kind in ("*.md", "*.txt", "*.py") for file in ROOT.rglob(kind)):
            if ".venv" not in file.parts:
                yield from file.read_text("utf-8").split("\n")
        return
    streams = [_lines_of(file) for file in corpus_files(data)]
    while streams:
        for stream in list(streams):
            batch = list(islice(stream, 20))
            yield from batch
            if not batch:
                streams.remove(stream)


def _lines_of(file: Path) -> Iterator[str]:
    for document in read_documents(file):
        for part in document.parts:
            yield from (line for line in part.split("\n") if line)


def llama_cpp(model: Path) -> Any:
    """llama.cpp's tokenizer of a file: text -> ids, control tokens read as plain text; None without the package."""
    try:
        from llama_cpp import Llama  # type: ignore[import-not-found]
    except ImportError:
        return None
    reader = Llama(str(model), vocab_only=True, verbose=False)
    return lambda text: reader.tokenize(text.encode(), add_bos=False, special=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="GGUF file; SmolLM2's, which is fetched, by default")
    parser.add_argument("--data", type=Path, help="folder of JSON lines; this project's own files by default")
    parser.add_argument("--lines", type=int, default=10_000, help="a third of them made up of what is hard")
    parser.add_argument("--fixture", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()

    model = options.model or fetch(SMOLLM2, model_cache())
    theirs = llama_cpp(model)
    if theirs is None:
        sys.exit("skipped: this comparison needs llama-cpp-python, which is not installed")
    if options.fixture:
        pairs = [{"text": line, "ids": theirs(line)} for line in [*ODD, *hard_lines(300, seed=1)]]
        FIXTURE.write_text("[\n" + ",\n".join(json.dumps(pair) for pair in pairs) + "\n]\n")
    ours = load_tokenizer(GgufFile(model))
    hard = list(hard_lines(options.lines // 3))
    rows, different = [], []
    for name, lines in (("plain", list(islice(plain_lines(options.data), options.lines - len(hard)))), ("hard", hard)):
        encoded = [ids.tolist() for ids in ours.encode_batch(lines)]
        wrong = [line for line, ids in zip(lines, encoded, strict=True) if ids != theirs(line)]
        rows.append({"lines": name, "count": len(lines), "tokens": sum(map(len, encoded)), "different": len(wrong)})
        different += wrong
    report("tokenizer", rows, {"model": model.name, "different": len(different), "first": different[:5]}, options.save)
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()

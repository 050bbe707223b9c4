"""The questions as they are kept: a document by its digest, evidence by its place, and no word of the text itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

from mc_core.errors import ConfigError
from mc_core.lab.data.arrays import Range

SPLITS = ("held_out", "tuning")
"""held_out: over documents that no training saw, to be measured with and never tuned on. tuning: over others."""
OVERLAPS = ("rare", "common", "none")


@dataclass(frozen=True)
class RealQuestion:
    """group: the history that it is asked of, joined with the documents of its other questions. file, title, index:
    where the document was found, a file of the corpus by its name without endings; sha256: of its text, which alone
    decides. evidence: characters [start, end) of that text that answer, all of them needed. overlap: whether question
    and evidence share a rare word, common ones, or none (stems; stop words left out).
    """

    group: str
    file: str
    index: int
    title: str
    sha256: str
    evidence: tuple[Range, ...]
    question: str
    answer: str
    overlap: str

    @property
    def document(self) -> str:
        """For messages."""
        return f"{self.file}, {self.title or f'row {self.index}'}"


def load_questions(split: str) -> list[RealQuestion]:
    """All questions of a split, in the order of their file. ConfigError for a split that there is not."""
    if split not in SPLITS:
        raise ConfigError(f"questions must be one of {', '.join(SPLITS)}, got {split!r}")
    lines = (files(__package__) / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [_question(json.loads(line)) for line in lines]


def _question(row: dict[str, object]) -> RealQuestion:
    evidence = tuple((start, end) for start, end in row.pop("evidence"))  # type: ignore[attr-defined]
    return RealQuestion(**{"title": "", **row, "evidence": evidence})  # type: ignore[arg-type]

"""Whether a reply tells a value, however it is written: letter case and thousands separators do not matter."""

from __future__ import annotations

import re
from functools import cache

SPELLINGS = "|"
"""Between the spellings of one value, each of which is right: "eleven|11"."""
_THOUSANDS = re.compile(r"(?<=\d)[,\u00a0\u202f](?=\d{3}(?!\d))")
_QUOTES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "\u2011": "-"})


def tells(text: str, value: str) -> bool:
    """Whether one of the value's spellings stands in the text: not as the end of a longer word, nor in another number.

    What goes on behind a word is part of its telling: "fern" in "ferns".
    """
    return _pattern(value).search(_plain(text)) is not None


def _plain(text: str) -> str:
    return _THOUSANDS.sub("", text.translate(_QUOTES)).casefold()


@cache
def _pattern(value: str) -> re.Pattern[str]:
    return re.compile("|".join(_spelling(_plain(one)) for one in value.split(SPELLINGS)))


def _spelling(text: str) -> str:
    before = r"(?<!\d)(?<!\d[.:])" if text[:1].isdigit() else r"(?<!\w)"
    after = r"(?!\d)(?![.:]\d)" if text[-1:].isdigit() else ""
    return f"{before}{re.escape(text)}{after}"

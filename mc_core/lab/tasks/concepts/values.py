"""Values of concepts: names, numbers and things of a kind."""

from __future__ import annotations

from numpy.random import Generator

from mc_core.lab.tasks import word_lists
from mc_core.lab.tasks.build import digits
from mc_core.lab.tasks.facts import make_value, pick

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "June", "July", "August", "September", "October", "November")
COUNTRIES = ("Brazil", "Canada", "Chile", "China", "Egypt", "Finland", "Greece", "India", "Japan", "Kenya", "Peru")
LANGUAGES = ("Arabic", "Danish", "Dutch", "English", "French", "German", "Greek", "Italian", "Polish", "Spanish")
SUBJECTS = ("biology", "chemistry", "economics", "geography", "history", "law", "mathematics", "physics")
SPORTS = ("badminton", "boxing", "football", "golf", "hockey", "rowing", "rugby", "swimming", "tennis", "volleyball")
INSTRUMENTS = ("cello", "drums", "flute", "guitar", "harp", "organ", "piano", "trumpet", "violin")
ANIMALS = ("bear", "fox", "goat", "hedgehog", "lizard", "mouse", "owl", "rabbit", "rat", "snake", "spider", "wolf")
DRINKS = ("beer", "cider", "cocoa", "coffee", "juice", "lemonade", "milk", "tea", "water", "wine")

LISTS: dict[str, tuple[str, ...]] = {
    "animal": ANIMALS,
    "city": word_lists.CITIES,
    "color": word_lists.COLORS,
    "country": COUNTRIES,
    "day": DAYS,
    "drink": DRINKS,
    "food": word_lists.FOODS,
    "instrument": INSTRUMENTS,
    "job": word_lists.JOBS,
    "language": LANGUAGES,
    "month": MONTHS,
    "name": word_lists.NAMES,
    "sport": SPORTS,
    "subject": SUBJECTS,
    "word": word_lists.NOUNS,
}
KINDS = (*LISTS, "code", "year", *(f"digits_{n}" for n in range(2, 7)))


def concept_value(rng: Generator, kind: str) -> str:
    """A value of one of ``KINDS``."""
    if kind == "year":
        return str(rng.integers(1940, 2025))
    if kind == "code":
        return make_value(rng, "code", (3, 5))
    if kind.startswith("digits_"):
        return digits(rng, int(kind.removeprefix("digits_")))
    return pick(rng, LISTS[kind])

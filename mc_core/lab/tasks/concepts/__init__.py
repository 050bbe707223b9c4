"""Everyday concepts and the words that people have for them."""

from mc_core.lab.tasks.concepts.concept import Concept
from mc_core.lab.tasks.concepts.family import FAMILY
from mc_core.lab.tasks.concepts.people import PEOPLE
from mc_core.lab.tasks.concepts.places import PLACES
from mc_core.lab.tasks.concepts.tastes import TASTES
from mc_core.lab.tasks.concepts.work import WORK

CONCEPTS: tuple[Concept, ...] = (*FAMILY, *PEOPLE, *PLACES, *WORK, *TASTES)

__all__ = ["CONCEPTS", "Concept"]

"""Persons of work and town."""

from __future__ import annotations

from mc_core.lab.tasks.concepts.concept import Concept

PEOPLE: tuple[Concept, ...] = (
    Concept(
        "boss",
        "name",
        ("My boss is {v}.", "At the office I report to {v}.", "{v} is my manager."),
        ("Who gives me orders at work?", "Which person is my superior?", "Who leads my team?"),
        "Your boss is {v}.",
    ),
    Concept(
        "friend",
        "name",
        ("My best friend is {v}.", "{v} is my closest friend.", "I have always been friends with {v}."),
        ("Which pal do I trust most?", "Who is my dearest buddy?", "What is the name of my favorite mate?"),
        "Your best friend is {v}.",
    ),
    Concept(
        "neighbor",
        "name",
        ("My neighbor is {v}.", "{v} lives next door to me.", "{v} has the flat beside mine."),
        ("Which person dwells right by us?", "Who do I meet over the garden fence?", "Whose home touches ours?"),
        "Your neighbor is {v}.",
    ),
    Concept(
        "doctor",
        "name",
        ("My doctor is {v}.", "I see {v} when I am ill.", "{v} treats me when I am sick."),
        ("Which physician do I visit?", "Who looks after my health?", "What is the name of my medic?"),
        "Your doctor is {v}.",
    ),
    Concept(
        "dentist",
        "name",
        ("My dentist is {v}.", "{v} pulled my tooth.", "{v} drills my teeth."),
        ("Who cares for my molars?", "Which expert takes care of my mouth?", "Who should I visit for a cavity?"),
        "Your dentist is {v}.",
    ),
    Concept(
        "teacher",
        "name",
        ("My teacher is {v}.", "{v} taught me at school.", "I sat in the class of {v}."),
        ("Who gave me lessons?", "Which tutor did I have as a pupil?", "Who educated me?"),
        "Your teacher is {v}.",
    ),
    Concept(
        "lawyer",
        "name",
        ("My lawyer is {v}.", "My attorney is called {v}.", "{v} defended me in court."),
        ("Who is my legal adviser?", "Which counsel represents me?", "Who handles my trials?"),
        "Your lawyer is {v}.",
    ),
    Concept(
        "barber",
        "name",
        ("My barber is {v}.", "{v} cuts my hair.", "I get my haircut from {v}."),
        ("Who trims my locks?", "Which stylist takes care of my head?", "Which person with scissors do I visit?"),
        "Your barber is {v}.",
    ),
    Concept(
        "landlord",
        "name",
        ("My landlord is {v}.", "I pay my rent to {v}.", "{v} owns the flat that I rent."),
        (
            "Who is the proprietor of my apartment?",
            "To whom goes the money for my lodging?",
            "Who receives cash from me for housing?",
        ),
        "Your landlord is {v}.",
    ),
    Concept(
        "singer",
        "name",
        ("My favorite singer is {v}.", "No one sings better than {v}.", "I buy every record of {v}."),
        ("Which vocalist do I like most?", "Whose music do I adore?", "Who is my beloved artist on stage?"),
        "Your favorite singer is {v}.",
    ),
    Concept(
        "mayor",
        "name",
        ("The mayor is {v}.", "{v} runs the town hall.", "{v} won the local election."),
        ("Who governs the city?", "Which politician heads our municipality?", "Who is in charge of the council?"),
        "The mayor is {v}.",
        "victory",
    ),
    Concept(
        "captain",
        "name",
        ("The captain of the ship is {v}.", "{v} commands the vessel.", "{v} stands at the helm."),
        ("Who is the skipper?", "Which sailor gives the orders aboard?", "Who steers the boat?"),
        "The captain is {v}.",
    ),
    Concept(
        "winner",
        "name",
        ("{v} won the race.", "{v} came first in the race.", "{v} crossed the line before everyone."),
        ("Who was victorious?", "Which runner took gold?", "Who beat all the others?"),
        "The winner is {v}.",
        "victory",
    ),
    Concept(
        "thief",
        "name",
        ("{v} stole the necklace.", "The thief was {v}.", "{v} ran away with the jewels."),
        ("Who committed the robbery?", "Which person is the burglar?", "Who is the culprit?"),
        "The thief is {v}.",
    ),
    Concept(
        "author",
        "name",
        ("{v} wrote the novel.", "The book was written by {v}.", "The writer of the story is {v}."),
        ("Who is the author?", "From whose pen is that text?", "Who made up the tale?"),
        "The author is {v}.",
    ),
)

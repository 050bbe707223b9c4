"""Pets and family."""

from __future__ import annotations

from mc_core.lab.tasks.concepts.concept import Concept

FAMILY: tuple[Concept, ...] = (
    Concept(
        "dog",
        "name",
        ("My dog is called {v}.", "Our puppy answers to {v}.", "The hound at home is {v}."),
        (
            "What is my pet's name?",
            "How do I address my four-legged friend?",
            "Which name did I give my furry companion?",
        ),
        "Your dog is called {v}.",
        "pet",
    ),
    Concept(
        "cat",
        "name",
        ("My cat is called {v}.", "Our kitten answers to {v}.", "The tabby that sleeps on my bed is {v}."),
        (
            "What is the name of the feline that I keep?",
            "Who purrs at my place?",
            "Which name did I choose for my mouser?",
        ),
        "Your cat is called {v}.",
        "pet",
    ),
    Concept(
        "horse",
        "name",
        ("My horse is called {v}.", "The mare that I ride is {v}.", "I saddle {v} every morning."),
        ("What is the name of my steed?", "Which equine belongs to me?", "Who carries me over the fields?"),
        "Your horse is called {v}.",
        "pet",
    ),
    Concept(
        "parrot",
        "name",
        ("My parrot is called {v}.", "The bird in our cage is {v}.", "Our budgie goes by {v}."),
        (
            "What is the name of my feathered friend?",
            "Which name did I give the winged animal that I own?",
            "Who chirps to me at breakfast?",
        ),
        "Your parrot is called {v}.",
        "pet",
    ),
    Concept(
        "sister",
        "name",
        ("My sister is {v}.", "I grew up with my sister {v}.", "My parents had one more daughter, {v}."),
        ("Who is my sibling?", "Which girl shares a mother with me?", "Who played dolls beside me as a kid?"),
        "Your sister is {v}.",
        "family",
    ),
    Concept(
        "brother",
        "name",
        ("My brother is {v}.", "I shared a bunk with my brother {v}.", "My parents had one more son, {v}."),
        ("Who is my sibling?", "Which boy did my mother raise with me?", "Who played ball beside me as a kid?"),
        "Your brother is {v}.",
        "family",
    ),
    Concept(
        "mother",
        "name",
        ("My mother is {v}.", "My mum is called {v}.", "{v} gave birth to me."),
        (
            "Who is the woman that raised me?",
            "Which lady brought me up as a child?",
            "What is the first name of my female parent?",
        ),
        "Your mother is {v}.",
        "family",
    ),
    Concept(
        "father",
        "name",
        ("My father is {v}.", "My dad is called {v}.", "{v} is my daddy."),
        (
            "Who is the man that raised me?",
            "Which gentleman brought me up as a child?",
            "What is the first name of my male parent?",
        ),
        "Your father is {v}.",
        "family",
    ),
    Concept(
        "spouse",
        "name",
        ("My wife is {v}.", "I am married to {v}.", "{v} is my bride."),
        ("Who is my spouse?", "Which person did I wed?", "What is the name of my better half?"),
        "Your wife is {v}.",
        "family",
    ),
    Concept(
        "daughter",
        "name",
        ("My daughter is {v}.", "Our little girl is called {v}.", "{v} is my eldest girl."),
        ("What is the name of my child?", "Which kid am I the parent of?", "How did I christen my offspring?"),
        "Your daughter is {v}.",
        "family",
    ),
    Concept(
        "grandmother",
        "name",
        ("My grandmother is {v}.", "Granny {v} baked for us.", "My grandma is called {v}."),
        (
            "Which old lady in my family spoiled me?",
            "Who is the mother of one of my parents?",
            "What is the name of my oldest female ancestor?",
        ),
        "Your grandmother is {v}.",
        "family",
    ),
    Concept(
        "uncle",
        "name",
        ("My uncle is {v}.", "{v} is my mother's brother.", "{v} is the brother of my dad."),
        ("Which relative of mine has me as a nephew?", "Who would name me his nephew?", "To whom am I a nephew?"),
        "Your uncle is {v}.",
        "family",
    ),
    Concept(
        "cousin",
        "name",
        ("My cousin is {v}.", "{v} is the son of my aunt.", "My aunt's boy is {v}."),
        (
            "Which relative is the child of my parent's sibling?",
            "Who in the family shares my grandparents?",
            "What is the name of my kinsman?",
        ),
        "Your cousin is {v}.",
        "family",
    ),
    Concept(
        "roommate",
        "name",
        ("My roommate is {v}.", "I share my flat with {v}.", "{v} rents the other room."),
        ("Who lives with me?", "Which lodger is under my roof?", "With whom do I split the household?"),
        "Your roommate is {v}.",
        "family",
    ),
)

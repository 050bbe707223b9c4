"""Episodes of every task: answers are right, derivable and unambiguous; held-out ones share nothing with training."""

import re
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.errors import ConfigError
from mc_core.lab.tasks import word_lists
from mc_core.lab.tasks.absent import NOT_MENTIONED, REPLIES, absent
from mc_core.lab.tasks.build import MAX_DISTRACTORS
from mc_core.lab.tasks.chain import HOPS
from mc_core.lab.tasks.concepts import CONCEPTS
from mc_core.lab.tasks.facts import held_out_key
from mc_core.lab.tasks.make import TASKS, make_episode
from mc_core.lab.tasks.needles import MULTIKEY, PASS_KEY, TRAINED_VALUES, VALUES
from mc_core.lab.tasks.paraphrase import ASKED, STATED

EPISODES = 60
FORMS = (
    "|".join(word_lists.ADJECTIVES) + r")[- ](?:" + "|".join(word_lists.NOUNS),
    "|".join(word_lists.NAMES) + ") (?:" + "|".join(word_lists.SURNAMES),
    "|".join(word_lists.ADJECTIVES) + f") (?:{'|'.join(word_lists.THINGS)}) in (?:{'|'.join(word_lists.CITIES)}",
)
KEY = re.compile("|".join(rf"\b(?:(?:{form}))\b" for form in reversed(FORMS)) + r"|\b[A-Z]\d{3}\b")
KEYED = tuple(task for task in TASKS if task not in ("passkey", "paraphrase"))
drawn = given(
    task=st.sampled_from(TASKS),
    seed=st.integers(0, 2**32 - 1),
    held_out=st.booleans(),
    distractors=st.sampled_from((0, 1, 2, 7, 40)),
)


def keys_of(text):
    return set(KEY.findall(text))


def episodes(task, held_out, distractors=5):
    rng = np.random.default_rng([7, TASKS.index(task)])
    return [make_episode(rng, task, held_out, distractors) for _ in range(EPISODES)]


@settings(max_examples=300, deadline=None)
@drawn
def test_the_right_answer_is_right(task, seed, held_out, distractors):
    """The answer of every question scores 1 by its own values, and a stated value that is wrong scores 0."""
    episode = make_episode(np.random.default_rng(seed), task, held_out, distractors)
    for asked in episode.asked:
        assert asked.score(asked.answer) == 1.0
        for wrong in asked.wrong:
            assert asked.score(f"{asked.answer} {wrong}") == 0.0
            assert any(wrong in said for said in episode.statements)


@settings(max_examples=300, deadline=None)
@drawn
def test_gold_statements_hold_the_values(task, seed, held_out, distractors):
    """All values of an answer stand in its gold statements, and no gold statement is there for nothing."""
    episode = make_episode(np.random.default_rng(seed), task, held_out, distractors)
    for asked in episode.asked:
        gold = [episode.statements[i] for i in asked.gold]
        assert list(asked.gold) == sorted(set(asked.gold)) or task == "chain"
        if task == "absent" and not asked.gold:
            assert asked.values == (NOT_MENTIONED,)
            assert not any(NOT_MENTIONED in said for said in episode.statements)
        else:
            assert gold
            assert all(any(value in said for said in gold) for value in asked.values)
        outside = [said for i, said in enumerate(episode.statements) if i not in asked.gold]
        if task != "tracking":
            assert not any(value in said for said in outside for value in asked.values)


@settings(max_examples=100, deadline=None)
@drawn
def test_an_episode_is_its_seed(task, seed, held_out, distractors):
    """The same seed gives the same episode, with as many distractors as were asked for."""
    one, two = (make_episode(np.random.default_rng(seed), task, held_out, distractors) for _ in range(2))
    assert one == two
    bare = {"passkey": 1, "needle": 1, "multikey": MULTIKEY, "multivalue": VALUES, "uuid": 4, "tracking": 4}
    bare |= {"chain": HOPS, "paraphrase": STATED, "combine": 6, "absent": 4}
    if task == "multivalue" and not held_out:
        bare[task] = len(one.asked[0].values)
    if task != "paraphrase" or distractors < 40:
        assert len(one.statements) == bare[task] + distractors
    assert len(set(one.statements)) == len(one.statements)


@pytest.mark.parametrize("task", KEYED)
def test_held_out_keys_never_occur_in_training(task):
    """Every key of a held-out episode is a held-out one, distractors' too; no key of a training episode is."""
    for held_out in (False, True):
        for episode in episodes(task, held_out):
            found = {key for said in episode.statements for key in keys_of(said)}
            assert found
            assert all(held_out_key(key) == held_out for key in found), (held_out, found)
            for asked in episode.asked:
                assert all(held_out_key(key) == held_out for key in keys_of(asked.question))


def test_the_held_out_pass_key_test_is_never_trained():
    """The pair of statement and question that evaluation uses is in no training episode."""
    forms = {
        held_out: {
            (episode.statements[asked.gold[0]].replace(asked.values[0], "{v}"), asked.question)
            for episode in episodes("passkey", held_out)
            for asked in episode.asked
        }
        for held_out in (False, True)
    }
    assert forms[True] == {PASS_KEY[0]}
    assert forms[False] == set(PASS_KEY[1:])


@pytest.mark.parametrize("task", ["needle", "multikey", "uuid", "multivalue", "absent"])
def test_a_key_asked_for_is_in_its_gold_statements_alone(task):
    """No two statements of different facts share the key asked for; a key that is absent is in no statement."""
    for held_out in (False, True):
        for episode in episodes(task, held_out):
            for asked in episode.asked:
                (key,) = keys_of(asked.question)
                holding = tuple(i for i, said in enumerate(episode.statements) if key in keys_of(said))
                assert holding == asked.gold


def test_an_absent_key_looks_like_a_stated_one():
    """A question about what was never said shares a word with what was, so that it can't be told by its words."""
    for episode in episodes("absent", True):
        stated = {half for said in episode.statements for key in keys_of(said) for half in re.split("[- ]", key)}
        for asked in episode.asked:
            (key,) = keys_of(asked.question)
            assert stated & set(re.split("[- ]", key))


@pytest.mark.parametrize("held_out", [False, True])
def test_words_do_not_tell_what_is_absent(held_out):
    """What was never stated and what was are asked for in the same words, as often."""
    rng = np.random.default_rng(8)
    asked = [
        (KEY.sub("{k}", asked.question), bool(asked.gold))
        for _ in range(400)
        for asked in absent(rng, held_out, 0).asked
    ]
    known, unknown = (Counter(words for words, gold in asked if gold == stated) for stated in (True, False))
    assert known.total() == unknown.total()
    assert set(known) == set(unknown)


def test_training_declines_in_one_way_and_half_of_what_it_declines_is_made_of_stated_words():
    """In training all replies about what was never stated begin alike, so that they compete with one made-up value,
    and about half of the keys never stated share both words with stated ones; never-stated is half of what is asked."""
    for held_out, replies in ((False, REPLIES[:1]), (True, REPLIES)):
        missing, crossed, asked_of = [], 0, 0
        for episode in (absent(np.random.default_rng(seed), held_out, 3) for seed in range(300)):
            halves = {half for said in episode.statements for key in keys_of(said) for half in re.split("[- ]", key)}
            asked_of += len(episode.asked)
            for asked in episode.asked:
                if not asked.gold:
                    missing.append(asked.answer)
                    (key,) = keys_of(asked.question)
                    crossed += set(re.split("[- ]", key)) <= halves
        assert len(missing) == asked_of / 2
        assert set(missing) == set(replies)
        assert crossed > 0.3 * len(missing) or held_out


def test_lists_are_of_many_lengths_in_training():
    """Training asks for two to five values of a key, each number about as often; evaluation for always as many."""
    trained, kept = (
        Counter(len(episode.asked[0].values) for episode in episodes("multivalue", held_out))
        for held_out in (False, True)
    )
    assert set(trained) == set(range(TRAINED_VALUES[0], TRAINED_VALUES[1] + 1))
    assert min(trained.values()) > EPISODES / 10
    assert set(kept) == {VALUES}


@pytest.mark.parametrize("task", ["multikey", "multivalue", "uuid", "tracking"])
def test_training_has_wordings_of_its_own(task):
    """Questions are asked in training in words that evaluation never uses, a quarter of them at least."""
    forms = {
        held_out: Counter(KEY.sub("{k}", one.question) for e in episodes(task, held_out) for one in e.asked)
        for held_out in (False, True)
    }
    own = sum(count for form, count in forms[False].items() if form not in forms[True])
    assert 0.25 < own / forms[False].total() < 0.9


def test_a_verb_does_not_tell_a_list_from_one():
    """The verbs that ask for all values of a key ask for a single one as well."""
    one, every = (
        {asked.question.split()[0] for episode in episodes(task, False) for asked in episode.asked}
        for task in ("multikey", "multivalue")
    )
    assert {"Name", "Write", "Which", "What", "Give"} <= one & every


def test_the_value_before_the_last_change_is_asked_for_in_many_words():
    """Training asks for it as often as for the last value, half of the time in words of its own; evaluation in one."""
    before = {
        held_out: Counter(KEY.sub("{k}", episode.asked[1].question) for episode in episodes("tracking", held_out))
        for held_out in (False, True)
    }
    assert len(before[True]) == 4
    assert len(before[False]) > 12
    assert all(len(episode.asked) == 2 for episode in episodes("tracking", False))


def test_updates_stand_in_order():
    """The last statement about a thing holds the answer; the question about before needs it and the one before."""
    for episode in episodes("tracking", False, distractors=6):
        now, before = episode.asked
        (key,) = keys_of(now.question)
        told = [i for i, said in enumerate(episode.statements) if key in keys_of(said)]
        assert len(told) == 4
        assert now.gold == (told[-1],)
        assert before.gold == (told[-2], told[-1])
        assert now.values[0] in before.wrong
        assert before.values[0] in now.wrong
        assert len({*now.values, *now.wrong}) == 4


def test_a_chain_is_walked_from_the_name_asked_for_to_its_value():
    """The answer names each link in order, every link is stated, and it ends with the value."""
    for held_out in (False, True):
        for episode in episodes("chain", held_out, distractors=6):
            (asked,) = episode.asked
            (start,) = keys_of(asked.question)
            steps = asked.answer.rstrip(".").split(", ")
            assert len(steps) == HOPS
            assert asked.answer.endswith(f"{asked.values[0]}.")
            gold = [keys_of(episode.statements[i]) for i in asked.gold]
            at = start
            for step in steps:
                assert KEY.search(step)[0] == at
                assert keys_of(step) in gold
                at = next(iter(keys_of(step) - {at}), None)
            assert at is None


def test_combining_needs_both_statements():
    """No single statement answers a question: it names what one statement says and asks for what another holds."""
    for episode in episodes("combine", False, distractors=9):
        for asked in episode.asked:
            assert len(asked.gold) == 2
            a, b = (episode.statements[i] for i in asked.gold)
            assert len({*keys_of(a), *keys_of(b)}) == (2 if len(asked.values) == 2 else 1)
            if len(asked.values) == 1:
                trait = asked.question.split("the person who ")[1].rstrip("?.")
                (holder,) = (i for i, said in enumerate(episode.statements) if said.endswith(f"{trait}."))
                assert holder in asked.gold
                assert not keys_of(asked.question)


def test_paraphrased_things_are_of_different_groups():
    """Values of an episode can be told apart, and several of its things are asked for."""
    for episode in episodes("paraphrase", False):
        assert len(episode.asked) == ASKED
        values = [asked.values[0] for asked in episode.asked]
        assert not any(a in b for a, b in combinations(sorted(values, key=len), 2))


def test_bad_tasks_and_distractors_are_refused():
    """An unknown task, or more distractors than there are keys for, is a ConfigError that names the field."""
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match=r"^task must be one of"):
        make_episode(rng, "sums")
    for count in (-1, MAX_DISTRACTORS + 1):
        with pytest.raises(ConfigError, match=r"^distractors must lie in"):
            make_episode(rng, "needle", distractors=count)


@pytest.mark.parametrize("task", TASKS)
def test_the_most_distractors_can_be_made(task):
    """There are held-out keys enough for the limit."""
    make_episode(np.random.default_rng(3), task, True, MAX_DISTRACTORS)


@pytest.mark.parametrize("task", ["needle", "multikey", "uuid", "multivalue", "tracking", "chain", "combine"])
def test_held_out_episodes_also_ask_in_words_of_their_own(task):
    """Whole templates of questions are kept for evaluation, beside those of training."""
    forms = {}
    for held_out in (False, True):
        asked = [KEY.sub("{k}", one.question) for episode in episodes(task, held_out) for one in episode.asked]
        forms[held_out] = {re.sub(r"the person who .*", "the person", text) for text in asked}
    assert forms[True] & forms[False]
    assert forms[True] - forms[False]


def test_training_asks_in_requests_too_but_never_as_evaluation_does():
    """Requests stand for questions in training, and none of them is a template that is kept for evaluation."""
    for task in ("needle", "multivalue", "combine", "tracking"):
        asked = {KEY.sub("{k}", one.question) for episode in episodes(task, False) for one in episode.asked}
        assert any(not text.startswith(("What", "Which", "Where", "In ", "How")) for text in asked), task
        assert not any(re.fullmatch(r"(Please )?[Tt]ell me the special magic .*", text) for text in asked)
        assert not any(text.startswith(("I need", "List every", "What do I pay")) for text in asked)


def test_names_of_a_chain_lead_nowhere_else():
    """No name of the chain asked for is in a distractor, so the walk never forks."""
    for episode in episodes("chain", True, distractors=10):
        (asked,) = episode.asked
        inside = {key for i in asked.gold for key in keys_of(episode.statements[i])}
        assert len(inside) == HOPS
        others = [said for i, said in enumerate(episode.statements) if i not in asked.gold]
        assert not any(inside & keys_of(said) for said in others)


def test_there_is_one_pass_key():
    """Distractors of the pass key are about other things."""
    for episode in episodes("passkey", True, distractors=10):
        assert sum("pass key" in said for said in episode.statements) == 1


def test_paraphrase_questions_find_one_concept_each():
    """No two statements of an episode are of one group of concepts, so that a question is about one statement."""
    forms = [
        (concept, re.compile(re.escape(said).replace(r"\{v\}", r"[\w-]+").replace(r"\ a\ ", r"\ an?\ ")))
        for concept in CONCEPTS
        for said in concept.stated
    ]
    for episode in episodes("paraphrase", True, distractors=30):
        found = [{concept.family for concept, form in forms if form.fullmatch(said)} for said in episode.statements]
        assert all(found)
        sure = [families for families in found if len(families) == 1]
        assert len(set.union(*sure)) == len(sure) > 20

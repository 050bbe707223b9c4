"""A reply as it grows: what ends it, what of it is shown, and what of it the history keeps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.engine.reply import Reply
from mc_core.engine.requests import Delta
from mc_core.models.sampler import SampledToken, SamplingParams
from mc_core.models.tokenizer import Tokenizer
from template_shapes import EOS, TOKENIZERS, spec_of

MADE = {kind: Tokenizer(spec_of(kind), {"eos_token": EOS}) for kind in TOKENIZERS}
TEXTS = [" the keeper", " 4711", "東京", "🙂", "\n\n", "  ", "It was", " <think>", "wave"]
NAMES = ["<|im_end|>", "<|eot_id|>", "<think>"]


def ids_of(tokenizer: Tokenizer, parts: list[str]) -> list[int]:
    return tokenizer.encode_control("".join(parts)).tolist()


def run(tokenizer: Tokenizer, ids: list[int], **sampling: object) -> tuple[Reply, str]:
    """The reply of a model that samples ``ids``, and the text that its sink was given."""
    told: list[Delta] = []
    reply = Reply(tokenizer, SamplingParams(**sampling), told.append)  # type: ignore[arg-type]
    for token in ids:
        if reply.take(SampledToken(token, float("nan"), ())):
            break
    return reply, "".join(delta.text for delta in told)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_kind_of_end_token_ends_a_reply(kind: str) -> None:
    """The model's own, those of a template, and those of the request; ignore_eos overlooks all but these."""
    tokenizer = Tokenizer(spec_of(kind), {"eos_token": EOS}, eos_ids=[3])
    (template_end,) = ids_of(tokenizer, ["<|end|>"])
    tokenizer.also_end_with([template_end])
    text = ids_of(tokenizer, ["It was the best"])
    (asked,) = ids_of(tokenizer, ["<|eot_id|>"])
    for end in (*ids_of(tokenizer, [EOS]), 3, template_end, asked):
        for ignore in (False, True):
            reply, shown = run(
                tokenizer, [*text, end, *text], stop_token_ids=(asked,), ignore_eos=ignore, max_tokens=len(text) * 2
            )
            ended = end == asked or not ignore
            assert reply.reason == ("stop" if ended else "length")
            assert shown == tokenizer.decode(text) * (1 if ended else 2) or not ended
            if ended:
                assert reply.kept_ids().tolist() == text
                assert reply.count == len(text) + 1


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(
    ("stop", "shown"),
    [("<|eot_id|>", "It was the"), ("the<|eot_id|>", "It was "), ("t_id|> wa", "It was the"), ("></s>", "It was the")],
)
def test_stop_strings_see_special_tokens(kind: str, stop: str, shown: str) -> None:
    """The name of a special token counts for stop strings, alone and beside text, and is shown in no case."""
    tokenizer = MADE[kind]
    ids = ids_of(tokenizer, ["It was the", "<|eot_id|>", EOS if "s>" in stop else "", " wave"])
    reply, text = run(tokenizer, ids, stop=(stop,), ignore_eos=True)
    if "wa" in stop and kind == "prepend":
        stop = "t_id|>"  # this tokenizer writes two blanks there
        reply, text = run(tokenizer, ids, stop=(stop,), ignore_eos=True)
    assert (text, reply.reason) == (shown, "stop")
    assert tokenizer.decode(reply.kept_ids()) == shown


@settings(max_examples=150, deadline=None)
@given(st.data())
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_history_keeps_the_sampled_ids_up_to_a_stop_string(kind: str, data: st.DataObject) -> None:
    """Kept ids read as the text shown, and are the sampled ones but for the token in which the stop string begins."""
    tokenizer = MADE[kind]
    ids = ids_of(tokenizer, data.draw(st.lists(st.sampled_from([*TEXTS, *NAMES]), min_size=1, max_size=8)))
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    at = data.draw(st.integers(0, max(len(whole) - 1, 0)))
    stop = whole[at : at + data.draw(st.integers(1, 6))] or "x"
    reply, text = run(tokenizer, ids, stop=(stop,), ignore_eos=True)
    if not reply.hit_stop_string:
        return
    kept = reply.kept_ids().tolist()
    assert tokenizer.decode(kept) == text
    same = next((n for n, (a, b) in enumerate(zip(kept, ids, strict=False)) if a != b), min(len(kept), len(ids)))
    rest = tokenizer.decode(kept[same:], skip_special_tokens=False)
    assert len(rest) <= len(max(map(str, [*NAMES, *TEXTS]), key=len))
    assert not set(kept[same:]) & tokenizer.control_ids

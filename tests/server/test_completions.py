"""Text completions and the model list."""

import contextlib

import openai
import pytest

from support import gauge, wait_until

MODEL = "tiny"


def test_text_and_token_prompts_agree(client, tokenizer):
    """A prompt as token ids gives the reply of the same prompt as text."""
    ask = {"model": MODEL, "max_tokens": 8, "temperature": 0}
    text = client.completions.create(prompt="It was the best of times", **ask)
    ids = tokenizer.encode("It was the best of times")
    assert text.object == "text_completion"
    assert text.usage.prompt_tokens == len(ids)
    assert client.completions.create(prompt=ids.tolist(), **ask).choices[0].text == text.choices[0].text


def test_streamed_and_whole_agree(client):
    """The deltas put together are the whole text, and the last chunk says why it ended."""
    ask = {"model": MODEL, "prompt": "It was", "max_tokens": 12, "seed": 2, "logprobs": 2}
    whole = client.completions.create(**ask)
    chunks = list(client.completions.create(stream=True, stream_options={"include_usage": True}, **ask))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 12
    tokens = [token for c in chunks if c.choices and c.choices[0].logprobs for token in c.choices[0].logprobs.tokens]
    assert tokens == whole.choices[0].logprobs.tokens
    assert len(whole.choices[0].logprobs.top_logprobs[0]) == 2


def test_a_session_can_be_continued_as_text(client, http, session):
    """With a session, a completion goes on at the end of its history and stays in it."""
    http.post(f"/v1/sessions/{session}/ingest", json={"text": "It was the best of times, "})
    before = http.get(f"/v1/sessions/{session}").json()["tokens"]
    reply = client.completions.create(
        model=MODEL, prompt="it was", max_tokens=6, extra_body={"session_id": session, "ignore_eos": True}
    )
    after = http.get(f"/v1/sessions/{session}").json()["tokens"]
    assert reply.usage.prompt_tokens_details.cached_tokens == before
    assert after == reply.model_extra["x_megacontext"]["tokens"] > before


@pytest.mark.parametrize("prompt", ["", [], [100_000], [-1], [""], ["Hi", ""], [[]], [[1], []], [[1], [-1]], ["a", 1]])
def test_impossible_prompts(client, prompt):
    """An empty prompt and ids outside the vocabulary are refused with the field's name."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=2)
    assert refused.value.param.startswith("prompt")


ENDLESS = {"max_tokens": 100_000, "stream": True, "extra_body": {"ignore_eos": True}}
PROMPTS = ["It was the best of times", "The magic number", "The keeper"]


def alone(client, prompt, **options):
    """A greedy completion, as soon as there is room: earlier turns are counted until they have let go of all."""
    ask = {"model": MODEL, "prompt": prompt, "max_tokens": 9, "temperature": 0, **options}
    replies = []

    def asked():
        with contextlib.suppress(openai.RateLimitError):
            replies.append(client.completions.create(**ask))
        return replies

    wait_until(asked)
    return replies[0]


@pytest.mark.parametrize("as_ids", [False, True])
def test_a_list_of_prompts_has_a_choice_for_each(client, tokenizer, as_ids):
    """Each choice is what its prompt alone gives, in the prompts' order, and the usage is the sum."""
    prompts = [tokenizer.encode(prompt).tolist() for prompt in PROMPTS] if as_ids else PROMPTS
    reply = alone(client, prompts)
    single = [alone(client, prompt) for prompt in PROMPTS]
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert [choice.text for choice in reply.choices] == [one.choices[0].text for one in single]
    assert reply.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in single)
    assert reply.usage.total_tokens == sum(one.usage.total_tokens for one in single)
    contexts = [choice.model_extra["x_megacontext"] for choice in reply.choices]
    assert [one["tokens"] for one in contexts] == [one.model_extra["x_megacontext"]["tokens"] for one in single]
    assert alone(client, PROMPTS[:1]).choices[0].text == single[0].choices[0].text


def test_a_list_of_prompts_is_streamed_side_by_side(client):
    """The chunks of each index put together are its text; each index ends once, and one usage chunk ends all."""
    whole = alone(client, PROMPTS, logprobs=1)
    chunks = list(alone(client, PROMPTS, logprobs=1, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    for choice in whole.choices:
        own = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == choice.index]
        assert "".join(part.text for part in own) == choice.text
        assert [part.finish_reason for part in own].count("length") == 1
        told = [part.logprobs for part in own if part.logprobs]
        assert [token for one in told for token in one.tokens] == choice.logprobs.tokens
        assert [offset for one in told for offset in one.text_offset] == choice.logprobs.text_offset
    assert [chunk.usage for chunk in chunks if chunk.usage] == [whole.usage]
    assert chunks[-1].choices == []


def test_prompts_beyond_the_limits_are_refused_as_a_whole(client, http, session, address):
    """More prompts than the server ever takes, or a list for one session, is answered 400, and nothing is begun."""
    for prompts, options, word in [
        (["Hi"] * 5, {}, "takes 4 at once"),
        (["Hi"] * 2, {"extra_body": {"session_id": session}}, "one prompt"),
    ]:
        with pytest.raises(openai.BadRequestError, match=word) as refused:
            client.completions.create(model=MODEL, prompt=prompts, **options)
        assert refused.value.param == "prompt"
    assert http.get(f"/v1/sessions/{session}").json()["tokens"] == 0


def test_a_list_of_prompts_waits_for_room_as_a_whole(client, address):
    """Where some of the prompts would find no room, none of them begins: 429; later all of them do."""
    with alone(client, ["It"] * 3, **ENDLESS) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(model=MODEL, prompt=["Hi", "Ho"])
        assert refused.value.code == "queue_full"
        assert gauge(address, "megacontext_turns_waiting") <= 1
    wait_until(lambda: gauge(address, "megacontext_turns_running") == 0)
    wait_until(lambda: gauge(address, "megacontext_turns_waiting") == 0)
    assert len(alone(client, ["Hi", "Ho"]).choices) == 2


def test_a_client_that_goes_away_stops_all_of_its_prompts(client, http, address):
    """When the stream of several prompts is closed, every turn ends and no session of theirs stays."""
    before = {one["id"] for one in http.get("/v1/sessions", params={"limit": 1000}).json()["data"]}
    with alone(client, ["It"] * 4, **ENDLESS) as stream:
        next(iter(stream))
    wait_until(lambda: gauge(address, "megacontext_turns_running") == 0)

    def cleared():
        return {one["id"] for one in http.get("/v1/sessions", params={"limit": 1000}).json()["data"]} <= before

    wait_until(cleared)


def test_models(client):
    """The list names the one model, and it can be asked for by its name alone."""
    listed = client.models.list().data
    assert [model.id for model in listed] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


EMOJI = "🙂é京"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_pieces_of_characters(client, tokenizer, stream):
    """Each token has five alternatives, however few of them are whole characters, and the offset of its own text."""
    pieces = {str(i): 100 for i in tokenizer.encode(EMOJI).tolist()}
    ask = {"model": MODEL, "prompt": "It was", "max_tokens": 40, "seed": 3, "logprobs": 5, "logit_bias": pieces}
    answer = client.completions.create(stream=stream, **ask)
    choices = [chunk.choices[0] for chunk in (answer if stream else [answer]) if chunk.choices]
    text = "".join(choice.text for choice in choices)
    told = [choice.logprobs for choice in choices if choice.logprobs]
    tokens = [token for one in told for token in one.tokens]
    offsets = [place for one in told for place in one.text_offset]
    assert [len(top) for one in told for top in one.top_logprobs] == [5] * 40
    assert any(token.startswith("bytes:\\x") for token in tokens)
    assert offsets[0] == 0
    assert all(b - a >= 0 for a, b in zip(offsets, [*offsets[1:], len(text)], strict=True))
    for token, place in zip(tokens, offsets, strict=True):
        if not token.startswith("bytes:"):
            assert token in text[place : place + len(token) + 3]  # behind what is left of a broken character


def test_offsets_end_where_the_text_does(client):
    """Tokens of a stop string, which is not shown, have no place behind the text."""
    ask = {"model": MODEL, "prompt": "It was", "max_tokens": 30, "seed": 2, "logprobs": 1}
    whole = client.completions.create(**ask).choices[0].text
    choice = client.completions.create(stop=whole[6:9], **ask).choices[0]
    assert choice.text == whole[: whole.index(whole[6:9])]
    assert max(choice.logprobs.text_offset) <= len(choice.text)


def test_stop_token_ids(client, tokenizer):
    """A reply ends before the first token that the request names; ids that the model has not are refused."""
    ask = {"model": MODEL, "prompt": "It was", "max_tokens": 20, "seed": 2, "logprobs": 0}
    tokens = client.completions.create(**ask).choices[0].logprobs.tokens
    ids = [i for i in range(384) if tokenizer.token_bytes(i).decode(errors="replace") == tokens[5]]
    choice = client.completions.create(extra_body={"stop_token_ids": ids}, **ask).choices[0]
    assert (choice.finish_reason, len(choice.logprobs.tokens)) == ("stop", tokens.index(tokens[5]))
    with pytest.raises(openai.BadRequestError, match="stop_token_ids"):
        client.completions.create(extra_body={"stop_token_ids": [384]}, **ask)

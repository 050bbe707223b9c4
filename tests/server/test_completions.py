"""Text completions and the model list."""

import openai
import pytest

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


@pytest.mark.parametrize("prompt", ["", [], [100_000], [-1]])
def test_impossible_prompts(client, prompt):
    """An empty prompt and ids outside the vocabulary are refused with the field's name."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=2)
    assert refused.value.param.startswith("prompt")


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

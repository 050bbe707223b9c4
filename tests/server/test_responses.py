"""/v1/responses through the official client: events, branches, the background, what is kept and what is not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response

from support import EOS, running, settings_for, wait_until

MODEL = "tiny"
LETTERS = {"67": 100, "68": 100, "69": 100}
WRITING: dict[str, Any] = {"ignore_eos": True, "logit_bias": LETTERS}
"""What a reply of letters alone wants, so that its text is its tokens."""
SMALL: dict[str, Any] = {"model": MODEL, "max_output_tokens": 6, "extra_body": WRITING}
ENDING: dict[str, Any] = {"model": MODEL, "extra_body": {"logit_bias": {str(EOS): 100}}}
LONG: dict[str, Any] = {**SMALL, "max_output_tokens": 100_000}


@pytest.fixture
def ask(client: openai.OpenAI) -> Callable[..., Any]:
    """Creates a response; a full queue is waited for."""
    patient = client.with_options(max_retries=5)
    return lambda said="Hello", **options: patient.responses.create(**{**SMALL, "input": said, **options})


def session_of(response: Response) -> str:
    told: Any = response.to_dict()["x_megacontext"]
    return str(told["session_id"])


def events(stream: Any) -> list[dict[str, Any]]:
    return [event.to_dict() for event in stream]


def text_in(told: list[dict[str, Any]]) -> str:
    return "".join(event["delta"] for event in told if event["type"] == "response.output_text.delta")


# -- one response ----------------------------------------------------------------------------------------------------


def test_a_stream_has_the_events_of_the_official_api_in_their_order(ask: Any) -> None:
    """Created, in progress, item, part, deltas, their ends in turn, and the whole object last; each is numbered."""
    told = events(ask(stream=True))
    kinds = [event["type"].removeprefix("response.") for event in told]
    around = ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[:4] == around
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    last = told[-1]["response"]
    assert last["output"][0]["content"][0]["text"] == text_in(told)
    assert {event["item_id"] for event in told if "item_id" in event} == {last["output"][0]["id"]}
    assert {event["response"]["id"] for event in told if "response" in event} == {last["id"]}
    assert (last["status"], last["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert last["usage"]["output_tokens"] == 6


def test_the_official_helper_reads_a_stream_to_its_end(client: openai.OpenAI) -> None:
    """``responses.stream`` puts the events together and finds the finished response."""
    with client.with_options(max_retries=5).responses.stream(input="Hi", **ENDING) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[-1] == "response.completed"
    assert (final.status, final.output_text) == ("completed", "")


def test_a_response_is_kept_as_it_was_told(ask: Any, client: openai.OpenAI) -> None:
    """Retrieved, a response is the object that was answered; streamed again, it has the events of its stream."""
    whole = ask()
    assert client.responses.retrieve(whole.id).to_dict() == whole.to_dict()
    told = events(ask(stream=True, top_logprobs=2, temperature=0))
    id = told[0]["response"]["id"]
    assert events(client.responses.retrieve(id, stream=True)) == told
    assert events(client.responses.retrieve(id, stream=True, starting_after=6)) == told[7:]
    assert len(told[5]["logprobs"][0]["top_logprobs"]) == 2


def test_input_is_listed_as_items(ask: Any, client: openai.OpenAI) -> None:
    """What was sent is listed, newest first, a page at a time; texts keep their parts."""
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "A"}, {"type": "input_text", "text": "B"}]},
    ]
    id = ask(items).id
    listed: list[Any] = list(client.responses.input_items.list(id, limit=1))
    assert [item.role for item in listed] == ["user", "developer"]
    assert [part.text for part in listed[0].content] == ["A", "B"]
    assert [item.id for item in client.responses.input_items.list(id, order="asc")] == [i.id for i in listed[::-1]]


def test_a_deleted_response_is_gone(ask: Any, client: openai.OpenAI) -> None:
    """Nothing finds it any more, and nothing follows it."""
    id = ask().id
    client.responses.delete(id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(id)
    with pytest.raises(openai.BadRequestError) as refused:
        ask(previous_response_id=id)
    assert (refused.value.param, refused.value.code) == ("previous_response_id", "previous_response_not_found")


def test_a_response_that_is_not_to_be_stored_leaves_nothing(
    ask: Any, client: openai.OpenAI, http: httpx.Client
) -> None:
    """``store: false``: its id is unknown afterwards, also behind a stored one, which stays as it was."""
    before = ask()

    def sessions() -> list[str]:
        return [one["id"] for one in http.get("/v1/sessions?limit=1000").json()["data"]]

    held = sessions()
    for options in ({}, {"previous_response_id": before.id}):
        passing = ask(store=False, **options)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(passing.id)
    assert passing.usage.input_tokens > before.usage.total_tokens
    # The branch goes when its turn has let go of it.
    wait_until(lambda: sessions() == held)
    assert session_of(ask(previous_response_id=before.id)) == session_of(before)


def test_events_behind_the_last_one_are_refused(ask: Any, client: openai.OpenAI) -> None:
    """Nothing comes behind the last event of a response that has ended; what would begin behind that is an error."""
    told = events(ask(stream=True))
    id, last = told[0]["response"]["id"], told[-1]["sequence_number"]
    assert events(client.responses.retrieve(id, stream=True, starting_after=last)) == []
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.retrieve(id, stream=True, starting_after=last + 1)
    assert refused.value.param == "starting_after"


def test_a_response_lives_as_long_as_it_is_gone_on_from(model_dir: Any, tmp_path: Any) -> None:
    """Of the sessions that responses make by themselves those go that were not used for longest, with their responses:
    a chain that goes on keeps all of its own, however many others come; one that went is told so by either way."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", max_implicit_sessions=6, max_queue=8)
    with running(settings) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:

        def made(said: str, before: str | None = None) -> str:
            follows: Any = {} if before is None else {"previous_response_id": before}
            return str(client.responses.create(input=said, **{**SMALL, "max_output_tokens": 1}, **follows).id)

        chain, others = [made("Hello")], []
        for number in range(14):
            others.append(made(f"{number} is another"))
            if number % 3 == 0:
                chain.append(made("Go on", chain[-1]))
        wait_until(lambda: len(httpx.get(f"{address}/v1/sessions?implicit=true").json()["data"]) <= 6)
        for id in chain:
            assert client.responses.retrieve(id).id == id
        made("And?", chain[1])
        with pytest.raises(openai.NotFoundError, match="was not used for long"):
            client.responses.retrieve(others[0])
        with pytest.raises(openai.BadRequestError, match="was not used for long") as refused:
            made("And?", others[0])
        assert (refused.value.param, refused.value.code) == ("previous_response_id", "previous_response_not_found")


def test_outputs_of_calls_are_read_whatever_they_name(ask: Any, http: httpx.Client) -> None:
    """The history may hold the call or not, under its id or another: what a call gave is read as it is sent, by all
    APIs alike."""
    output = {"type": "function_call_output", "call_id": "call_of_nobody", "output": "Rain"}
    asked = {"role": "user", "content": "So?"}
    assert ask([output, asked]).usage.input_tokens > ask([asked]).usage.input_tokens
    call = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
    assert ask([asked, call, output]).status == "incomplete"
    result = {"type": "tool_result", "tool_use_id": "toolu_of_nobody", "content": "Rain"}
    for path, messages in (
        ("/v1/chat/completions", [asked, {"role": "tool", "tool_call_id": "call_of_nobody", "content": "Rain"}]),
        ("/v1/messages", [{"role": "user", "content": [result]}]),
    ):
        answer = http.post(path, json={"model": MODEL, "max_tokens": 2, "messages": messages})
        assert answer.status_code == 200, answer.text


# -- one after the other ---------------------------------------------------------------------------------------------


def test_the_newest_response_is_gone_on_with_in_place(ask: Any) -> None:
    """A chain of responses is one session, whose history grows by what is new alone."""
    one = ask()
    two = ask("And then?", previous_response_id=one.id)
    three = ask("And then?", previous_response_id=two.id)
    assert session_of(one) == session_of(two) == session_of(three)
    assert three.usage.input_tokens_details.cached_tokens == two.to_dict()["x_megacontext"]["tokens"]


def test_an_earlier_response_is_branched_from(ask: Any) -> None:
    """Two that follow the same one share its history and not each other's; all three can be gone on from."""
    one = ask("My name is Ann", temperature=0)
    two = ask("And then?", previous_response_id=one.id, temperature=0)
    other = ask("And then?", previous_response_id=one.id, temperature=0)
    assert session_of(other) != session_of(two)
    assert (other.output_text, other.usage.input_tokens) == (two.output_text, two.usage.input_tokens)
    for response in (one, two, other):
        assert ask("Go on", previous_response_id=response.id).usage.input_tokens > response.usage.total_tokens


def test_a_branch_reads_what_a_chat_of_the_same_messages_reads(ask: Any) -> None:
    """The tokens before a branch's reply are those of the whole conversation sent at once."""
    one = ask("My name is Ann", temperature=0)
    ask("Something else", previous_response_id=one.id)
    branch = ask("Who am I?", previous_response_id=one.id, temperature=0)
    said = [("user", "My name is Ann"), ("assistant", one.output_text), ("user", "Who am I?")]
    whole = ask([{"role": role, "content": text} for role, text in said], store=False, temperature=0)
    assert (branch.output_text, branch.usage.input_tokens) == (whole.output_text, whole.usage.input_tokens)


def test_instructions_hold_for_one_request(ask: Any) -> None:
    """They are not carried over: what follows without them reads as if they had never been."""
    plain = ask("Hi", temperature=0, store=False)
    first = ask("Hi", instructions="Answer in French, and at length.", temperature=0)
    assert first.usage.input_tokens > plain.usage.input_tokens
    follow = ask("Go on", previous_response_id=first.id, temperature=0)
    said = [("user", "Hi"), ("assistant", first.output_text), ("user", "Go on")]
    whole = ask([{"role": role, "content": text} for role, text in said], store=False, temperature=0)
    assert follow.usage.input_tokens == whole.usage.input_tokens


def test_instructions_that_are_repeated_are_read_once(ask: Any) -> None:
    """A chain with the same instructions grows by what is new alone; others take their place."""
    chain = [ask("Hi", instructions="Answer in French.")]
    for _ in range(3):
        chain.append(ask("Go on", instructions="Answer in French.", previous_response_id=chain[-1].id))
    for before, after in itertools.pairwise(chain):
        assert after.usage.input_tokens_details.cached_tokens == before.to_dict()["x_megacontext"]["tokens"]
    other = ask("Go on", instructions="Answer in Greek!", previous_response_id=chain[-1].id)
    assert other.usage.input_tokens_details.cached_tokens < chain[0].usage.total_tokens


def test_a_branch_finds_its_instructions_where_they_stood(ask: Any) -> None:
    """A question that is asked anew behind the same response reads what it read before: the same instructions stand in
    the same place."""
    said = "Answer in French, and at length."
    first = ask("Hi", instructions=said, temperature=0)
    told = ["message.output_text.logprobs"]
    asked = {"instructions": said, "previous_response_id": first.id, "temperature": 0, "include": told}
    one, again = (ask("Go on", **asked) for _ in range(2))
    assert session_of(one) != session_of(again)
    assert (again.output_text, again.usage.input_tokens) == (one.output_text, one.usage.input_tokens)
    drawn = [[token.logprob for token in each.output[0].content[0].logprobs] for each in (one, again)]
    assert drawn[0] == pytest.approx(drawn[1], abs=1e-3)
    follow = ask("Go on", previous_response_id=again.id, instructions=said, temperature=0)
    assert follow.usage.input_tokens_details.cached_tokens == again.to_dict()["x_megacontext"]["tokens"]


def test_messages_that_are_sent_again_find_their_history(ask: Any) -> None:
    """A client that sends the whole conversation each time has it read once."""
    one = ask("Hi, I am Ann")
    said = [("user", "Hi, I am Ann"), ("assistant", one.output_text), ("user", "Who am I?")]
    again = ask([{"role": role, "content": text} for role, text in said])
    assert session_of(again) == session_of(one)
    assert again.usage.input_tokens_details.cached_tokens > 0


# -- in the background -----------------------------------------------------------------------------------------------


def test_a_background_response_goes_on_without_its_client(ask: Any, client: openai.OpenAI) -> None:
    """It is told as queued, streams from wherever one likes while it runs, and is kept when it has ended."""
    queued = ask(background=True, max_output_tokens=40)
    assert queued.status == "queued"
    told = events(client.responses.retrieve(queued.id, stream=True))
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert client.responses.retrieve(queued.id).output_text == text_in(told)
    assert events(client.responses.retrieve(queued.id, stream=True, starting_after=20)) == told[21:]
    assert ask("Go on", previous_response_id=queued.id).status == "incomplete"


def test_a_background_response_can_be_cancelled(ask: Any, client: openai.OpenAI) -> None:
    """It ends at once, stays retrievable as cancelled, and its session takes the next turn."""
    before = ask()
    running_one = ask(background=True, previous_response_id=before.id, max_output_tokens=100_000)
    assert client.responses.cancel(running_one.id).status == "cancelled"
    assert client.responses.cancel(running_one.id).status == "cancelled"
    assert client.responses.retrieve(running_one.id).status == "cancelled"
    assert session_of(ask(previous_response_id=before.id)) == session_of(before)
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(before.id)


def test_a_background_response_is_deleted_while_it_runs(ask: Any, client: openai.OpenAI) -> None:
    """Its turn stops, and it is gone."""
    id = ask(background=True, max_output_tokens=100_000).id
    client.responses.delete(id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(id)


def test_a_response_that_runs_can_be_listened_to_by_many(ask: Any, client: openai.OpenAI) -> None:
    """All who listen to one response hear the same, whenever they come and though others leave."""
    id = ask(background=True, max_output_tokens=60).id
    with client.responses.retrieve(id, stream=True) as leaving:
        next(iter(leaving))
    assert events(client.responses.retrieve(id, stream=True)) == events(client.responses.retrieve(id, stream=True))


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0"),
        ({"input": [{"type": [], "role": "user", "content": "a"}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0.content.0"),
        ({"input": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "input"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"include": ["file_search_call.results"]}, "include.0"),
        ({"truncation": "middle"}, "truncation"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"previous_response_id": "resp_nothing"}, "previous_response_id"),
        ({"background": True, "store": False}, None),
        ({"previous_response_id": "resp_1", "conversation": "conv_1"}, None),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(http: httpx.Client, options: Any, param: str | None) -> None:
    """400, and the field at fault."""
    answer = http.post("/v1/responses", json={"model": MODEL, "input": "Hi", "max_output_tokens": 4, **options})
    assert answer.status_code == 400, answer.text
    told = answer.json()["error"]
    assert param is None or (told["param"] or "").startswith(param)


def test_what_is_harmless_passes(ask: Any) -> None:
    """What would not change the answer is taken, whatever it says."""
    passing = {
        "metadata": {"trace": "7"},
        "parallel_tool_calls": True,
        "prompt_cache_key": "ann",
        "safety_identifier": "ann",
        "service_tier": "auto",
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "truncation": "auto",
        "user": "ann",
        "include": ["reasoning.encrypted_content"],
        "stream_options": None,
        "temperature": 0,
    }
    response = ask(**passing)
    assert response.output_text == ask(temperature=0).output_text
    assert (response.metadata, response.truncation) == ({"trace": "7"}, "auto")


def test_tenants_see_their_own_responses_alone(model_dir: Any, tmp_path: Any) -> None:
    """Another key's response is none: not shown, not gone on from, not cancelled, not deleted."""
    with running(settings_for(model_dir, tmp_path / "s.sqlite", api_key=["ann-key-1", "bob-key-2"])) as address:
        keys = [
            openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=3) for key in ("ann-key-1", "bob-key-2")
        ]
        ann, bob = keys
        id = ann.responses.create(input="Hi", **SMALL).id
        for call in (bob.responses.retrieve, bob.responses.delete, bob.responses.cancel):
            with pytest.raises(openai.NotFoundError):
                call(id)
        with pytest.raises(openai.BadRequestError):
            bob.responses.create(input="Hi", previous_response_id=id, **SMALL)
        assert ann.responses.retrieve(id).id == id
        for client in keys:
            client.close()


def test_a_conversation_is_gone_on_with_at_its_end(ask: Any, session: str) -> None:
    """``conversation`` names a session by its id, or an object with it; each response reads what came before."""
    one = ask(conversation=session)
    two = ask("And then?", conversation={"id": session})
    assert session_of(one) == session_of(two) == session
    assert (two.conversation.id, two.usage.input_tokens > one.usage.total_tokens) == (session, True)
    with pytest.raises(openai.NotFoundError):
        ask(conversation="conv_of_nobody")

"""Spans of real requests, as an OTLP receiver gets them."""

import io
import itertools
import json
import logging
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from otlp_receiver import attributes, receiving
from server.apis.chat.format import ChatFormat
from server.logs import JsonFormatter
from support import ServerThread, gauge, running, settings_for, wait_until

# Its number is too long to stand in an identifier or a timestamp by chance.
SECRET = "The password of the lighthouse is Xylophon-471108152342-Quecksilber"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARTS = ["mc.lens", "mc.allocate", "mc.restore", "mc.kv_repair", "mc.evict"]
REFOCUS = {
    *("mc.step", "mc.reason", "mc.tokens", "mc.cost", "mc.budget", "mc.utilization", "mc.eligible", "mc.changed"),
    *("mc.expands", "mc.collapses", "mc.swap_rate", "mc.residency_mean", "mc.residency_p95", "mc.gist_calls"),
    *("mc.score_mean", "mc.score_std", "mc.score_min", "mc.score_max", "mc.entries.lod0", "mc.entries.lod1"),
    *("mc.kv.reused", "mc.kv.recomputed", "mc.spans.hit", "mc.spans.missed", "mc.spans.fetched", "mc.spans.evicted"),
}


def chat(http, **fields):
    body = {"model": "tiny", "max_tokens": 70, "temperature": 0.7, "seed": 1, "ignore_eos": True, **fields}
    body.setdefault("messages", [{"role": "user", "content": SECRET}])
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    return http.post("/v1/chat/completions", json=body, headers=headers, timeout=60)


def by_name(spans, name):
    return [span for span in spans if span.name == name]


def one(spans, name):
    (span,) = by_name(spans, name)
    return span


def children(spans, parent):
    return [span for span in spans if span.parent_span_id == parent.span_id]


def inside(child, parent):
    """A child lies within its parent; times are floats of seconds on the way, so a microsecond is allowed."""
    slack = 1_000
    starts = parent.start_time_unix_nano - slack <= child.start_time_unix_nano <= child.end_time_unix_nano
    return starts and child.end_time_unix_nano <= parent.end_time_unix_nano + slack


def test_a_chat_turn_is_one_tree_under_the_callers_span(received, model_dir, tmp_path):
    """HTTP span under the incoming traceparent, chat below it, one mc.refocus a refocus with its parts and figures."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", hot_tokens=256)
    with running(settings) as address, httpx.Client(base_url=address) as http:
        session = http.post("/v1/sessions", json={}).json()["id"]
        http.post(f"/v1/sessions/{session}/ingest", content=(SECRET + ". ") * 200)
        reply = chat(http, session_id=session).json()
    spans = received.spans()
    root = one(spans, "POST /v1/chat/completions")
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)
    (turn,) = children(spans, root)
    assert turn.name == "chat tiny"
    assert inside(turn, root)
    said = attributes(turn)
    usage, context = reply["usage"], reply["x_megacontext"]
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.request.model"] == "tiny"
    assert said["gen_ai.request.temperature"] == 0.7
    assert said["gen_ai.request.max_tokens"] == 70
    assert said["gen_ai.response.finish_reasons"] == ["length"]
    assert said["gen_ai.response.id"] == reply["id"]
    assert said["gen_ai.conversation.id"] == session
    assert said["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert said["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert 0 < said["gen_ai.response.time_to_first_chunk"] < 60
    assert said["mc.context.kv_recomputed"] == context["kv_recomputed"]
    below = children(spans, turn)
    assert {span.name for span in below} == {"mc.queue", "mc.refocus"}
    refocuses = by_name(below, "mc.refocus")
    assert len(refocuses) == context["refocuses"] >= 3
    figures = [attributes(span) for span in refocuses]
    assert [f["mc.reason"] for f in figures] == ["turn"] + ["interval"] * (len(figures) - 1)
    assert [f["mc.step"] for f in figures] == list(range(len(figures)))
    assert figures[-1]["mc.swap_rate"] == pytest.approx(context["swap_rate"], abs=1e-6)
    assert sum(f["mc.kv.recomputed"] for f in figures) == context["kv_recomputed"]
    assert sum(f["mc.spans.fetched"] for f in figures) == context["spans_fetched"]
    assert sum(f["mc.gist_calls"] for f in figures) >= 3
    for span, figure in zip(refocuses, figures, strict=True):
        assert inside(span, turn)
        assert figure.keys() >= REFOCUS
        assert figure["mc.utilization"] == figure["mc.cost"] / figure["mc.budget"]
        assert 0.5 < figure["mc.utilization"] <= 1
        parts = children(spans, span)
        hops = ["mc.follow"] if figure["mc.reason"] == "turn" else []
        assert [part.name for part in parts] == [*PARTS[:3], *hops, *PARTS[3:]]
        assert all(inside(part, span) for part in parts)
        assert all(a.end_time_unix_nano <= b.start_time_unix_nano + 1000 for a, b in itertools.pairwise(parts))
        assert attributes(parts[-2])["mc.kv.recomputed"] == figure["mc.kv.recomputed"]
    ingest = one(spans, "mc.ingest")
    assert attributes(ingest)["mc.tokens_added"] > 1000
    assert ingest.parent_span_id == one(spans, "POST /v1/sessions/{session_id}/ingest").span_id


def test_no_text_and_no_token_ids_leave_the_server(received, model_dir, tmp_path):
    """Neither the prompt, the reply, a stop string, an address, a query nor an exception's words are in any message."""
    with running(settings_for(model_dir, tmp_path / "s.sqlite")) as address, httpx.Client(base_url=address) as http:
        session = http.post("/v1/sessions", json={"system": SECRET, "metadata": {"note": SECRET}}).json()["id"]
        http.post(f"/v1/sessions/{session}/ingest", content=(SECRET + ". ") * 50)
        replies = [
            chat(http).json()["choices"][0]["message"]["content"],
            chat(http, session_id=session, stop=[SECRET]).json()["choices"][0]["message"]["content"],
        ]
        lines = chat(http, stream=True).text.splitlines()
        data = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        replies.append("".join(d["choices"][0]["delta"].get("content") or "" for d in data))
        body = {"model": "tiny", "prompt": SECRET, "max_tokens": 24, "seed": 1, "ignore_eos": True}
        replies.append(http.post("/v1/completions", json=body).json()["choices"][0]["text"])
        assert http.get(f"/v1/nowhere/{SECRET}", params={"q": SECRET}).status_code == 404
        assert http.get("/v1/sessions", params={"after": SECRET}).status_code == 400
        assert chat(http, session_id=SECRET).status_code == 404
        assert chat(http, model=SECRET).status_code == 404
        assert http.post(f"/v1/sessions/{SECRET}/ingest", content=SECRET).status_code in (400, 404)
    sent = b"".join(received.raw)
    assert len(received.spans()) > 20
    assert len(replies) == 4
    pieces = [SECRET, *SECRET.split()[-1].split("-"), "password"]
    # Shorter ones may stand in a message by chance.
    pieces += [piece for reply in replies for at in (0, 20) if len(piece := reply[at : at + 12].strip()) >= 8]
    assert len(pieces) > 8
    for piece in pieces:
        assert piece.encode() not in sent, piece
    keys = {key for span in received.spans() for key in attributes(span)}
    assert not [key for key in keys if "stop" in key or "bias" in key or "message" in key]
    assert all(not span.events for span in received.spans())


def test_words_of_an_error_in_mid_stream_stay_here(received, model_dir, tmp_path, monkeypatch):
    """An exception while an answer is written is told to its client as an error, by its kind at the request's span, and
    its words to nobody."""

    def broken(self, *piece):
        raise RuntimeError(SECRET)

    monkeypatch.setattr(ChatFormat, "piece", broken)
    with running(settings_for(model_dir, tmp_path / "s.sqlite")) as address, httpx.Client(base_url=address) as http:
        answer = chat(http, stream=True)
    assert '"internal_error"' in answer.text.splitlines()[-2]
    request = one(received.spans(), "POST /v1/chat/completions")
    assert request.status.code == request.status.STATUS_CODE_ERROR
    assert attributes(request)["error.type"] == "internal_error"
    assert SECRET not in answer.text
    assert SECRET.encode() not in b"".join(received.raw)


def test_a_failed_turn_says_what_kind_of_error_it_was(received, model_dir, tmp_path):
    """A turn that is cancelled by its session's end has a chat span with error.type and an error status."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite")
    with running(settings) as address, httpx.Client(base_url=address, timeout=60) as http:
        session = http.post("/v1/sessions", json={}).json()["id"]
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(chat, http, session_id=session, max_tokens=10**6)
            wait_until(lambda: gauge(address, "megacontext_decode_step_seconds_count") > 3)
            http.delete(f"/v1/sessions/{session}")
            assert asked.result().status_code >= 400
    turn = one(received.spans(), "chat tiny")
    assert turn.status.code == turn.status.STATUS_CODE_ERROR
    assert attributes(turn)["error.type"] == "session_not_found"
    assert "gen_ai.response.finish_reasons" not in attributes(turn)


@pytest.mark.parametrize("received", ["grpc"], indirect=True)
def test_a_refusal_has_the_code_that_the_client_got(received, model_dir, tmp_path):
    """error.type is the code of the answer, for turns and ingests, whoever refused them."""
    store = tmp_path / "s.sqlite"
    with running(settings_for(model_dir, store, block_size=16)) as address:
        session = httpx.post(f"{address}/v1/sessions", json={}).json()["id"]
    settings = settings_for(model_dir, store, block_size=32, max_body_bytes=1_024, max_ingest_bytes=1_024)
    with running(settings) as address, httpx.Client(base_url=address, timeout=60) as http:
        mine = http.post("/v1/sessions", json={}).json()["id"]
        answers = [
            chat(http, session_id=session),
            http.post(f"/v1/sessions/{session}/ingest", content="a"),
            http.post(f"/v1/sessions/{mine}/ingest", content=(b"a" * 800 for _ in range(2))),
        ]
    spans = [span for span in received.spans() if span.name in ("chat tiny", "mc.ingest")]
    assert [answer.json()["error"]["code"] for answer in answers] == [attributes(span)["error.type"] for span in spans]


def test_probes_are_not_traced(received, model_dir, tmp_path):
    """/health, /ready and /metrics make no spans; other requests do, also without a traceparent."""
    with running(settings_for(model_dir, tmp_path / "s.sqlite")) as address, httpx.Client(base_url=address) as http:
        for path in ("/health", "/ready", "/metrics", "/v1/models"):
            http.get(path)
    (span,) = received.spans()
    assert span.name == "GET /v1/models"
    assert not span.parent_span_id


@pytest.mark.parametrize("received", ["grpc"], indirect=True)
def test_the_standard_variables_are_honoured(received, model_dir, tmp_path, monkeypatch):
    """OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES name the service; OTEL_TRACES_SAMPLER decides by the caller."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "reading-room")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    with running(settings_for(model_dir, tmp_path / "s.sqlite")) as address, httpx.Client(base_url=address) as http:
        http.get("/v1/models")
        http.get("/v1/models", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    (span,) = received.spans()
    assert span.trace_id.hex() == TRACE
    who = attributes(received.traces[0].resource_spans[0].resource)
    assert (who["service.name"], who["deployment.environment"]) == ("reading-room", "test")
    assert who["service.instance.id"]


@pytest.mark.parametrize("received", ["grpc"], indirect=True)
def test_two_apps_in_a_process_are_independent(received, model_dir, tmp_path, monkeypatch):
    """Each app sends its own spans, to the endpoint that was set when it was built."""
    first = ServerThread(settings_for(model_dir, tmp_path / "a.sqlite"))
    with receiving("http/protobuf") as other:
        for name, value in other.environment.items():
            monkeypatch.setenv(name, value)
        second = ServerThread(settings_for(model_dir, tmp_path / "b.sqlite"))
        with first, second:
            httpx.get(f"{first.address}/v1/models")
            httpx.get(f"{second.address}/v1/sessions")
        assert [span.name for span in other.spans()] == ["GET /v1/sessions"]
    assert [span.name for span in received.spans()] == ["GET /v1/models"]


@pytest.mark.parametrize("received", ["grpc"], indirect=True)
def test_log_lines_of_a_request_have_its_trace(received, model_dir, tmp_path):
    """A JSON line that is written inside a request carries the trace and span that the receiver gets."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("server.front")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        settings = settings_for(model_dir, tmp_path / "s.sqlite")
        with running(settings) as address, httpx.Client(base_url=address) as http:
            chat(http)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    (line,) = [json.loads(text) for text in stream.getvalue().splitlines()]
    root = one(received.spans(), "POST /v1/chat/completions")
    assert (line["trace_id"], line["span_id"]) == (root.trace_id.hex(), root.span_id.hex())
    outside = logging.LogRecord("server.front", logging.INFO, __file__, 1, "outside", (), None)
    assert "trace_id" not in json.loads(JsonFormatter().format(outside))

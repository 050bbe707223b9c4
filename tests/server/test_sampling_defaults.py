"""How tokens are drawn where a request says nothing: as the model's generation_config.json wants it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from mc_core.bundle.bundle import load_bundle
from mc_core.errors import ConfigError
from mc_core.models.generation import sampling_defaults
from mc_core.models.sampling_params import SamplingParams
from support import running, settings_for, write_model

ASK = {"model": "tiny", "prompt": "It was", "max_tokens": 12, "ignore_eos": True}


def write(folder: Path, settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, {}),
        ({"eos_token_id": 2, "max_length": 20, "do_sample": True}, {}),
        ({"temperature": 0.6, "top_p": 0.9, "do_sample": True}, {"temperature": 0.6, "top_p": 0.9}),
        (
            {"top_k": 20, "min_p": 0.1, "repetition_penalty": 1.05},
            {"top_k": 20, "min_p": 0.1, "repetition_penalty": 1.05},
        ),
        ({"top_k": -1, "temperature": None}, {}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
    ],
)
def test_what_the_file_says_is_the_default(tmp_path: Path, settings: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Fields of sampling are taken, others left; do_sample false is greedy, -1 and null are off."""
    assert sampling_defaults(write(tmp_path, settings)) == SamplingParams(**wanted)


def test_without_the_file_the_defaults_are_openais(tmp_path: Path) -> None:
    """A folder that says nothing of sampling leaves it as OpenAI has it."""
    assert sampling_defaults(tmp_path) == SamplingParams()


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 5}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": 2.5}, "top_k"),
        ({"top_k": 1e400}, "top_k"),
        ({"min_p": True}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"do_sample": "no"}, "do_sample"),
    ],
)
def test_values_that_cannot_be_used_are_told_at_load(tmp_path: Path, settings: dict[str, Any], word: str) -> None:
    """The error names the file and the field."""
    with pytest.raises(ConfigError, match=word) as told:
        load_bundle(write(write_model(tmp_path / "tiny"), settings))
    assert "generation_config.json" in str(told.value)


def test_requests_go_before_the_model_and_the_server_may_leave_it_out(tmp_path: Path) -> None:
    """Greedy by the model's wish; a request's own temperature wins; --sampling-defaults openai leaves the file out."""
    folder = write(write_model(tmp_path / "tiny"), {"do_sample": False, "repetition_penalty": 1.3})

    def texts(http: httpx.Client, **options: Any) -> set[str]:
        replies = [http.post("/v1/completions", json={**ASK, **options}).json() for _ in range(3)]
        return {reply["choices"][0]["text"] for reply in replies}

    with running(settings_for(folder, tmp_path / "a.sqlite")) as address, httpx.Client(base_url=address) as http:
        about = http.get("/v1/models").json()["data"][0]["x_megacontext"]["sampling"]
        assert about == {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.3}
        assert texts(http) == texts(http, temperature=0, repetition_penalty=1.3)
        assert len(texts(http, temperature=2)) == 3
        assert texts(http, repetition_penalty=1) == texts(http, temperature=0, repetition_penalty=1)
    open_ai = settings_for(folder, tmp_path / "b.sqlite", sampling_defaults="openai")
    with running(open_ai) as address, httpx.Client(base_url=address) as http:
        assert http.get("/v1/models").json()["data"][0]["x_megacontext"]["sampling"]["temperature"] == 1.0
        assert len(texts(http)) == 3

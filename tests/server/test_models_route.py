"""What a server says of its model's networks, on /v1/models and in its log."""

from __future__ import annotations

import logging
from pathlib import Path

import httpx
import pytest

from support import add_lensnet, running, settings_for, write_model


@pytest.mark.parametrize(
    ("evaluation", "standing", "lens"),
    [
        ({}, "unmeasured", "lexical"),
        ({"lensnet": {"passed": False}}, "failed", "lexical"),
        ({"lensnet": {"passed": True}}, "passed", "hybrid"),
    ],
)
def test_networks_that_have_not_passed_are_told(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    evaluation: dict[str, dict[str, bool]],
    standing: str,
    lens: str,
) -> None:
    """/v1/models shows where each network stands, and one line at the start names those that have not passed: a warning
    where one is there that can't be used, and information where none was given."""
    folder = write_model(tmp_path / "tiny")
    add_lensnet(folder, evaluation=evaluation)
    with caplog.at_level(logging.INFO), running(settings_for(folder, tmp_path / "s.sqlite")) as address:
        about = httpx.get(f"{address}/v1/models").json()["data"][0]["x_megacontext"]
    assert about["networks"] == {"gistnet": "absent", "lensnet": standing}
    assert about["lens"] == lens
    (record,) = [record for record in caplog.records if "passed evaluation" in record.getMessage()]
    line = record.getMessage()
    assert record.levelno == (logging.INFO if standing == "passed" else logging.WARNING)
    assert "gistnet absent" in line
    assert (f"lensnet {standing}" in line) == (standing != "passed")
    assert f"gists are hidden, lens {lens}" in line


def test_aliases_are_names_of_the_model(tmp_path: Path) -> None:
    """Every --alias is listed, found and taken as ``model``, slashes and all; answers carry the model's own name."""
    folder = write_model(tmp_path / "tiny")
    settings = settings_for(folder, tmp_path / "s.sqlite", alias="gpt-4o, org/other")
    with running(settings) as address, httpx.Client(base_url=address, timeout=60) as http:
        listed = http.get("/v1/models").json()["data"]
        assert [one["id"] for one in listed] == ["tiny", "gpt-4o", "org/other"]
        assert {one["root"] for one in listed} == {"tiny"}
        assert http.get("/v1/models/org/other").json()["id"] == "org/other"
        ask = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        for name in ("tiny", "gpt-4o", "org/other"):
            assert http.post("/v1/chat/completions", json={**ask, "model": name}).json()["model"] == "tiny"
        assert http.post("/v1/chat/completions", json={**ask, "model": "other"}).status_code == 404


def test_both_lengths_are_told(http: httpx.Client) -> None:
    """What the model can see at once is a number; how long a history may be is none."""
    about = http.get("/v1/models/tiny").json()["x_megacontext"]
    assert about["context_window"] == 1024
    assert about["max_history"] is None
    assert about["budget"] == 384

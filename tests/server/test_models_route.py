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
    """/v1/models shows where each network stands, and one line at the start names those that have not passed."""
    folder = write_model(tmp_path / "tiny")
    add_lensnet(folder, evaluation=evaluation)
    with caplog.at_level(logging.WARNING), running(settings_for(folder, tmp_path / "s.sqlite")) as address:
        about = httpx.get(f"{address}/v1/models").json()["data"][0]["x_megacontext"]
    assert about["networks"] == {"gistnet": "absent", "lensnet": standing}
    assert about["lens"] == lens
    (line,) = [record.getMessage() for record in caplog.records if "passed evaluation" in record.getMessage()]
    assert "gistnet absent" in line
    assert (f"lensnet {standing}" in line) == (standing != "passed")
    assert f"gists are hidden, lens {lens}" in line

"""The Dockerfile: what a linter would say, and its command, settings and health check run from the files it copies."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from deploy_files import KNOWN_SETTINGS, ROOT, Stage, dockerfile, environment, with_bases
from support import free_port, wait_until

STAGES = dockerfile()
TARGETS = ("cpu", "cuda")
BUILD_TOOLS = re.compile(r"\b(apt-get|apk|pip|gcc|g\+\+|make|git|curl|wget|build-essential)\b")


def test_bases_are_pinned() -> None:
    """Law: every image that is not built here has a tag of a full version, named in one place."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    outside = {stage.base for stage in STAGES.values()} - set(STAGES)
    assert outside == {"${PYTHON}"}
    assert re.search(r"^ARG PYTHON=python:3\.\d+\.\d+-slim-\w+$", text, re.MULTILINE)


@pytest.mark.parametrize("target", TARGETS)
def test_last_stages_are_lean_and_unprivileged(target: str) -> None:
    """Law: an image's own stages hold no build tool, end as a user that is not root, and say how healthy they are."""
    stages = with_bases(STAGES, target)
    lines = [line for stage in stages for line in stage.lines]
    assert [argument for name, argument in lines if name == "USER"] == ["megacontext"]
    assert lines[-1] == ("USER", "megacontext")
    assert not [argument for name, argument in lines if name == "RUN" and BUILD_TOOLS.search(argument)]
    assert sum(name == "HEALTHCHECK" for name, _ in lines) == 1
    assert any(name == "VOLUME" and argument == "/data" for name, argument in lines)
    # pip, the only tool that the virtual environment has, is gone from what these stages copy.
    parts = {part for stage in stages for part in re.findall(r"--from=(\S+)", " ".join(stage.arguments("COPY")))}
    (source,) = parts - {"fetched"}
    assert STAGES[source].arguments("RUN")[-1].endswith("pip uninstall -y pip")


def test_instructions_are_sound() -> None:
    """Law: nothing is fetched by ADD, commands are lists, packages come by the pins, paths are absolute."""
    for stage in STAGES.values():
        assert not stage.arguments("ADD")
        assert all(argument.startswith("/") for argument in stage.arguments("WORKDIR"))
        assert all(argument.startswith("[") for argument in stage.arguments("CMD"))
        for run in stage.arguments("RUN"):
            assert "sudo" not in run
            for install in re.findall(r"pip install[^&]*", run):
                assert "-c constraints.txt" in install or "--no-deps" in install


def test_no_index_is_named() -> None:
    """Law: where packages come from is the builder's choice; the index of builds for the CPU is empty by default."""
    assert STAGES["build-cpu"].arguments("ARG") == ['CPU_EXTRA_INDEX_URL=""']
    for name in ("Dockerfile", "docker-compose.yml", "deploy/compose.env.example"):
        assert not re.search(r"INDEX_URL=[\"']?\w|https://", (ROOT / name).read_text("utf-8"))


def test_settings_of_the_image_are_settings() -> None:
    """Law: each MEGACONTEXT_ name in the image is a setting of the server."""
    for target in TARGETS:
        names = {name for name in environment(with_bases(STAGES, target)) if name.startswith("MEGACONTEXT_")}
        assert names
        assert names <= KNOWN_SETTINGS


def test_the_default_model_is_fetched_by_what_the_stage_copies(tmp_path: Path) -> None:
    """Law: the files that the fetching stage copies are all that its command imports, and its folder is the cache."""
    stage = STAGES["fetched"]
    for argument in stage.arguments("COPY"):
        *sources, target = argument.split()
        (tmp_path / target).mkdir()
        for source in sources:
            shutil.copy(ROOT / source, tmp_path / target)
    (command,) = stage.arguments("RUN")
    code = re.fullmatch(r'python -c "(.*); fetch\(SMOLLM2, Path\(\'(/\w+)\'\)\)"', command)
    assert code
    subprocess.run([sys.executable, "-P", "-c", code[1]], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, check=True)
    assert f"--from=fetched {code[2]} /app/fetched" in STAGES["runtime"].arguments("COPY")
    assert environment([STAGES["runtime"]])["MEGACONTEXT_MODEL_CACHE"] == "/app/fetched"


def test_what_is_copied_passes_dockerignore() -> None:
    """Law: the build context is what the images copy and nothing else, all packages of the project among it."""
    ignore = (ROOT / ".dockerignore").read_text("utf-8").split()
    by_target = {target: _copied([STAGES["build"], STAGES[f"build-{target}"], STAGES["runtime"]]) for target in TARGETS}
    assert by_target["cpu"] == by_target["cuda"]
    copied = by_target["cpu"]
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]["find"]
    assert {name.removesuffix("*") for name in packages["include"]} <= copied
    assert ignore[0] == "*"
    assert {line.removeprefix("!") for line in ignore if line.startswith("!")} == copied


def test_command_serves_from_the_image_files(model: Path, tmp_path: Path) -> None:
    """Law: the copied packages, the image's environment and its command make a server whose health check tells truth.

    /data, the model and the device of this machine take the place of the image's; both images copy the same.
    """
    with _image("cuda", model, tmp_path) as (process, env):
        url = f"http://127.0.0.1:{env['MEGACONTEXT_PORT']}"
        wait_until(lambda: process.poll() is not None or _answers(url), 60)
        assert process.poll() is None
        assert _healthy(env)
        assert (tmp_path / "data" / "megacontext.sqlite").exists()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
    assert not _healthy(env)


def _copied(stages: list[Stage]) -> set[str]:
    """What these stages take from the project."""
    arguments = [argument for stage in stages for argument in stage.arguments("COPY")]
    return {source for line in arguments if not line.startswith("--from") for source in line.split()[:-1]}


@contextmanager
def _image(target: str, model: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """The image's command, with its environment, in a folder with nothing but the project files that it copies."""
    app, data = folder / "app", folder / "data"
    data.mkdir()
    for argument in STAGES[f"build-{target}"].arguments("COPY"):
        source, _, name = argument.partition(" ")
        shutil.copytree(ROOT / source, app / name, ignore=shutil.ignore_patterns("__pycache__"))
    env = environment(with_bases(STAGES, target)) | {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(app),
        "OMP_NUM_THREADS": "1",
        "MEGACONTEXT_MODEL": str(model),
        "MEGACONTEXT_DEVICE": "cpu",
        "MEGACONTEXT_HOST": "127.0.0.1",
        "MEGACONTEXT_PORT": str(free_port()),
        "MEGACONTEXT_BUDGET": "512",
        "MEGACONTEXT_STORE": f"sqlite:///{data}/megacontext.sqlite",
    }
    megacontext, *arguments = json.loads(with_bases(STAGES, target)[0].arguments("CMD")[0])
    assert megacontext == "megacontext"
    process = subprocess.Popen([sys.executable, "-m", "server.cli", *arguments], env=env, cwd=data)
    try:
        yield process, env
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False


def _healthy(env: dict[str, str]) -> bool:
    """What the image's own health check says."""
    (check,) = STAGES["runtime"].arguments("HEALTHCHECK")
    python, *arguments = json.loads(check.partition(" CMD ")[2])
    assert python == "python"
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, check=False).returncode == 0

"""Makers for tests of the server: a tiny model of random weights with a chat template, and a server that runs it."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import httpx
import torch
import uvicorn
import uvicorn.server
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mc_core.bundle.bundle import lensnet_arguments, save_networks
from mc_core.bundle.manifest import Manifest
from mc_core.models.decoder import Decoder
from mc_core.models.decoder_config import DecoderConfig
from mc_core.models.loading import save_decoder
from mc_core.nets.lensnet import LensNet, LensNetConfig
from server.settings import Settings
from server.state import ServerState

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
EOS = 2
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PROSE = [
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness.",
    "Größe, naïve café, 東京 🙂; the magic number of the lighthouse is 4711.",
    "system user assistant\nWhat do you remember of the first chapter? The keeper never told anyone.",
] * 4
VOCABULARY = 384


def write_tokenizer(folder: Path, template: str | None = CHATML) -> Tokenizer:
    """A byte-level BPE with ChatML control tokens: any text is encoded, and a reply of random ids is text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(PROSE, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer


def write_model(folder: Path, *, template: str | None = CHATML, block_mask: bool = True, layers: int = 2) -> Path:
    """A Qwen3-shaped model of random weights, the same each time, in a folder as ``--model`` takes it."""
    write_tokenizer(folder, template)
    shape = DecoderConfig(
        "qwen3",
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        qk_norm="weighted",
        tie_word_embeddings=False,
        block_mask=block_mask,
    )
    torch.manual_seed(0)
    save_decoder(folder, Decoder(shape), extra={"eos_token_id": EOS})
    return folder


def add_lensnet(folder: Path, dim: int = 64, **manifest: Any) -> None:
    """A LensNet of random weights, the same each time, for a model of that width: words alone find anything."""
    torch.manual_seed(0)
    net = LensNet(LensNetConfig(dim, width=16, heads=2, keys=2, key_dim=8)).eval()
    save_networks(folder, Manifest(name="tiny", lensnet=lensnet_arguments(net), **manifest), lensnet=net)


def small(model: Path, store: Path | str, **others: object) -> dict[str, object]:
    """Settings with small limits, so that tests reach them; ``store``: a file, or a URL."""
    chosen: dict[str, object] = {
        "model": model,
        "store": store if "://" in str(store) else f"sqlite:///{store}",
        "budget": 384,
        "recent_tokens": 64,
        "max_sessions": 2,
        "max_queue": 2,
        "keep_alive_seconds": 0.1,
        "drain_seconds": 2.0,
        "threads": 1,
    }
    return {**chosen, **others}


def settings_for(model: Path, store: Path | str, **others: object) -> Settings:
    """The same as an object."""
    return Settings(**small(model, store, **others))  # type: ignore[arg-type]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _soon(seconds: float) -> None:
    await asyncio.sleep(min(seconds, 0.01))


# uvicorn looks ten times a second whether it is to end, and waits a tenth of a second then. Hundreds of servers end.
uvicorn.server.asyncio = SimpleNamespace(**{**vars(asyncio), "sleep": _soon})  # type: ignore[attr-defined]


class ServerThread:
    """The real application under uvicorn, in a thread of this process."""

    def __init__(self, settings: Settings) -> None:
        from server.app import build_app
        from server.serve import DrainingServer

        settings = settings.model_copy(update={"port": free_port()})
        app = build_app(settings)
        config = uvicorn.Config(app, port=settings.port, log_level="warning", timeout_graceful_shutdown=5)
        self.server = DrainingServer(config, app, settings.drain_seconds)
        self.address = f"http://127.0.0.1:{config.port}"
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self) -> ServerThread:
        self.thread.start()
        wait_until(lambda: self.server.started or not self.thread.is_alive())
        assert self.server.started, "the server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()

    def sigterm(self) -> None:
        """What the signal does."""
        self.server.handle_exit(signal.SIGTERM, None)


def state_in(server: ServerThread) -> ServerState:
    """What the server holds, for tests that look into it or make a part of it fail."""
    state: ServerState = server.server._state
    return state


@contextmanager
def running(settings: Settings) -> Iterator[str]:
    """Serve in a thread -> the server's address."""
    with ServerThread(settings) as server:
        yield server.address


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["server.serve"])


class ForkedServer:
    """What ``megacontext serve`` runs, in a process of its own, to be stopped and killed. It is forked from one that
    has imported all of it already, which takes seconds."""

    def __init__(self, model: Path, store: Path | str, use_port: int | None = None, **others: object) -> None:
        self.port = use_port or free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        # A file and not a pipe: nobody reads while the server runs, and a full pipe would stop it.
        self._log = tempfile.NamedTemporaryFile()  # noqa: SIM115
        self._begin(small(model, store, port=self.port, **others))

    def _begin(self, settings: dict[str, Any]) -> None:
        self._process = FORKS.Process(target=_serve, args=(Settings(**settings), self._log.name), daemon=True)
        self._process.start()

    def __enter__(self) -> Self:
        try:
            wait_until(self._answers, 120)
        except BaseException:
            self.stop()
            print(self.output)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send_signal(self, how: signal.Signals) -> None:
        """To a process that may have ended already."""
        if self.status is None:
            os.kill(self.pid, how)

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal, and wait until the process has ended."""
        self.send_signal(how)
        self.wait()

    def wait(self, seconds: float = 60) -> None:
        """Until the process has ended."""
        self._process.join(seconds)
        assert self.status is not None, "the server runs on"

    @property
    def status(self) -> int | None:
        """Exit status; None while it runs."""
        return self._process.exitcode

    @property
    def output(self) -> str:
        """What the server has written so far."""
        return Path(self._log.name).read_text(errors="replace")

    def _answers(self) -> bool:
        assert self.status is None, "the server ended"
        try:
            return httpx.get(f"{self.address}/ready").status_code == 200
        except httpx.TransportError:
            return False


class ServerProcess(ForkedServer):
    """``megacontext serve`` itself: its command line, in an interpreter of its own. For tests of just that."""

    def _begin(self, settings: dict[str, Any]) -> None:
        flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        command = [sys.executable, "-m", "server.cli", "serve", *flags]
        self._command = subprocess.Popen(command, env=_environment(), stdout=self._log, stderr=subprocess.STDOUT)

    @property
    def pid(self) -> int:
        return self._command.pid

    def wait(self, seconds: float = 60) -> None:
        self._command.wait(seconds)

    @property
    def status(self) -> int | None:
        return self._command.poll()


def _serve(settings: Settings, log: str) -> None:
    from server.serve import run

    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    run(settings)


def _environment() -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MEGACONTEXT_")}
    return {**kept, "OMP_NUM_THREADS": "1"}


def wait_until(true: object, seconds: float = 20.0) -> None:
    """Until a condition holds; AssertionError if that takes too long."""
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def gauge(address: str, name: str) -> float:
    """One value of /metrics; ``name`` with its labels, if it has any."""
    for line in httpx.get(f"{address}/metrics").text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"/metrics has no {name}")

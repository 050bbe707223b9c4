"""All settings of the server, each by flag (``--name``) or environment (``MEGACONTEXT_NAME``)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from mc_core.focus.lens import LENSES

BUNDLED_MODEL = Path(__file__).parent.parent / "models" / "megacontext-tiny"
TINY = "tiny"
"""What the bundled model is called in settings."""


class Settings(BaseSettings):
    """Sizes are in tokens unless a name says bytes; times are in seconds."""

    model_config = SettingsConfigDict(env_prefix="MEGACONTEXT_", extra="forbid", frozen=True, protected_namespaces=())
    GROUPS: ClassVar[dict[str, str]] = {
        "model": "Model",
        "host": "Address and keys",
        "store": "Sessions",
        "block_size": "Focus",
        "max_sessions": "Turns",
        "max_body_bytes": "Limits",
    }
    """The first setting of each group, and what the group is called in help."""

    model: str = Field(
        "smollm2",
        min_length=1,
        description="smollm2 (fetched once), tiny (bundled), or the path of a bundle, Hugging Face folder or GGUF file",
    )
    model_name: str | None = Field(None, description="name in /v1/models; the model's own by default")
    alias: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="further name that requests may call the model by, repeatable"
    )
    model_cache: Path | None = Field(None, description="folder of fetched models; the user's cache by default")
    chat_template: Path | None = Field(None, description="file whose chat template takes the place of the model's own")
    encoder: str | None = Field(
        None,
        min_length=1,
        description="sentence encoder of /v1/embeddings: a Hugging Face folder, or minilm (of the extra encoder)",
    )
    encoder_name: str | None = Field(
        None, min_length=1, description="what requests call the encoder; its folder's name by default"
    )
    device: str = Field("auto", description="cpu, cuda, cuda:0, ... or auto")
    weights: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="precision of weights, activations and KV; int8 (x86 CPUs): linear layers alone, the rest float32; "
        "auto: bfloat16 on a GPU, on a CPU int8 where a trial at the start finds it faster, else float32",
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads of the model; by default as many as a trial at the start finds fastest"
    )

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    unix_socket: Path | None = Field(None, description="Unix socket to listen on, in place of host and port")
    root_path: str = Field(
        "", description="path below which a proxy shows this server, such as /llm; stripped by the proxy or not"
    )
    tls_cert: Path | None = Field(None, description="PEM file of the certificate, and of its chain, to serve HTTPS")
    tls_key: Path | None = Field(None, description="PEM file of its key, if that is not in the same file")
    api_key: Annotated[list[SecretStr], NoDecode] = Field(
        default_factory=list, description="bearer key, repeatable (comma-separated in the environment); none: open"
    )
    allowed_host: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="name under which an open server may be asked, repeatable; *.NAME: all below it; *: any",
    )
    cors_origin: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="origin whose pages may call the API from a browser, repeatable; *: any"
    )
    page: bool = Field(True, description="a page at / for who comes with a browser")

    store: str = Field(
        "sqlite:///data/megacontext.sqlite",
        description="where sessions live: sqlite:///FILE or redis[s]://[:PASSWORD@]HOST[:PORT][/DB]",
    )
    store_buffer_bytes: int = Field(
        256 << 20, ge=1 << 16, description="writes that wait for the store; beyond that new work gets 503"
    )
    server_name: str | None = Field(
        None,
        pattern=r"^[!-~]{1,200}$",
        description="which server of a store this is, the same after a restart and no other one's: it then has its "
        "sessions again at once; host name and port by default",
    )
    lease_seconds: float = Field(
        6.0, ge=1, le=3600, description="silence after which another server may take over a server's sessions"
    )
    ray: int | None = Field(
        None, ge=1, le=1000, description="replicas on this machine, under Ray Serve (extra ray); they share a Redis"
    )
    hot_tokens: int = Field(
        262_144, ge=0, description="token ids a session keeps in memory; older ones stay in the store"
    )
    max_resident_sessions: int = Field(64, ge=1, description="sessions in memory; the longest idle ones leave first")
    max_resident_tokens: int = Field(
        50_000_000, ge=0, description="tokens of all histories in memory; likewise, but one session always may stay"
    )
    idle_seconds: float | None = Field(
        None,
        gt=0,
        description="seconds after which a session leaves memory that has had no turn, no change, and no look at its"
        " focus or text; by default it stays",
    )
    max_implicit_sessions: int = Field(
        1_000, ge=1, description="stored sessions of requests without a session id, per key"
    )
    implicit_ttl: float | None = Field(
        None,
        gt=0,
        description="seconds after which stored sessions without an id, if unused, are deleted; never by default",
    )
    session_ttl: float | None = Field(
        None,
        gt=0,
        description="the same of sessions with an id, but for those with a time of their own, or that are kept",
    )

    idempotency_keys: int = Field(
        100, ge=1, le=10_000, description="answers a session keeps for requests with an Idempotency-Key"
    )
    idempotency_seconds: float = Field(86_400.0, gt=0, description="how long such an answer is kept")
    resume_seconds: float = Field(
        30.0, gt=0, description="how long a turn with an Idempotency-Key goes on for a client that went away"
    )
    background_seconds: float = Field(
        3_600.0, gt=0, description="how long a turn in the background goes on while nobody listens to it"
    )

    block_size: int | None = Field(None, description="K (16, 32 or 64); the bundle's own by default")
    budget: Annotated[int, Field(ge=64)] | Literal["auto"] = Field(
        "auto",
        description="W: cost of a working context at most; a history that fits is shown whole. auto: as much as the "
        "model's window, free memory and speed allow, or the bundle's own",
    )
    recent_tokens: int = Field(128, ge=1, description="newest tokens that are always raw")
    lens: str = Field("auto", description=f"what scores the history: {', '.join(LENSES)}; auto: the bundle's own")
    allocator: str = Field("greedy", description="greedy, stochastic_greedy or bandit")
    expand_threshold: float = Field(0.1, ge=0, le=1, description="gain from which an entry is worth expanding")
    collapse_threshold: float = Field(0.1, ge=0, le=1, description="how much a swap must gain over the harm it does")
    edits_per_iteration: int = Field(4, ge=1, description="places that one iteration of a refocus opens at most")
    iterations: int = Field(2, ge=1, description="iterations of a refocus")
    cooldown: int = Field(2, ge=0, le=127, description="refocuses in which an entry is not put back")
    look_ahead: int = Field(8, ge=0, description="places that the lens proposes from all history")
    hops: int = Field(3, ge=0, description="how often a turn follows what the places it opened name in turn")
    refocus_interval: int = Field(0, ge=0, description="tokens between refocuses; 0: one block")
    lens_interval: int = Field(4, ge=1, description="refocuses of a reply from one asking of the lens to the next")
    positions: str = Field("auto", description="position policy; the bundle's own by default")
    reading: Literal["auto", "framed", "plain"] = Field(
        "auto", description="frames of the chat template around opened places, or none; auto: the bundle's own"
    )
    repair: Literal["auto", "exact", "block", "incremental"] = Field("auto", description="KV repair mode")
    segment_blocks: int = Field(
        8, ge=1, description="neighbouring raw blocks that see each other under repair=block; 1 recomputes least"
    )
    seed: int = Field(0, description="of stochastic allocators and lenses")

    max_sessions: int = Field(
        16, ge=1, description="turns decoded together; each owns the KV slots of W tokens and a little more"
    )
    lookup_tokens: int | None = Field(
        None,
        ge=0,
        description="of a reply that is decoded alone on a CPU, tokens that are guessed by what stands there already "
        "and read ahead at most; by default 8 with int8 weights, and none with others",
    )
    cuda_graphs: bool = Field(True, description="whether a GPU records decode steps and replays them")
    recent_kv_bytes: int = Field(
        256 << 20,
        ge=0,
        description="host memory for keys and values of places that left a working context lately; of repair=block",
    )
    kv_folder: Path | Literal["auto", "off"] = Field(
        "auto",
        description="folder of the files in which keys and values of idle sessions are kept, of one store alone: they "
        "wake without computing their context anew; auto: beside an SQLite store, none with Redis",
    )
    kv_folder_bytes: int = Field(
        4 << 30, ge=0, description="of all these files; those that were used longest ago go first, 0 keeps none"
    )
    max_queue: int = Field(64, ge=0, description="turns that may wait; one more gets 429")
    prefill_tokens: int = Field(256, ge=1, description="prefill and repair beside each decode step")
    max_tokens: int = Field(1024, ge=1, description="length of a reply when a request names none")
    deterministic: bool = Field(False, description="replies don't depend on turns beside them, token for token; slower")
    sampling_defaults: Literal["model", "openai"] = Field(
        "model", description="what a request leaves out comes from the model's generation_config.json, or is OpenAI's"
    )
    restore_deadline: float = Field(0.5, gt=0, description="how long a refocus waits for evicted spans")

    max_body_bytes: int = Field(64 << 20, ge=1024, description="JSON bodies; one byte more gets 413")
    max_ingest_bytes: int = Field(4 << 30, ge=1024, description="streamed ingest bodies; one byte more gets 413")
    requests_per_minute: int | None = Field(None, ge=1, description="POST requests of one key; one more gets 429")
    tokens_per_minute: int | None = Field(
        None, ge=1, description="tokens of one key that are read or generated; when they are used up, 429"
    )
    idle_connection_seconds: int = Field(
        130, ge=1, description="how long an idle connection stays open; longer than proxies and clients keep theirs"
    )
    keep_alive_seconds: float = Field(10.0, gt=0, description="silence after which a stream gets a comment")
    drain_seconds: float = Field(30.0, ge=0, description="how long running turns may go on after SIGTERM")

    @field_validator("model", "encoder", mode="before")
    @classmethod
    def _path(cls, value: object) -> object:
        return str(value) if isinstance(value, Path) else value

    @field_validator("alias", "api_key", "allowed_host", "cors_origin", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @field_validator("allowed_host")
    @classmethod
    def _names(cls, value: list[str]) -> list[str]:
        if any(re.search(r"[/:\s]", name) for name in value):
            raise ValueError("an allowed host is a name, without scheme and port")
        return value

    @field_validator("cors_origin")
    @classmethod
    def _origins(cls, value: list[str]) -> list[str]:
        if not all(origin == "*" or re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin) for origin in value):
            raise ValueError("an origin is like https://app.example:8443, without a path, or *")
        return value

    @field_validator("root_path")
    @classmethod
    def _below(cls, value: str) -> str:
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*/?", value):
            raise ValueError("a root path is like /llm")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _key_of_a_certificate(self) -> Settings:
        if self.tls_key is not None and self.tls_cert is None:
            raise ValueError("tls_key needs tls_cert")
        return self

    @field_validator("api_key")
    @classmethod
    def _not_empty(cls, value: list[SecretStr]) -> list[SecretStr]:
        if any(not key.get_secret_value() for key in value):
            raise ValueError("an api key must not be empty")
        return value

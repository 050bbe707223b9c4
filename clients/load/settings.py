"""The options of ``megacontext load``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator

from clients.load.distributions import Distribution

Numbers = Annotated[Distribution, BeforeValidator(Distribution.parse)]


def _numbers(text: str) -> Distribution:
    return Distribution.parse(text)


class LoadSettings(BaseModel):
    """Lengths are in tokens, times in seconds unless a name says otherwise. Lengths and times may be distributions."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    url: str = Field(description="the server's address", json_schema_extra={"positional": True})
    api_key: SecretStr | None = Field(
        None, description="the server's key; by default MEGACONTEXT_API_KEY of the environment"
    )
    model: str | None = Field(None, description="model to ask for; the server's first by default")

    concurrency: int = Field(4, ge=1, description="closed loop: sessions that talk at the same time")
    rate: float | None = Field(None, gt=0, description="open loop: turns sent a second, whatever the server does")
    arrivals: Literal["constant", "poisson"] = Field("poisson", description="open loop: gaps between turns")
    sessions: int = Field(8, ge=1, description="conversations")
    turns: int = Field(4, ge=1, description="turns of each conversation")
    prompt_tokens: Numbers = Field(
        _numbers("128"), description="a prompt's length: N, uniform:A,B, normal:MEAN,SD, lognormal:MEDIAN,SIGMA, ..."
    )
    output_tokens: Numbers = Field(_numbers("32"), description="a reply's length, alike")
    ingest: Path | None = Field(None, description="text file that each session takes in before its first turn")
    history_tokens: Numbers | None = Field(
        None, description="generated history that each session takes in before its first turn, alike"
    )
    think_time: Numbers = Field(_numbers("0"), description="closed loop: seconds between reply and next turn, alike")
    disconnect: float = Field(0.0, ge=0, le=1, description="share of turns whose client leaves in the middle")
    ignore_eos: bool = Field(True, description="make replies as long as --output-tokens says")

    trace: Path | None = Field(
        None, description="replay arrivals and lengths: Azure CSV or Mooncake JSONL, plain or .xz"
    )
    speed: float = Field(1.0, gt=0, description="of the replay; 2 is twice as fast")
    duration: float | None = Field(None, gt=0, description="send no turn later than this many seconds after the start")

    warm_up: int = Field(0, ge=0, description="turns sent before the measurement, not counted")
    seed: int = Field(0, description="of lengths, arrivals, texts and disconnects")
    timeout: float = Field(600.0, gt=0, description="seconds that a turn may take")
    slo_ttft: float = Field(1000.0, gt=0, description="milliseconds to the first token that goodput allows")
    slo_itl: float = Field(100.0, gt=0, description="milliseconds a token after the first that goodput allows")
    json_file: Path | None = Field(
        None, description="write the report to this file", json_schema_extra={"flag": "--json"}
    )
    html: Path | None = Field(None, description="write the report as a self-contained page to this file")
    keep_sessions: bool = Field(False, description="leave the sessions on the server")

    @field_validator("url")
    @classmethod
    def _address(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return value.rstrip("/")

    @field_validator("trace", "ingest")
    @classmethod
    def _there(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError(f"no such file: {value}")
        return value

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> LoadSettings:
        """An option that this kind of run would ignore is refused."""
        for field, mode in self._without_effect():
            if field in self.model_fields_set and getattr(self, field) is not None:
                raise ValueError(f"--{field.replace('_', '-')} has no effect {mode}")
        return self

    def _without_effect(self) -> list[tuple[str, str]]:
        if self.trace is not None:
            given = ("rate", "concurrency", "arrivals", "sessions", "turns", "prompt_tokens", "output_tokens")
            return [(field, "with --trace") for field in (*given, "think_time", "ingest", "history_tokens")]
        always = [("speed", "without --trace")]
        if self.rate is not None:
            return [*always, ("concurrency", "with --rate"), ("think_time", "with --rate")]
        return [*always, ("arrivals", "without --rate")]

    @property
    def mode(self) -> Literal["closed", "open", "trace"]:
        return "trace" if self.trace is not None else "closed" if self.rate is None else "open"

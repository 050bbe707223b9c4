"""The whole of ``megacontext load``: calibrate, warm up, measure, report."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from clients.load.page import write_page
from clients.load.plan import make_plan, warm_up_plan
from clients.load.report import make_report, summary
from clients.load.runner import Run, Runner
from clients.load.settings import LoadSettings
from clients.load.show import show, watching
from clients.load.text import CALIBRATION_TURNS, Words, calibrate
from clients.megacontext_client import AsyncMegaContext


def main(settings: LoadSettings, api_key: str | None) -> None:
    """Run, show, write. ClientError or OSError if the server can't be used or a file can't be written."""
    for path in (settings.json_file, settings.html):
        # Before the run, not after it.
        if path is not None and not path.parent.is_dir():
            raise FileNotFoundError(f"no such folder: {path.parent}")
    report = asyncio.run(measure(settings, api_key, Console(stderr=True)))
    show(report, Console())
    if settings.json_file is not None:
        settings.json_file.write_text(json.dumps(report, indent=1), encoding="utf-8")
    if settings.html is not None:
        write_page(report, settings.html)
    print(json.dumps(summary(report)), flush=True)


async def measure(settings: LoadSettings, api_key: str | None, console: Console) -> dict[str, Any]:
    """The report of one run. TraceError for an unreadable trace, ClientError if the server can't be used."""
    plans = make_plan(settings)
    # A retry would hide a refusal, and a bound on connections would hide a queue.
    async with (
        AsyncMegaContext(settings.url, api_key, settings.timeout, retries=0, connections=None) as server,
        AsyncExitStack() as stack,
    ):
        console.print("calibrating", style="dim")
        model = settings.model or (await server.models())[0].id
        calibration = await calibrate(server, settings.seed, model)
        words = Words(settings.seed, calibration)
        warm = Run(settings.warm_up)
        await Runner(server, settings, words, model).run(warm_up_plan(settings), warm)
        run = Run(sum(len(plan.turns) for plan in plans), settings.duration)
        await stack.enter_async_context(watching(run, len(plans), console))
        started = datetime.now(UTC)
        await Runner(server, settings, words, model).run(plans, run)
    facts = {
        "model": model,
        "server": settings.url.partition("://")[2],
        "started": started.isoformat(timespec="seconds"),
        "interrupted": run.interrupted,
        "planned": run.total,
        "ingested_tokens": run.ingested_tokens,
        "calibration": {
            "turns": CALIBRATION_TURNS,
            "prompt_tokens": calibration.spent,
            "tokens_per_word": calibration.per_word,
            "overhead_tokens": calibration.overhead,
        },
        "warm_up": {
            "sent": len(warm.records),
            "completed": sum(record.outcome == "completed" for record in warm.records),
            "prompt_tokens": sum(record.prompt_tokens or 0 for record in warm.records),
        },
    }
    return make_report(settings, run.records, seconds=run.seconds, facts=facts)

"""Uploads with a progress bar."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from clients.megacontext_client import Ingested, MegaContext, TextKind


def upload_file(
    server: MegaContext,
    session_id: str,
    path: Path,
    console: Console,
    title: str | None = None,
    kind: TextKind | None = None,
) -> Ingested:
    """Ingest a file; the bar shows bytes sent. Raises OSError if the file can't be read."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    size = path.stat().st_size
    with path.open("rb") as file, Progress(*columns, console=console) as bar:
        task = bar.add_task(path.name, total=size)

        def progress(sent: int) -> None:
            bar.update(task, completed=sent)

        return server.ingest(session_id, file, progress, title=title, kind=kind)

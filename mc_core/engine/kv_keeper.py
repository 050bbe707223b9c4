"""Keeps the slabs of idle sessions as files, and fills new slabs from them: then a session wakes as warm as it went.

Saving never holds up the engine: a file is written while the slab stays in use, and given up if that changes meanwhile.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mc_core.bundle.bundle import Bundle
from mc_core.engine.engine_config import EngineConfig
from mc_core.kv.kv_file import Head, KVFileError
from mc_core.kv.kv_folder import KVFolder
from mc_core.kv.session_kv import ChangedError, KVModel, SessionKV, Units
from mc_core.models.digest import weights_digest
from mc_core.models.threads import aside
from mc_core.session.session import Session
from mc_core.session.trail import row_hashes

logger = logging.getLogger(__name__)
T = TypeVar("T")
Ints = NDArray[np.int64]


class KVKeeper:
    """Of one engine, whose thread alone calls ``save`` and ``load``.

    A file is of use as far as its session's history is still what it was, token by token, and the gists that its slab
    showed are; what a rewind cut is forgotten as it would have been in the slab.
    """

    def __init__(self, folder: KVFolder, bundle: Bundle, model: KVModel, config: EngineConfig) -> None:
        self.folder = folder
        self._bundle, self._model, self._config = bundle, model, config
        self._writer, self._reader = (ThreadPoolExecutor(1, f"kv-{name}") for name in ("writer", "reader"))
        self._saving: Future[None] | None = None
        self._failing = False

    @property
    def busy(self) -> bool:
        """Whether something is being written."""
        return self._saving is not None and not self._saving.done()

    def is_saved(self, kv: SessionKV) -> bool:
        """Whether a file has what the slab holds."""
        return kv.saved == kv.version

    def save(self, session: Session) -> Future[None] | None:
        """Write what the session's slab holds, behind what is written already; None if there is nothing to write."""
        kv = session.kv
        if kv is None or not len(kv) or not session.durable or self.is_saved(kv):
            return None
        units = kv.units()
        if units is None:
            return None
        opened = session.tree.ids(session.tree.num_blocks * session.block_size, session.tokens)
        columns = np.stack([getattr(units, each.name) for each in fields(units)] + [self._contents(session, units)])
        owner, blocks, version = (session.tenant, session.id), session.trail.hashes().copy(), kv.version

        def write() -> None:
            head = Head(self._of, owner, columns, blocks, opened.astype(np.int64))
            self.folder.write(head, kv.copy(units, version))

        self._saving = self._writer.submit(self._write, write, kv, version)
        return self._saving

    def load(self, session: Session) -> Future[None] | None:
        """Fill the session's slab, which is empty, with what its file has; None if there is none. Until that is done,
        nobody may use the slab."""
        kv = session.kv
        if kv is None or len(kv) or not session.durable or not self.folder.has(session.tenant, session.id):
            return None
        kv.filling = True
        return self._reader.submit(self._read, session, kv)

    def drop(self, tenant: str, session_id: str) -> Future[None]:
        """Delete a session's file, and what is being written of it."""
        return self._writer.submit(self.folder.drop, tenant, session_id)

    def close(self) -> None:
        """End the threads, once what they have begun is done."""
        self._writer.shutdown()
        self._reader.shutdown()

    # -- threads -------------------------------------------------------------------------------------------------

    def _write(self, write: Callable[[], None], kv: SessionKV, version: int) -> None:
        try:
            if kv.version == version != kv.saved:
                _apart(write)
                kv.saved = version
            self._failing = False
        except ChangedError:
            pass
        except Exception:
            # It costs speed when the session comes back, nothing else.
            if not self._failing:
                logger.warning("keys and values can't be written to %s", self.folder.folder, exc_info=True)
            self._failing = True

    def _read(self, session: Session, kv: SessionKV) -> None:
        try:
            _apart(lambda: self._fill(session, kv))
        except Exception:
            # The turn goes on with an empty slab, and computes: one that is half filled, or not cut, would be wrong.
            kv.rewind(0)
            logger.warning("the KV file of session %s is not used", session.id, exc_info=True)
        finally:
            kv.filling = False

    def _fill(self, session: Session, kv: SessionKV) -> None:
        file = self.folder.read(session.tenant, session.id, self._of)
        if file is None:
            return
        *columns, contents = file.head.columns
        units = Units(*columns)
        if not _are_slots(units.slots, self._model.pool.slots):
            raise KVFileError("its units do not fit a slab")
        at = _common_tokens(session, file.head)
        same = self._contents(session, units, at) == contents
        kv.fill(units, file.keys, file.values)
        if not same.all():
            at = min(at, int(units.starts[~same].min()))
        if at < int(units.ends.max()):
            kv.rewind(at)
        else:
            kv.saved = kv.version

    @cached_property
    def _of(self) -> Mapping[str, Any]:
        """What keys and values depend on, beside the tokens and gists that they are of."""
        bundle, model = self._bundle, self._model
        return {
            "weights": _apart(lambda: weights_digest(bundle.decoder)),
            "trail": hashlib.sha256(self.folder.seed).hexdigest(),
            "torch": torch.__version__,
            "dtype": str(model.pool.dtype),
            "gists": None if bundle.hidden_gists else bundle.gist_fingerprint,
            "block_size": bundle.block_size,
            "positions": [model.policy.name, model.policy.sigma_scale],
            "rotated": model.pool.unrotated is None,
            "repair": model.mode,
            "segment_blocks": self._config.segment_blocks if model.mode == "block" else None,
        }

    def _contents(self, session: Session, units: Units, end: int | None = None) -> Ints:
        """A hash of each unit that is a vector of a gist [n], 0 of tokens, of frames, and of gists that end behind
        ``end`` or are still to be made."""
        contents = np.zeros(len(units.slots), np.int64)
        levels = units.levels
        shown = levels > 0 if end is None else (levels > 0) & (units.ends <= end)
        for level in np.unique(levels[shown]).tolist():
            span = session.block_size**level
            made = units.starts // span < session.tree.count(level)
            ranks = np.flatnonzero(shown & made & (levels == level))
            starts, ends = units.starts[ranks], units.ends[ranks]
            nodes, parts = starts // span, starts % span // (ends - starts)
            vectors = session.tree.gist_vectors(level, nodes)[torch.arange(len(nodes)), torch.from_numpy(parts)]
            contents[ranks] = row_hashes(vectors.cpu().view(torch.int16).numpy(), session.trail.seed)
        return contents


def _common_tokens(session: Session, head: Head) -> int:
    """How many tokens the session's history and that of a file begin alike; to the block, but for the open one."""
    present, size = session.trail.hashes(), session.block_size
    count = min(len(present), len(head.blocks))
    differ = np.flatnonzero(present[:count] != head.blocks[:count])
    if len(differ) or count < len(head.blocks):
        return size * (int(differ[0]) if len(differ) else count)
    start = size * count
    end = min(start + len(head.opened), session.tokens)
    if session.tree.num_blocks > count and len(session.tree.missing(np.array([count]))):
        return start
    other = np.flatnonzero(session.tree.ids(start, end) != head.opened[: end - start])
    return start + int(other[0]) if len(other) else end


def _are_slots(slots: Ints, count: int) -> bool:
    """Whether these are different slots of so many."""
    return bool(((slots >= 0) & (slots < count)).all()) and len(np.unique(slots)) == len(slots)


def _apart(work: Callable[[], T]) -> T:
    """Compute in a thread that ends with it, without gradients."""

    def run() -> T:
        with torch.inference_mode():
            return work()

    return aside(run)

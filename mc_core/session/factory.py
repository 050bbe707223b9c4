"""Sessions of one bundle: new ones, and those that a store gives back."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from mc_core.bundle.bundle import Bundle
from mc_core.context.excerpts import Excerpts
from mc_core.context.sources import Sources
from mc_core.context.working_context import WorkingContext
from mc_core.errors import ConfigError
from mc_core.focus.allocator import make_allocator
from mc_core.focus.focus_config import FocusConfig, least_budget
from mc_core.focus.lens import lens_spec, make_lens
from mc_core.focus.refocuser import Refocuser
from mc_core.focus.view import Lens
from mc_core.session.restore import Restoring
from mc_core.session.session import Counters, IngestCut, Session
from mc_core.session.trail import SEED, Trail
from mc_core.store import SessionInfo, SessionMismatchError, SessionRecord, SessionStore, StoredSession
from mc_core.tree.tree import MegaContextTree, TreeConfig

logger = logging.getLogger(__name__)


class SessionFactory:
    """Makes sessions for one bundle: new ones, and those that a store gives back."""

    def __init__(self, bundle: Bundle, focus: FocusConfig, trail_seed: bytes = SEED) -> None:
        """trail_seed: of the sessions' trails. ConfigError if the bundle lacks what the lens needs, or its gists have
        more vectors than the budget holds."""
        self.bundle, self.focus, self._trail_seed = bundle, focus, trail_seed
        if focus.budget < self.least_budget:
            raise ConfigError(
                f"budget must be at least {self.least_budget} for gists of {bundle.gist_cost} vectors, so that a long"
                f" history fits; got {focus.budget}"
            )
        spec = lens_spec(focus.lens)
        spec.check(bundle.lensnet)
        self._searches_keys = bundle.key_fingerprint is not None and "vectors" in spec.indexes

    def create(
        self,
        session_id: str,
        tenant: str,
        *,
        model: str,
        metadata: Mapping[str, Any] | None = None,
        budget: int | None = None,
        pins: Sequence[tuple[int, int]] = (),
        implicit: bool = False,
        durable: bool = True,
    ) -> Session:
        """A session without history. A budget other than the default must not exceed it (ConfigError).

        durable: False for one that lives in memory alone.
        """
        focus = self._with_budget(budget)
        wc = WorkingContext(focus.block_size, focus.budget, focus.recent_tokens, pins, self.bundle.gist_cost)
        session = self._assemble(session_id, tenant, model, focus, self._empty_tree(self._searches_keys), wc)
        session.own_budget = budget is not None
        session.metadata, session.implicit, session.durable = dict(metadata or {}), implicit, durable
        session.acknowledge()
        return session

    def load(self, stored: StoredSession, store: SessionStore) -> Session:
        """A session as its last commit left it, under the lease of ``stored``.

        Settings and networks may have changed since. Gists and lens keys that are lost are made anew and stored. Those
        of other networks are dropped: the tree is not ``whole`` then, and ``Engine.make_vectors`` makes new ones. Lens
        keys stay, and go on, under a lens that reads none. A budget that the server or its settings allow no more
        becomes the server's.

        Blocks on the store: not for the engine thread. SessionMismatchError as of ``check``.
        """
        record = stored.record
        self.check(record)
        focus = self._with_stored_budget(record.state["budget"])
        wc = self._restored_context(record, focus)
        tree = self._empty_tree(self._searches_keys or self._has_our_keys(record))
        session = self._assemble(record.session_id, record.tenant, record.model, focus, tree, wc)
        session.own_budget = record.state["budget"] == focus.budget
        session.fence, session.implicit = stored.fence, record.implicit
        session.keep, session.ttl = record.keep, record.ttl
        session.metadata, session.prefixes = dict(record.metadata), list(record.prefixes)
        session.created, session.updated, session.sequence = record.created, record.updated, record.sequence
        session.chat = dict(record.state.get("chat", {}))
        session.counters = Counters(**record.state["counters"])
        if record.state.get("ingest_cut"):
            session.ingest_cut = IngestCut(**record.state["ingest_cut"])
        session.sources = Sources.of_json(record.state.get("sources", ()))
        session.refocuser.restore(record.state["allocator"])
        restoring = Restoring(session, record, store)
        if restoring.made < record.blocks:
            session.wait_for_vectors(self._lens(focus, waiting=True))
        session.tree = restoring.tree()
        session.staged = {level: session.tree.count(level) for level in range(session.tree.num_levels + 1)}
        session.acknowledge()
        restoring.mend()
        restoring.put_back()
        return session

    def check(self, record: SessionInfo) -> None:
        """SessionMismatchError if a stored session has another tokenizer or block size than the bundle."""
        if record.tokenizer != self.bundle.tokenizer.fingerprint:
            raise SessionMismatchError(
                f"session {record.session_id} is written in the tokens of another model, {record.model!r} (tokenizer"
                f" {record.tokenizer[:12]}), than {self.bundle.name!r} (tokenizer"
                f" {self.bundle.tokenizer.fingerprint[:12]}): `megacontext sessions migrate` writes it anew"
            )
        if record.block_size != self.focus.block_size:
            raise SessionMismatchError(
                f"session {record.session_id} is stored in blocks of {record.block_size} tokens: it needs a server"
                f" whose block_size is {record.block_size}, and this one's is {self.focus.block_size}"
            )

    @property
    def least_budget(self) -> int:
        """The smallest budget that a session may have."""
        focus = self.focus
        cost = max(1, self.bundle.gist_cost)
        return least_budget(focus.block_size, focus.recent_tokens, focus.refocus_interval, gist_cost=cost)

    def _empty_tree(self, keys: bool) -> MegaContextTree:
        """keys: whether it makes lens keys."""
        bundle, net = self.bundle, self.bundle.lensnet if keys else None
        config = TreeConfig(
            block_size=self.focus.block_size,
            # As the store keeps them, so that a session that was restored goes on exactly as it stood.
            gist_dtype=torch.float16,
            device=str(bundle.device),
            lens_keys=0 if net is None else net.config.keys,
            lens_key_dim=64 if net is None else net.config.key_dim,
        )
        return MegaContextTree(config, bundle.gistnet, bundle.embed, None if net is None else net.key_net)

    def _has_our_keys(self, record: SessionRecord) -> bool:
        """Whether a stored session has lens keys of the bundle's network, which a lens that reads none leaves to it: to
        make them again takes as long as an ingest."""
        state, bundle = record.state, self.bundle
        ours = (bundle.gist_fingerprint, bundle.key_fingerprint)
        return record.gist_keys > 0 and (state["gists"], state.get("keys")) == ours

    def _lens(self, focus: FocusConfig, *, waiting: bool = False) -> Lens:
        bundle = self.bundle
        decode = bundle.tokenizer.decode
        return make_lens(focus.lens, focus, bundle.lensnet, bundle.words, decode, waiting=waiting)

    def _excerpts(self) -> Excerpts | None:
        format = self.bundle.frames
        return None if format is None else Excerpts(format, self.bundle.words, self.focus.block_size)

    def _with_budget(self, budget: int | None) -> FocusConfig:
        if budget is None or budget == self.focus.budget:
            return self.focus
        if budget > self.focus.budget:
            raise ConfigError(f"budget can be at most the server's {self.focus.budget}, got {budget}")
        if budget < self.least_budget:
            raise ConfigError(f"budget must be at least {self.least_budget}, got {budget}")
        return replace(self.focus, budget=budget)

    def _with_stored_budget(self, budget: int | None) -> FocusConfig:
        """As far as the present settings allow it; None: the server's."""
        focus, least = self.focus, self.least_budget
        return focus if budget is None or not least <= budget < focus.budget else replace(focus, budget=budget)

    def _restored_context(self, record: SessionRecord, focus: FocusConfig) -> WorkingContext:
        stored = WorkingContext.restore(record.state["context"])
        wc = stored.under(focus.budget, focus.recent_tokens, self.bundle.gist_cost)
        before, after = stored.protection, wc.protection
        given_up = len(before.pins) + len(before.chosen) - len(after.pins) - len(after.chosen)
        if given_up:
            logger.warning(
                "session %s: %d pins do not fit the budget of %d any more, and may collapse from now on",
                record.session_id,
                given_up,
                focus.budget,
            )
        return wc

    def _assemble(
        self,
        session_id: str,
        tenant: str,
        model: str,
        focus: FocusConfig,
        tree: MegaContextTree,
        wc: WorkingContext,
    ) -> Session:
        lens = self._lens(focus)
        return Session(
            id=session_id,
            tenant=tenant,
            model=model,
            tokenizer=self.bundle.tokenizer.fingerprint,
            gist_fingerprint=self.bundle.gist_fingerprint,
            key_fingerprint=self.bundle.key_fingerprint if tree.config.lens_keys else None,
            tree=tree,
            wc=wc,
            lens=lens,
            refocuser=Refocuser(focus, lens, make_allocator(focus)),
            focus_config=focus,
            excerpts=self._excerpts(),
            trail=Trail(self._trail_seed),
        )

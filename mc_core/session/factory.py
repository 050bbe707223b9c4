"""Sessions of one bundle: new ones, and those that a store gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from mc_core.bundle.bundle import Bundle
from mc_core.context.working_context import WorkingContext
from mc_core.errors import ConfigError, StoreError
from mc_core.focus.allocator import make_allocator
from mc_core.focus.focus_config import FocusConfig
from mc_core.focus.lens import make_lens
from mc_core.focus.refocuser import Refocuser
from mc_core.session.restore import restore_tree
from mc_core.session.session import Counters, IngestCut, Session
from mc_core.store import SessionStore, StoredSession
from mc_core.tree.tree import MegaContextTree, TreeConfig


class SessionFactory:
    """Makes sessions for one bundle: new ones, and those that a store gives back."""

    def __init__(self, bundle: Bundle, focus: FocusConfig) -> None:
        self.bundle, self.focus = bundle, focus
        net = bundle.lensnet if focus.lens in ("cross", "transformer", "hybrid") else None
        self.key_net = net.key_net if net is not None else None
        self.tree_config = TreeConfig(
            block_size=focus.block_size,
            # As the store keeps them, so that a session that was restored goes on exactly as it stood.
            gist_dtype=torch.float16,
            device=str(bundle.device),
            lens_keys=net.config.keys if net is not None else 0,
            lens_key_dim=net.config.key_dim if net is not None else 64,
        )

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
        session = self._assemble(session_id, tenant, model, focus, self.empty_tree(), wc)
        session.metadata, session.implicit, session.durable = dict(metadata or {}), implicit, durable
        session.acknowledge()
        return session

    def load(self, stored: StoredSession, store: SessionStore) -> Session:
        """A session as its last commit left it, under the lease of ``stored``.

        Blocks on the store: not for the engine thread. StoreError if the tokenizer or the gists do not fit the bundle.
        """
        record = stored.record
        if record.tokenizer != self.bundle.tokenizer.fingerprint:
            raise StoreError(f"session {record.session_id} was written with another tokenizer ({record.tokenizer})")
        if record.state["gists"] != self.bundle.gist_fingerprint:
            raise StoreError(f"session {record.session_id} has gists of another base model or GistNet")
        focus = self._with_budget(int(record.state["budget"]))
        if record.block_size != focus.block_size:
            raise StoreError(f"session {record.session_id} has block_size {record.block_size}, not {focus.block_size}")
        wc = WorkingContext.restore(record.state["context"])
        wc.charge(self.bundle.gist_cost)
        session = self._assemble(record.session_id, record.tenant, record.model, focus, self.empty_tree(), wc)
        session.fence, session.implicit = stored.fence, record.implicit
        session.metadata, session.prefixes = dict(record.metadata), list(record.prefixes)
        session.created, session.updated, session.sequence = record.created, record.updated, record.sequence
        session.chat = dict(record.state.get("chat", {}))
        session.counters = Counters(**record.state["counters"])
        if record.state.get("ingest_cut"):
            session.ingest_cut = IngestCut(**record.state["ingest_cut"])
        session.refocuser.restore(record.state["allocator"])
        session.tree = restore_tree(session, record, store)
        session.staged = {level: record.rows(level) for level in range(session.tree.num_levels + 1)}
        session.acknowledge()
        return session

    def empty_tree(self) -> MegaContextTree:
        return MegaContextTree(self.tree_config, self.bundle.gistnet, self.bundle.embed, self.key_net)

    def _with_budget(self, budget: int | None) -> FocusConfig:
        if budget is None or budget == self.focus.budget:
            return self.focus
        if budget > self.focus.budget:
            raise ConfigError(f"budget can be at most the server's {self.focus.budget}, got {budget}")
        return replace(self.focus, budget=budget)

    def _assemble(
        self,
        session_id: str,
        tenant: str,
        model: str,
        focus: FocusConfig,
        tree: MegaContextTree,
        wc: WorkingContext,
    ) -> Session:
        lens = make_lens(focus.lens, focus, self.bundle.lensnet, self.bundle.words)
        return Session(
            id=session_id,
            tenant=tenant,
            model=model,
            tokenizer=self.bundle.tokenizer.fingerprint,
            gist_fingerprint=self.bundle.gist_fingerprint,
            tree=tree,
            wc=wc,
            lens=lens,
            refocuser=Refocuser(focus, lens, make_allocator(focus)),
            focus_config=focus,
        )

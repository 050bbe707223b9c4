"""A session: the whole history of one conversation, its working context, and what the store has of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc_core.context.excerpts import Excerpt, Excerpts
from mc_core.context.protection import Range
from mc_core.context.sources import About, Sources
from mc_core.context.working_context import WorkingContext
from mc_core.errors import StoreError
from mc_core.focus.entry_vectors import entry_vectors
from mc_core.focus.focus_config import FocusConfig
from mc_core.focus.leads import Lead
from mc_core.focus.lens_waiting import WaitingLens
from mc_core.focus.question import QUESTION_TOKENS, Question
from mc_core.focus.refocuser import Proposal, Refocuser, RefocusReport
from mc_core.focus.view import FollowingLens, Lens, LensView
from mc_core.kv.recent import Shelf
from mc_core.kv.session_kv import SessionKV
from mc_core.notes import Note
from mc_core.session.cut_end import CUT_OFF, CutEnd
from mc_core.session.look import Look, look, shown
from mc_core.session.pins import room_for_good
from mc_core.session.trail import Trail
from mc_core.store import SessionRecord
from mc_core.tree.tree import MegaContextTree

__all__ = ["QUESTION_TOKENS", "Session"]
Ids = NDArray[np.int32]
logger = logging.getLogger(__name__)


@dataclass
class Counters:
    """Totals over a session's life; they survive restarts."""

    turns: int = 0
    refocuses: int = 0
    spans_fetched: int = 0
    spans_missing: int = 0
    spans_corrupt: int = 0
    spans_evicted: int = 0


@dataclass(frozen=True)
class IngestCut:
    """How far an ingest in parts has come: so many bytes of its text stand at the history's end, at ``tokens``."""

    bytes: int
    tokens: int


@dataclass(frozen=True, eq=False)
class Acknowledged:
    """A session as the store has it, and as a rollback leaves it."""

    tokens: int
    wc: WorkingContext
    allocator: Mapping[str, Any]
    counters: Counters
    metadata: Mapping[str, Any]
    keep: bool
    ttl: float | None
    prefixes: Sequence[tuple[str, int]]
    chat: Mapping[str, Any]
    ingest_cut: IngestCut | None
    sources: Sources


@dataclass(eq=False)
class Session:
    """Changed by the engine thread alone; the server reads its plain fields.

    ``tree`` holds [0, tokens); what lies beyond ``committed_tokens`` is not acknowledged and is dropped by a
    rollback. Of a session that is not ``durable`` nothing goes to the store, so none of its ids leave memory.
    ``keep``, ``ttl``: whether, and after how many seconds without use, it may be deleted, see ``SessionInfo``.
    ``own_budget``: it was asked for; without one the session has the server's, whatever that is when it comes back.
    ``kv`` is there while the session owns a slab. ``staged``: rows at each level that the store holds. ``gist_calls``:
    GistNet calls since the last refocus. ``chat``: what the server keeps of a conversation, stored with each commit.
    ``excerpts``: how its places are put to the model, None shows them as they are. ``sources``: of its texts of no
    message.
    ``shelf``: keys and values that left its slab lately. ``trail``: of its complete blocks.
    ``notes``: by key, those that the next commit stores.
    ``cut_end``: what a turn under way has cut off. ``broken``: what is in memory is worth nothing; load it anew.
    ``released``: it has left memory.
    ``gist_fingerprint``, ``key_fingerprint``: of the networks that the tree's gists and lens keys (None: it has none)
    are of.
    """

    id: str
    tenant: str
    model: str
    tokenizer: str
    gist_fingerprint: str
    key_fingerprint: str | None
    tree: MegaContextTree
    wc: WorkingContext
    lens: Lens
    refocuser: Refocuser
    focus_config: FocusConfig
    excerpts: Excerpts | None = None
    fence: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)
    implicit: bool = False
    keep: bool = False
    ttl: float | None = None
    durable: bool = True
    own_budget: bool = False
    prefixes: list[tuple[str, int]] = field(default_factory=list)
    chat: dict[str, Any] = field(default_factory=dict)
    created: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)
    counters: Counters = field(default_factory=Counters)
    ingest_cut: IngestCut | None = None
    sources: Sources = field(default_factory=Sources)
    kv: SessionKV | None = None
    shelf: Shelf | None = None
    trail: Trail = field(default_factory=Trail)
    notes: dict[str, Note] = field(default_factory=dict)
    cut_end: CutEnd | None = None
    staged: dict[int, int] = field(default_factory=dict)
    sequence: int = 0
    gist_calls: int = 0
    last_report: RefocusReport | None = None
    broken: bool = False
    released: bool = False
    acknowledged: Acknowledged = field(init=False)

    def __post_init__(self) -> None:
        self.acknowledge()

    @property
    def committed_tokens(self) -> int:
        """Tokens of history that the store has acknowledged."""
        return self.acknowledged.tokens

    @property
    def tokens(self) -> int:
        """Tokens of history, acknowledged or not."""
        return self.tree.num_tokens

    @property
    def stored_blocks(self) -> int:
        """Blocks in memory that the store has acknowledged, and holds as they stand here."""
        known = self.acknowledged.tokens
        if self.cut_end is not None:
            known = min(known, self.cut_end.acknowledged.tokens)
        return min(known, self.tokens) // self.block_size

    @property
    def ingest_offset(self) -> int | None:
        """Bytes that an ingest in parts has brought in, 0 without one; None if the history went on behind them."""
        known = self.acknowledged
        if known.ingest_cut is None:
            return 0
        return known.ingest_cut.bytes if known.ingest_cut.tokens == known.tokens else None

    @property
    def block_size(self) -> int:
        return self.wc.block_size

    @property
    def pin_room(self) -> int:
        """Tokens that can be pinned for good, beside those that were chosen."""
        return room_for_good(self)

    def wait_for_vectors(self, lens: Lens) -> None:
        """Its tree is not whole yet; ``lens``, a new one, serves it meanwhile."""
        self.lens = self.refocuser.lens = lens

    def vectors_are_made(self) -> None:
        """All blocks have vectors, and new ones get theirs at once."""
        self.tree.whole = True
        if isinstance(self.lens, WaitingLens):
            self.lens = self.refocuser.lens = self.lens.lens

    def append(self, ids: NDArray[np.int32], *, make_room: bool = True) -> None:
        """Add tokens to the end of the history: tree, lens and working context.

        make_room: keep the budget's reserve free for those that come next. Else they may be taken from it.
        """
        self._grow(ids)
        self.wc.extend(self.tree.num_tokens, reserve=self.focus_config.refocus_interval if make_room else 0)

    def _grow(self, ids: NDArray[np.int32]) -> None:
        """All but the working context, which then follows."""
        if self.excerpts is not None:
            self.excerpts.append(ids)
        appended = self.tree.append(ids)
        self.gist_calls += appended.gist_calls
        if appended.new_blocks:
            first = appended.first_block
            block_ids = self.tree.block_ids(np.arange(first, first + appended.new_blocks))
            self.lens.append(first, block_ids)
            self.trail.append(block_ids)

    def tell(self, about: About) -> None:
        """What text of no message is from here on; ``UNTITLED`` where nobody says."""
        self.sources = self.sources.marked(self.tokens, about)

    def pin(self, start: int, end: int) -> None:
        """Keep tokens [start, end) raw for good."""
        self.wc.pin(start, end)

    def note(self, note: Note) -> None:
        """Store this with the next commit, which may not end before it; a rollback forgets it."""
        self.notes[note.key] = note

    def choose(self, chosen: Sequence[Range]) -> None:
        """Keep these ranges raw until others are chosen; ``chosen_after`` makes them, and their ids must be there."""
        self.wc.choose(chosen, reserve=self.focus_config.refocus_interval)

    def rewind(self, position: int) -> None:
        """Cut the history at ``position``; the ids of the block that is cut must be in memory."""
        if position == self.tokens:
            return
        self._cut(position)
        self.wc.rewind(position, reserve=self.focus_config.refocus_interval)
        self.prefixes = [(digest, at) for digest, at in self.prefixes if at <= position]
        self.notes = {key: note for key, note in self.notes.items() if note.position <= position}

    def _cut(self, position: int) -> None:
        """All but the working context, which then follows."""
        self.tree.rewind(position)
        self.lens.rewind(self.tree.num_blocks)
        self.trail.rewind(self.tree.num_blocks)
        self.refocuser.rewind(self.tree.num_blocks)
        self.sources = self.sources.cut(position)
        if self.excerpts is not None:
            self.excerpts.rewind(position, self._newest(self.excerpts.reach))
        if self.kv is not None:
            self.kv.rewind(position)
        if self.shelf is not None:
            self.shelf.rewind(position)
        self.staged = {level: min(rows, self.tree.count(level)) for level, rows in self.staged.items()}
        if self.ingest_cut is not None and self.ingest_cut.tokens > position:
            self.ingest_cut = None

    def _newest(self, count: int) -> NDArray[np.int32]:
        """The newest ``count`` tokens, or those of the open block if the others are not in memory."""
        tree, size = self.tree, self.block_size
        start = max(0, tree.num_tokens - count)
        blocks = np.arange(start // size, tree.num_blocks)
        if len(blocks) and len(tree.missing(blocks)):
            start = tree.num_blocks * size
        return tree.ids(start, tree.num_tokens)

    def excerpt(self, room: int) -> Excerpt:
        """What the model reads of the working context, with at most ``room`` tokens of frames."""
        if self.excerpts is None:
            return Excerpt()
        return self.excerpts.of(self.wc, room, self.sources, self.refocuser.asked, self.refocuser.best)

    def acknowledge(self) -> None:
        """The store has the session as it is now."""
        self.acknowledged = Acknowledged(
            self.tokens,
            self.wc.copy(),
            self.refocuser.snapshot(),
            replace(self.counters),
            dict(self.metadata),
            self.keep,
            self.ttl,
            tuple(self.prefixes),
            dict(self.chat),
            self.ingest_cut,
            self.sources,
        )

    def rollback(self) -> None:
        """Back to what the store acknowledged last, pins and all; never raises, but may leave the session broken.

        What this needs is never evicted (``blocks_to_keep``), so it does not wait for the store.
        """
        try:
            self._return_to(self.acknowledged)
        except Exception:
            logger.exception("session %s cannot be rolled back in memory and must be loaded anew", self.id)
            self.broken = True

    def cut(self, position: int) -> None:
        """Cut the acknowledged history at ``position`` for a turn that writes its end anew; a rollback puts it back.

        The ids behind the cut must be in memory. Message boundaries behind it move to it: the turn is about to write
        their messages again.
        """
        ids, staged = self.tree.ids(position, self.committed_tokens), dict(self.staged)
        prefixes, sources, before, kept = self.prefixes, self.sources, self.acknowledged, self.wc.protection
        self.rewind(position)
        self.prefixes = [(digest, min(at, position)) for digest, at in prefixes]
        self.acknowledge()
        at_cut = self.record()
        cut_off = {
            "ids": ids.tolist(),
            "prefixes": [list(prefix) for prefix in prefixes],
            "sources": sources.json(),
            "pins": [list(pin) for pin in kept.pins if pin[1] > position],
            "chosen": [list(pin) for pin in kept.chosen if pin[1] > position],
        }
        at_cut = replace(at_cut, state={**at_cut.state, CUT_OFF: cut_off})
        self.cut_end = CutEnd(ids, staged, at_cut, self.acknowledged)
        self.acknowledged = before

    def cut_stored(self) -> None:
        """The store has the session at the cut, and beside it what was cut off, until it takes the turn."""
        assert self.cut_end is not None
        self.acknowledged, self.cut_end = self.cut_end.acknowledged, None

    def _return_to(self, back: Acknowledged) -> None:
        self.notes = {}
        if self.cut_end is not None:
            end, self.cut_end = self.cut_end, None
            self._cut(end.acknowledged.tokens)
            self._grow(end.ids)
            self.staged = end.staged
        if self.tokens < back.tokens:
            raise StoreError(f"the store has {back.tokens} tokens, but memory was cut at {self.tokens}")
        self._cut(back.tokens)
        self.wc, self.counters = back.wc.copy(), replace(back.counters)
        self.refocuser.restore(back.allocator)
        self.metadata, self.keep, self.ttl = dict(back.metadata), back.keep, back.ttl
        self.prefixes, self.chat = list(back.prefixes), dict(back.chat)
        self.ingest_cut, self.sources = back.ingest_cut, back.sources

    def release_slab(self) -> None:
        """Give the slab to another session, if this one has it; what may be kept for the next one is."""
        kv, self.kv = self.kv, None
        if kv is not None:
            kv.release(keep=True)

    def drop_kv(self) -> None:
        """Give the slab back, if the session has one, and keep nothing of what it held."""
        kv, self.kv = self.kv, None
        if kv is not None:
            kv.release()
        if self.shelf is not None:
            self.shelf.clear()

    def blocks_to_rewind(self, position: int) -> NDArray[np.int64]:
        """Complete blocks whose ids a rewind to ``position`` needs: the one that is cut, and the new tail's."""
        block, inside = divmod(position, self.block_size)
        cut = [block] if inside and block < self.tree.num_blocks else []
        return np.union1d(self.wc.blocks_to_rewind(position), np.array(cut, np.int64))

    def blocks_to_keep(self) -> NDArray[np.int64]:
        """Blocks that must not be evicted: raw ones, unstored ones, and those that stand raw after a rollback."""
        unstored = np.arange(self.staged.get(0, 0), self.tree.num_blocks)
        at_cut = [] if self.cut_end is None else [self._raw_blocks(self.cut_end.acknowledged.wc)]
        return np.concatenate([self.raw_blocks(), self._raw_blocks(self.acknowledged.wc), *at_cut, unstored])

    def propose(self, question: Ids | Question, leads: Sequence[Lead] = (), *, fresh: bool = True) -> Proposal:
        """Score the working context against ``question`` (of ids the newest), and ``leads``, and plan its edits.

        fresh: ask the lens, however short a while ago it was asked last.
        """
        view = self._view(question, leads)
        return self.refocuser.propose(view, self.wc, self.focus_config.refocus_interval, fresh=fresh)

    def leads(self, question: Ids | Question, known: Sequence[Lead]) -> list[Lead]:
        """What the places that the last refocus asked for name in turn, as far as they stand raw."""
        if not isinstance(self.lens, FollowingLens):
            return []
        blocks = np.intersect1d(self.refocuser.targets, self.raw_blocks())
        view = self._view(question, known)
        blocks = blocks[~view.own(blocks)]
        return self.lens.leads(view, blocks, self.tree.block_ids(blocks))

    def hops(self, question: Ids | Question) -> Iterator[Proposal]:
        """What opened places name in turn, link by link, after the refocus on ``question``: plans to be committed
        (``commit_hop``), each before the next is asked for."""
        known: list[Lead] = []
        for _ in range(self.focus_config.hops):
            leads = self.leads(question, known)
            if not leads:
                return
            known += leads
            proposal = self.propose(question, known)
            if not proposal.plan.edits:
                return
            yield proposal

    def commit_focus(self, proposal: Proposal) -> RefocusReport:
        """Apply a plan to the working context."""
        self.last_report = self.refocuser.commit(self.wc, proposal)
        self.counters.refocuses += 1
        return self.last_report

    def commit_hop(self, proposal: Proposal) -> None:
        """Apply a further plan as a part of the last refocus, of which ``last_report`` then tells the whole."""
        self.last_report = self.refocuser.commit_hop(self.wc, proposal)

    def raw_blocks(self) -> NDArray[np.int64]:
        """Complete blocks that stand raw in the working context."""
        return self._raw_blocks(self.wc)

    def _raw_blocks(self, wc: WorkingContext) -> NDArray[np.int64]:
        return wc.indices[(wc.levels == 0) & (wc.indices < self.tree.num_blocks)]

    def focus(self, room: int) -> dict[str, Any]:
        """The working context as entries, as ``/focus`` shows it. room: tokens that frames may take."""
        return shown(self, room)

    def look(self, room: int) -> Look:
        """The working context as it stands, to be read by any thread later. room: tokens that frames may take."""
        return look(self, room)

    @property
    def row_shape(self) -> dict[str, Any]:
        """Fields of the record that say what the store's rows of gists look like."""
        config = self.tree.config
        key_dim = config.lens_key_dim if config.lens_keys else 0
        return {
            "gist_dim": self.tree.gist_width,
            "gist_dtype": "float16",
            "gist_keys": config.lens_keys,
            "key_dim": key_dim,
        }

    def record(self) -> SessionRecord:
        """What a commit stores beside spans and gists."""
        open_start = self.tree.num_blocks * self.block_size
        return SessionRecord(
            session_id=self.id,
            tenant=self.tenant,
            model=self.model,
            tokenizer=self.tokenizer,
            block_size=self.block_size,
            **self.row_shape,
            # The tree may have become whole after this commit's rows were written.
            gist_blocks=None if self.staged.get(1, 0) >= self.tree.num_blocks else 0,
            tokens=self.tokens,
            metadata=self.metadata,
            implicit=self.implicit,
            keep=self.keep,
            ttl=self.ttl,
            tail=self.tree.ids(open_start, self.tokens),
            state={
                "context": self.wc.snapshot(),
                "allocator": self.refocuser.snapshot(),
                "counters": vars(self.counters).copy(),
                "budget": self.wc.budget if self.own_budget else None,
                "gists": self.gist_fingerprint,
                "chat": self.chat,
                "ingest_cut": None if self.ingest_cut is None else vars(self.ingest_cut).copy(),
                "sources": self.sources.json(),
                "keys": self.key_fingerprint,
            },
            prefixes=tuple(self.prefixes),
            fence=self.fence,
        )

    def _view(self, question: Ids | Question, leads: Sequence[Lead]) -> LensView:
        asked = Question.of(question)
        return LensView(
            wc=self.wc,
            tree=self.tree,
            question=asked.ids,
            cursor=self.tokens,
            entry_vectors=lambda: entry_vectors(self.wc, self.tree),
            question_vectors=lambda: self._embed(asked.ids),
            leads=tuple(leads),
            own_from=asked.start,
            lines=asked.lines,
            asked_before=self._asked_before(),
        )

    def _asked_before(self) -> NDArray[np.int64]:
        """Blocks of messages in which the user did nothing but ask."""
        if self.excerpts is None:
            return np.empty(0, np.int64)
        first, last = (self.excerpts.messages.questions() - (0, 1)).T // self.block_size
        return np.unique(np.concatenate([first, last]))

    def _embed(self, ids: NDArray[np.int32]) -> Tensor:
        return self.tree.embed(torch.from_numpy(ids.astype(np.int64)).to(self.tree.config.device))

"""An export in the tokens of one model, written anew in those of another."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np

from mc_core.models.tokenizer import Ids
from mc_core.notes import Note
from server.migrate.translate import Language, translate
from server.transfer.checked import Checked
from server.transfer.covering import covering
from server.transfer.form import IN_MEMORY, LINE_TOKENS, end_line, ids_line, json_line, note_line
from server.turns.message_notes import PREFIX


@dataclass(frozen=True)
class Target:
    """What the new session is of: a model by its name, its language, and the blocks of its history."""

    model: str
    language: Language
    block_size: int


def migrated(checked: Checked, old: Language, new: Target) -> IO[bytes]:
    """The same session in other tokens, as a complete export; the caller closes it.

    Messages keep their ids and words. Where they stand, and what is pinned, ingested or stored at a place, moves with
    the text. ConfigError if the new tokenizer cannot write the text.
    """
    ids = np.concatenate([np.empty(0, np.int32), *(np.array(line.ids, np.int32) for line in checked.ids())])
    translation = translate(old, new.language, ids, _places(checked))
    file: Any = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - the caller's
    digest, notes = hashlib.sha256(), 0
    for line in _lines(checked, new, translation.ids, translation.places):
        digest.update(line)
        file.write(line)
        notes += line.startswith(b'{"type":"note"')
    file.write(end_line(len(translation.ids), notes, digest.hexdigest()))
    file.seek(0)
    result: IO[bytes] = file
    return result


def _lines(checked: Checked, new: Target, ids: Ids, places: Mapping[int, int]) -> Iterator[bytes]:
    told = {"model": new.model, "tokenizer": new.language.tokenizer.fingerprint, "block_size": new.block_size}
    yield json_line({**checked.head.model_dump(exclude_unset=True), **told, "tokens": len(ids)})
    yield json_line({"type": "state", **_state(checked, new, len(ids), places)})
    for at in range(0, len(ids), LINE_TOKENS):
        yield ids_line(at, np.ascontiguousarray(ids[at : at + LINE_TOKENS]))
    for stored in checked.notes():
        yield note_line(_moved(stored.note(), places))


def _state(checked: Checked, new: Target, tokens: int, places: Mapping[int, int]) -> dict[str, Any]:
    state, prefixes = checked.state.state, checked.state.prefixes
    chat = dict(state.get("chat") or {})
    if chat:
        # Its open messages were written as the old template does it: the next turn goes on behind them.
        chat |= {"start": tokens, "first": False, "count": 0, "messages": []}
    if told := chat.get("told"):
        chat["told"] = {**told, "last": _at(told["last"], places), "window": []}
    state = covering(state, tokens, places.__getitem__, block_size=new.block_size, chat=chat)
    if (cut := checked.state.state.get("ingest_cut")) is not None:
        state["ingest_cut"] = {**cut, "tokens": places[cut["tokens"]]}
    return {"state": state, "prefixes": [[digest, places[at]] for digest, at in prefixes]}


def _moved(note: Note, places: Mapping[int, int]) -> Note:
    """A message also says itself where it stands."""
    moved = replace(note, position=places[note.position])
    if not note.key.startswith(PREFIX):
        return moved
    value = json.loads(note.value)
    return replace(moved, value=json.dumps({**value, "place": _at(value["place"], places)}).encode())


def _at(place: Mapping[str, Any], places: Mapping[int, int]) -> dict[str, Any]:
    return {**place, "start": places[place["start"]], "end": places[place["end"]]}


def _places(checked: Checked) -> set[int]:
    """All places of the history that something is said of."""
    state = checked.state.state
    context, told = state["context"], (state.get("chat") or {}).get("told")
    wanted = {place for name in ("pins", "chosen") for pin in context.get(name, ()) for place in pin}
    wanted |= {int(start) for start, *_ in state.get("sources", ())}
    wanted |= {int(at) for _, at in checked.state.prefixes}
    wanted |= set() if state.get("ingest_cut") is None else {state["ingest_cut"]["tokens"]}
    wanted |= set() if not told else {told["last"]["start"], told["last"]["end"]}
    for stored in checked.notes():
        note = stored.note()
        wanted.add(note.position)
        if note.key.startswith(PREFIX):
            place = json.loads(note.value)["place"]
            wanted |= {place["start"], place["end"]}
    return wanted

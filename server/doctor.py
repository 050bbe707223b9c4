"""Does everything that a server needs work here? Each check says what it found, in words."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import httpx
import numpy as np
import torch

from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.engine.core import build_core
from mc_core.errors import StoreError
from mc_core.models.linear import compute_dtype
from mc_core.store import SessionRecord, SessionStore
from server.build import engine_config, focus_of, frames_of, kv_folder_of, placement, shipped_networks, template_of
from server.serve import check_tls, is_open
from server.served_model import find_model
from server.settings import Settings
from server.stores import discard, open_store, sqlite_file
from server.telemetry.probe import confirm

Status = Literal["ok", "warning", "failed"]
TENANT = "megacontext-doctor"
PATIENCE = 10.0
"""Seconds that each call to the store, or to a server that runs, may take."""
STANDINGS = {
    "absent": "is not there",
    "passed": "passed its evaluation",
    "failed": "did not pass its evaluation",
    "unmeasured": "was not evaluated",
}
"""Of networks, as the manifest names them."""
LOW_DISK, NO_DISK = 2 << 30, 64 << 20


@dataclass(frozen=True)
class Finding:
    """What one check found; only "failed" keeps a server from working."""

    check: str
    status: Status
    detail: str


def examine(settings: Settings) -> list[Finding]:
    """All checks, in order. A failed one does not stop the others."""
    return [
        _safely("device", lambda: _device(settings)),
        *_model(settings),
        _safely("access", lambda: _access(settings)),
        _safely("address", lambda: _address(settings)),
        _safely("disk", lambda: _disk(settings)),
        _safely("store", lambda: _store(settings)),
        _safely("traces", lambda: Finding("traces", *confirm("traces"))),
        _safely("metrics", lambda: Finding("metrics", *confirm("metrics"))),
    ]


def _safely(check: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except Exception as error:
        return Finding(check, "failed", str(error) or type(error).__name__)


def _device(settings: Settings) -> Finding:
    """Multiply two matrices there."""
    device, weights = placement(settings)
    dtype = compute_dtype(weights)
    ones = torch.ones(64, 64, device=device, dtype=dtype)
    if float((ones @ ones).sum()) != 64**3:
        return Finding("device", "failed", f"{device} computes wrong sums in {dtype}")
    if ones.is_cuda:
        free, total = torch.cuda.mem_get_info(ones.device)
        text = f"{torch.cuda.get_device_name(ones.device)}, {_size(free)} of {_size(total)} free"
    else:
        text = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return Finding("device", "ok", f"{device}: {text}; weights {str(weights).removeprefix('torch.')}")


def _model(settings: Settings) -> list[Finding]:
    """Load it, and see whether the settings fit it, as the server does when it starts."""
    try:
        served = find_model(settings)
        networks = shipped_networks(served.path)
        bundle = load_bundle(served.path, *placement(settings), block_size=settings.block_size, networks=networks)
    except Exception as error:
        unknown = "unknown, since the model does not load"
        model = Finding("model", "failed", str(error) or type(error).__name__)
        return [model, Finding("gists", "failed", unknown), Finding("settings", "failed", unknown)]
    config = bundle.decoder.config
    size = f"{config.num_weights / 1e6:.3g} M parameters"
    text = f"{bundle.name} loads: {config.family}, {size}, vocabulary {config.vocab_size}"
    return [
        Finding("model", "warning" if served.notice else "ok", f"{text}; {served.notice}" if served.notice else text),
        _gists(bundle),
        _safely("settings", lambda: _fit(settings, bundle)),
    ]


def _fit(settings: Settings, bundle: Bundle) -> Finding:
    """Build an engine's parts. One slab shows that the settings fit; what all of them take is told."""
    template = template_of(bundle, bundle.name, settings.chat_template)
    bundle = replace(bundle, frames=frames_of(settings, bundle, template))
    focus, why = focus_of(settings, bundle)
    core = build_core(
        bundle,
        focus,
        replace(engine_config(settings), max_sessions=1, kv_folder=None),
        None,
        repair=None if settings.repair == "auto" else settings.repair,
        positions=None if settings.positions == "auto" else settings.positions,
    )
    slabs = _size(core.runner.pool.bytes() * settings.max_sessions)
    fit = f"budget {focus.budget}, lens {focus.lens}, {core.runner.policy.name} positions, {core.runner.mode} repair"
    told = f"{fit}; KV slabs for {settings.max_sessions} sessions take {slabs}; budget: {why}"
    return Finding("settings", "ok", told)


def _gists(bundle: Bundle) -> Finding:
    """The gate: networks that did not pass their evaluation are not used."""
    text = "; ".join(f"{network} {STANDINGS[standing]}" for network, standing in bundle.manifest.networks().items())
    if bundle.hidden_gists:
        text += ": collapsed history is hidden from the model, not summarized"
    return Finding("gists", "warning" if bundle.manifest.unproved else "ok", text)


def _access(settings: Settings) -> Finding:
    """Who may use the server, and whether what they send can be read on the way."""
    check_tls(settings)
    place = settings.unix_socket or f"{settings.host}:{settings.port}"
    if is_open(settings):
        told = f"no API key: everybody who reaches {place} may use every session; give --api-key"
        return Finding("access", "warning", told)
    who = f"{len(settings.api_key)} API keys" if settings.api_key else "no API key, but only this machine reaches it"
    return Finding("access", "ok", f"{place}: {who}; {'HTTPS' if settings.tls_cert else 'HTTP'}")


def _address(settings: Settings) -> Finding:
    """Listen where the server is to listen, for a moment."""
    if settings.unix_socket is not None:
        return _socket_file(settings.unix_socket)
    place = f"{settings.host}:{settings.port}"
    try:
        # As the server does it: at all addresses that the host has.
        for family, kind, protocol, _, address in socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as taken:
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                taken.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and _serves(settings):
            told = f"{place} is taken by a MegaContext server that runs: another one needs another --port"
            return Finding("address", "warning", told)
        return Finding("address", "failed", f"no server can listen at {place}: {error.strerror or error}")
    return Finding("address", "ok", f"{place} is free" if settings.port else "a free port is taken at the start")


def _socket_file(path: Path) -> Finding:
    folder = path.absolute().parent
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding("address", "failed", f"no socket can be made in {folder}: it is not there, or can't be written")
    with socket.socket(socket.AF_UNIX) as ours:
        if ours.connect_ex(str(path)) == 0:
            return Finding("address", "failed", f"{path} is taken: somebody listens there")
    return Finding("address", "ok", f"{path} is free")


def _serves(settings: Settings) -> bool:
    """Whether what listens at the address is a server like this one."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    scheme = "https" if settings.tls_cert else "http"
    try:
        answer = httpx.get(f"{scheme}://{host}:{settings.port}/health", verify=False, timeout=PATIENCE, trust_env=False)
        return answer.json().get("status") in ("ok", "dead")
    except (httpx.HTTPError, ValueError, AttributeError):
        return False


def _disk(settings: Settings) -> Finding:
    """Room for the store, and a place for the files of idle sessions."""
    if (kept := kv_folder_of(settings)) is not None:
        place = _nearest(kept)
        if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
            return Finding("disk", "failed", f"kv_folder: {kept} can't be written: {place} is no folder, or not ours")
    if (file := sqlite_file(settings.store)) is None:
        return Finding("disk", "ok", "the store is not a file on this machine")
    folder = _nearest(file.parent)
    free = shutil.disk_usage(folder).free
    status: Status = "failed" if free < NO_DISK else "warning" if free < LOW_DISK else "ok"
    return Finding("disk", status, f"{_size(free)} free at {folder}")


def _nearest(path: Path) -> Path:
    """What is there of a path: itself, or the nearest one above it."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _store(settings: Settings) -> Finding:
    """Write a session of a tenant that nobody else has, read it back, delete it."""
    try:
        store = open_store(settings.store)
    except StoreError as error:
        if "in use by another server" in str(error):
            return Finding("store", "warning", f"not tried: {error}. Ask the server that runs: GET /ready")
        raise
    try:
        _round_trip(store)
    finally:
        discard(store)
    return Finding("store", "ok", "a session was written, read back as it was, and deleted")


def _round_trip(store: SessionStore) -> None:
    name = f"doctor-{secrets.token_hex(8)}"
    ids = np.random.default_rng().integers(0, 2**31 - 1, (4, 32), dtype=np.int32)
    record = SessionRecord(session_id=name, tenant=TENANT, model=TENANT, tokenizer=TENANT)
    store.create(record).result(PATIENCE)
    try:
        fence = store.open(name, TENANT, name).result(PATIENCE).fence
        store.write_spans(name, fence, 0, ids).result(PATIENCE)
        store.commit(replace(record, tokens=ids.size, fence=fence)).result(PATIENCE)
        read = store.read_spans(name, np.arange(len(ids))).result(PATIENCE)
        if not np.array_equal(read.ids, ids):
            raise StoreError("what was read back is not what was written")
    finally:
        store.delete(name, TENANT).result(PATIENCE)


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"

"""How much memory a device has left: of a GPU as its driver says, of the host within the limits of its containers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

MEMINFO, CGROUPS = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated there now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([_of_the_host(), *_of_cgroups()])


def _of_the_host() -> int:
    """What Linux counts as available, caches that give way included; elsewhere half of all memory."""
    for line in _read(MEMINFO).splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _of_cgroups() -> Iterator[int]:
    """What each limit that holds for this process leaves: its own control group's, and those of the groups above."""
    for line in _read(OWN_CGROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = CGROUPS, ("memory.max", "memory.current", "inactive_file")
        elif controllers == "memory":
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            root = CGROUPS / "memory"
        else:
            continue
        own = Path(path.lstrip("/"))
        for group in (own, *own.parents):
            yield from _left(root / group, *names)


def _left(group: Path, limit: str, usage: str, cache: str) -> Iterator[int]:
    """The limit less what is used, but for files in memory that nobody has touched for a while."""
    most, used = _read(group / limit).strip(), _read(group / usage).strip()
    if not most.isdigit() or not used.isdigit():
        return
    stat = dict(line.split() for line in _read(group / "memory.stat").splitlines())
    yield max(0, int(most) - int(used) + int(stat.get(cache, 0)))


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""

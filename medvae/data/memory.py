"""How much memory there is, to refuse files that need more before the system ends the program."""

from __future__ import annotations

from pathlib import Path

__all__ = ["free_memory"]

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Return the bytes that a program may still use, the container's limit included.

    None where the system does not say (not Linux).
    """
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None
    try:  # "max" where there is no limit
        limit, used = (int((CGROUP / f"memory.{n}").read_text()) for n in ("max", "current"))
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        used -= int(stat["inactive_file"])  # cached files make room
    except (OSError, KeyError, ValueError):
        return free
    return min(free, max(limit - used, 0))

"""What is measured beside the load: percentiles, CPU seconds of processes, and the floor that the disk sets."""

from __future__ import annotations

import math
import os
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of `values` that at least `share` of them do not exceed; nan if there are none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def cpu_s(pid: int) -> float:
    """Return the CPU seconds (user and system) a process has used; 0.0 where that cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def resident_bytes(pid: int) -> int:
    """Return the memory a process holds; 0 where that cannot be read."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def written_bytes(pid: int) -> int:
    """Return the bytes that a process has caused to be written to disks; 0 where that cannot be read."""
    try:
        lines = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    except OSError:
        return 0
    return int(lines["write_bytes"]) - int(lines["cancelled_write_bytes"])


def disk_bytes(directory: Path) -> int:
    """Return the bytes that the files below `directory` take on the disk."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.lstat().st_blocks * 512
        except FileNotFoundError:  # compacted away meanwhile
            continue
    return total


def built() -> str:
    """Say how this interpreter was built: one without PGO and LTO, as pyenv makes by default, is some 15 % slower."""
    asked = sysconfig.get_config_var("CONFIG_ARGS") or ""
    flags = " ".join(str(sysconfig.get_config_var(name) or "") for name in ("PY_CORE_LDFLAGS", "PY_CFLAGS_NODIST"))
    pgo = "--enable-optimizations" in asked or "-fprofile-use" in flags
    lto = "--with-lto" in asked or "-flto" in flags
    if pgo and lto:
        return "built with PGO and LTO"
    if pgo or lto:
        return f"built with {'PGO' if pgo else 'LTO'} alone"
    return "built without PGO and LTO"


def fdatasync_ms(directory: Path, appends: int = 100) -> float:
    """Return the median time of a 128-byte append with fdatasync there: no durable commit can be faster."""
    path = directory / "fdatasync-floor"
    times: list[float] = []
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        for _ in range(appends):
            start = time.perf_counter()
            os.write(descriptor, b"x" * 128)
            os.fdatasync(descriptor)
            times.append((time.perf_counter() - start) * 1e3)
    finally:
        os.close(descriptor)
        path.unlink()
    return percentile(times, 0.5)


def filesystem(directory: Path) -> str:
    """Return the kind of file system `directory` is on ("ext4"); fsync means nothing on "tmpfs"."""
    best, kind = "", "unknown"
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return kind
    for line in mounts:
        _, mount_point, its_kind, *_ = line.split()
        inside = str(directory.resolve()).startswith(mount_point.rstrip("/") + "/")
        if inside and len(mount_point) >= len(best):
            best, kind = mount_point, its_kind
    return kind


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

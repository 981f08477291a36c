"""Which boot of this machine it is: what was written and never synced is there for as long as this does not change."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_LINUX = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Return an id that is new at each boot; "" where none is known, which equals no boot."""
    try:
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
            return subprocess.run(command, capture_output=True, check=True, timeout=5).stdout.decode().strip()
        return _LINUX.read_text("utf-8").strip()
    except (OSError, subprocess.SubprocessError):
        return ""

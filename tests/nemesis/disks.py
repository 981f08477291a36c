"""Disks that can be broken: an ext4 image on a loop device, to be filled, frozen, or to lose its power.

Loss of power is ext4's shutdown ioctl without a flush of the journal: from that instant nothing reaches the image, and
what was only in memory is gone at the next mount.

Source:     Linux, include/uapi/linux/ext4.h (EXT4_IOC_SHUTDOWN); ioctl_fsfreeze via util-linux's fsfreeze.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
_NO_LOG_FLUSH = 2
TOOLS = ("mkfs.ext4", "mount", "umount", "fsfreeze")
FILLER = "filler"


def why_not() -> str | None:
    """Return why images cannot be used here; None if they can."""
    if os.geteuid() != 0:
        return "only root can mount images"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if not Path("/dev/loop-control").exists():
        return "this machine has no loop devices"
    return None


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


@contextlib.contextmanager
def shared(place: Path) -> Iterator[None]:
    """Have what is mounted and unmounted below `place` be so for processes in namespaces of their own too.

    Else these would hold on to an image that was unmounted, and it could not be mounted afresh.
    """
    _run("mount", "--bind", place, place)
    try:
        _run("mount", "--make-shared", place)
        yield
    finally:
        _run("umount", "-l", place)


class Image:
    """A file with an ext4 in it, mounted somewhere.

    Raises:
        OSError: it cannot be made or mounted here.
    """

    def __init__(self, file: Path, mounted_at: Path, *, megabytes: int) -> None:
        self.file = file
        self.path = mounted_at
        self._frozen = False
        with open(file, "wb") as image:
            image.truncate(megabytes << 20)
        _run("mkfs.ext4", "-q", "-m", "0", file)
        mounted_at.mkdir(parents=True, exist_ok=True)
        self.mount()
        shutil.rmtree(mounted_at / "lost+found", ignore_errors=True)

    def mount(self) -> None:
        _run("mount", "-o", "loop", self.file, self.path)

    def unmount(self) -> None:
        """Unmount, waiting for whoever is about to let go."""
        for _ in range(50):
            try:
                _run("umount", self.path)
            except OSError:
                time.sleep(0.1)
            else:
                return
        _run("umount", "-l", self.path)

    def fill(self) -> None:
        """Leave not a byte free."""
        fd = os.open(self.path / FILLER, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        os.write(fd, b"\0" * size)
        finally:
            os.close(fd)

    def free(self) -> None:
        """Undo `fill`."""
        (self.path / FILLER).unlink(missing_ok=True)

    def freeze(self) -> None:
        """From now on every write hangs."""
        _run("fsfreeze", "-f", self.path)
        self._frozen = True

    def thaw(self) -> None:
        """Undo `freeze`. Idempotent."""
        if self._frozen:
            _run("fsfreeze", "-u", self.path)
            self._frozen = False

    def sync(self) -> None:
        """Have all that was written so far reach the disk."""
        _run("sync", "-f", self.path)

    def cut_power(self) -> None:
        """From now on nothing reaches the disk, not even what was written before and not synced."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        except OSError as error:
            if error.errno == errno.ENOTTY:
                raise OSError("this kernel's ext4 knows no shutdown") from error
            raise
        finally:
            os.close(fd)

    def power_on(self) -> None:
        """Mount what reached the disk."""
        self.unmount()
        self.mount()

    def close(self) -> None:
        """Unmount and remove it."""
        self.thaw()
        with contextlib.suppress(OSError):
            self.unmount()
        self.file.unlink(missing_ok=True)

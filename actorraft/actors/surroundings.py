"""What a process needs of its surroundings before it can start others: an interpreter, its options, descriptors.

Each that is missing is refused by its name and with what to do, before anything is made. A program that is no Python,
started as if it were one, would start itself over and over, or hang.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from subprocess import _args_from_interpreter_flags  # type: ignore[attr-defined]
from typing import Final

from actorraft.errors import StartError, UsageError

PROBE_S: Final = 10.0  # what an executable of an unusual name gets to show that it is a Python
DESCRIPTORS_OF_PROCESS: Final = 6  # that a parent keeps for each child
DESCRIPTORS_AT_START: Final = 24  # that come and go meanwhile, and those of the sockets
_PYTHONS: Final = re.compile(r"(python|pypy|graalpy)[\d.]*[a-z]*(\.exe)?", re.IGNORECASE)

# Of /proc/PID/status: what a child has from its parent.
_STATUS: Final = re.compile(
    rb"^(?:Umask|Uid|Gid|Groups|SigBlk|SigIgn|Cap\w+|NoNewPrivs|Seccomp\w*|Cpus_allowed|Mems_allowed):.*", re.MULTILINE
)


def interpreter() -> str:
    """Return the path of the Python that children run.

    Raises:
        UsageError: there is none.
    """
    main = sys.modules.get("__main__")
    if getattr(sys, "frozen", False) or "__compiled__" in vars(main or object):
        raise UsageError(
            f"this program is frozen into one executable ({sys.executable}), so there is no Python that the processes "
            "of nodes and actors could run; started, it would start itself. Run it with a Python interpreter"
        )
    if not sys.executable or not os.access(sys.executable, os.X_OK):
        raise UsageError(
            f"sys.executable is {sys.executable!r}, and no Python that the processes of nodes and actors could run "
            "(an embedded interpreter?): set it to the path of a Python with the same packages"
        )
    if not _PYTHONS.fullmatch(os.path.basename(sys.executable)) and not _is_python(sys.executable):
        raise UsageError(
            f"sys.executable is {sys.executable!r}, which is no Python {sys.version_info[0]}.{sys.version_info[1]} "
            "(an embedded interpreter?): set it to the path of a Python with the same packages"
        )
    return sys.executable


@lru_cache(maxsize=8)
def _is_python(executable: str) -> bool:
    """Ask a program of another name whether it is this Python, in a way that does little harm if it is not."""
    question = "import sys; print('actorraft', *sys.version_info[:2])"
    try:
        said = subprocess.run(
            [executable, "-I", "-S", "-c", question],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_S, check=False,
            encoding="utf-8", errors="replace",
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return False
    return said.split() == ["actorraft", *map(str, sys.version_info[:2])]


def interpreter_flags() -> list[str]:
    """Return the options for a child's interpreter: this one's, but those that have it ignore its environment.

    PYTHONHASHSEED is how replicas iterate sets alike, and -E and -I would hide it. What these options keep away is
    kept away by `environment`; -P is always given.
    """
    flags: list[str] = _args_from_interpreter_flags()
    kept = [flag for flag in flags if flag not in ("-P", "-E", "-I", "-R")]
    if sys.flags.no_user_site and "-s" not in kept:
        kept.append("-s")
    return [*kept, "-P"]


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return a child's environment: this process's, without what its interpreter was told to ignore, and `more`."""
    ignored = sys.flags.ignore_environment
    return {
        **{name: value for name, value in os.environ.items() if not (ignored and name.startswith("PYTHON"))},
        **more,
    }


def inherited() -> tuple[object, ...] | None:
    """Return what a fresh interpreter would have from this process, its working directory aside; to be compared.

    None: the system does not tell all of it.
    """
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return None
    own = Path("/proc/thread-self")
    try:
        return (
            interpreter(),
            interpreter_flags(),
            environment({}),
            _STATUS.findall((own / "status").read_bytes()),
            [(own / name).read_bytes() for name in ("limits", "cgroup", "oom_score_adj")],
            [os.readlink(own / "ns" / name) for name in os.listdir(own / "ns")],
            (root := os.stat("/")).st_dev,
            root.st_ino,
            _security_label(own),
            os.getsid(0),
            os.getpriority(os.PRIO_PROCESS, 0),
            os.sched_getscheduler(0),
        )
    except OSError:
        return None


def _security_label(own: Path) -> bytes:
    try:
        return (own / "attr" / "current").read_bytes()
    except OSError:  # no module of the kernel's gives any
        return b""


def check_descriptors(processes: int) -> None:
    """See whether there are enough file descriptors left to start so many processes; sockets may crash without.

    Raises:
        StartError: there are not.
    """
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return
    try:
        used = len(os.listdir("/proc/self/fd"))
    except FileNotFoundError:
        return
    except OSError as error:
        raise _too_few(limit, hard) from error
    if used + processes * DESCRIPTORS_OF_PROCESS + DESCRIPTORS_AT_START > limit:
        raise _too_few(limit, hard)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn an error for too few file descriptors into a StartError that says what to do."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
            raise _too_few(*resource.getrlimit(resource.RLIMIT_NOFILE)) from error
        raise


def _too_few(limit: int, hard: int) -> StartError:
    return StartError(
        f"too few file descriptors are left: this process may have {limit} open at a time. Close some, or raise the "
        f"limit: ulimit -n {max(4096, min(hard, 65536)) if hard != resource.RLIM_INFINITY else 65536}"
    )

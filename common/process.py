"""What a Galvanic process tells the kernel about itself: that it must not outlive the process that started it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable

EXIT_FATAL = 78
"""EX_CONFIG of sysexits.h: the exit code for what trying again cannot repair."""

_PR_SET_PDEATHSIG = 1

_ALLOCATOR = (
    (-8, 2),  # M_ARENA_MAX: as many threads as compute at a time; each arena keeps memory of its own
    (-3, 1 << 20),  # M_MMAP_THRESHOLD
    (-1, 2 << 20),  # M_TRIM_THRESHOLD
)
"""Numbers of glibc's mallopt(3) with their values, in bytes but for the first."""

# Loaded at import time: between fork and exec nothing may take a lock, and dlopen does.
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(signum: int = signal.SIGTERM, parent: int | None = None) -> None:
    """Asks the kernel to send `signum` to this process when its parent dies, however it dies.

    `parent` is the process id the parent had; if it is already gone, `signum` is raised at once. The kernel watches the
    *thread* that forked, so a parent must fork from a thread that lives as long as it does. Changing the user id clears
    the request: call this after privileges were dropped. Does nothing on systems other than Linux.
    """
    if _libc is None:
        return
    _libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signum)


def dying_with_this_process(signum: int) -> Callable[[], None]:
    """A `preexec_fn` for `subprocess.Popen` that ties the child's life to this process (see `die_with_parent`).

    `subprocess` runs it after it changed the user, as the kernel requires.
    """
    parent = os.getpid()
    return lambda: die_with_parent(signum, parent)


def allow_open_files() -> None:
    """Raises this process's soft limit of open files to its hard limit.

    The soft limit is often 1024 only for the sake of programs that use select(2); the hard one is what the
    administrator means. Logs and clients need far more.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems call it unlimited and then refuse it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def keep_freed_memory() -> None:
    """Has the C library keep up to 2 MiB that was freed, instead of giving it back and asking for it again at once.

    Work on batches of some 100 kB otherwise takes a page fault for each 4 KiB of every batch, a third of the time of a
    large snapshot. Call it before any thread is started. Does nothing where the C library is another one.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        for parameter, value in _ALLOCATOR:
            mallopt(parameter, value)


def collect_rarely() -> None:
    """Has Python look for garbage in cycles seldom, and never among what there is already: programs, above all.

    A look at everything stops a process for tens of milliseconds, and little of what these processes drop is in cycles.
    Call it when all is imported.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)

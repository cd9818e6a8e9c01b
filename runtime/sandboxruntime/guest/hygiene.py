"""What a fork must not share with its siblings, and what it must not keep of its zygote.

tests/conformance/test_fork_hygiene.py draws from each random source, and compares a snapshot of
the rest with a fresh interpreter's. Of BLAS it proves that products work, not the thread count.
"""

from __future__ import annotations

import ctypes
import itertools
import locale
import os
import signal
import sys
import threading
import time

from sandboxruntime.guest.kernel import add_user_site

__all__ = ["reset_process"]

PR_SET_DUMPABLE, PR_SET_NAME = 4, 15
THREAD_VARIABLE = "OPENBLAS_NUM_THREADS"
_prctl = ctypes.CDLL(None, use_errno=True)["prctl"]


def reset_process(argv: list[str], env: dict[str, str]) -> None:
    """Make this process what a fresh interpreter executing `argv` with `env` would be.

    Not covered, and said in docs/security.md: the hash seed and the address space layout, which
    the children of one zygote share until it is replaced.
    """
    _identity(argv)
    _environment(env)
    _signals()
    _randomness()
    _import_system()
    _thread_pools(env)


def _identity(argv: list[str]) -> None:
    # Until now nothing inside might look into this process; from now on it is the user's own.
    _prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    _prctl(PR_SET_NAME, os.path.basename(argv[0]).encode()[:15], 0, 0, 0)
    _forget("platform", "_uname_cache")  # with the host name
    threading._counter = itertools.count(1).__next__  # type: ignore[attr-defined]  # thread names
    sys.orig_argv[:] = argv
    sys.argv[:] = ["ipykernel_launcher", "-f", argv[2], *argv[4:]]


def _environment(env: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    locale.setlocale(locale.LC_CTYPE, "")


def _signals() -> None:
    """As Py_Initialize leaves them: set-up has put every one to its default."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def _randomness() -> None:
    """Generators that are seeded once. OpenSSL and os.urandom() look after themselves."""
    import random

    random.seed()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    _forget("uuid", "_last_timestamp", "_node")
    _forget("tempfile", "_name_sequence", "tempdir")
    if "multiprocessing.process" in sys.modules:
        process = sys.modules["multiprocessing.process"]
        process.current_process().authkey = os.urandom(32)


def _forget(module: str, *names: str) -> None:
    """Let a module find out again what it has cached."""
    for name in names:
        if hasattr(sys.modules.get(module), name):
            setattr(sys.modules[module], name, None)


def _import_system() -> None:
    """The user's layer has appeared below the zygote's paths; its packages may have, too."""
    home = os.environ["HOME"]
    add_user_site()
    # The image's own directories are read-only: what finders know of those stays true.
    for path in [path for path in sys.path_importer_cache if path.startswith(home)]:
        del sys.path_importer_cache[path]


def _thread_pools(env: dict[str, str]) -> None:
    """Give BLAS the number of threads that it would have read from the environment.

    The zygote loads it with one, so that there is no pool of threads that a fork would lose.
    """
    count = env.get(THREAD_VARIABLE, "")
    if "numpy" not in sys.modules or not count.isdigit():
        return
    with open("/proc/self/maps", encoding="utf-8") as stream:
        paths = {line.split(None, 5)[5].strip() for line in stream if "openblas" in line}
    for path in paths:
        library = ctypes.CDLL(path)
        for symbol in ("openblas_set_num_threads", "scipy_openblas_set_num_threads"):
            for suffix in ("", "64_", "_64"):
                function = getattr(library, symbol + suffix, None)
                if function is not None:
                    function(int(count))

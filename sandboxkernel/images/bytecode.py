"""Compile the Python files of a tree, deterministically and on several processors."""

from __future__ import annotations

import os
import selectors
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from sandboxkernel.errors import ImageError

__all__ = ["compile_tree", "partition"]

_WORKER = Path(__file__).with_name("bytecode_worker.py")
# A constant, not the number of processors: what one process compiled earlier shows in the
# reference flags that marshal writes, so the grouping is part of the result.
_GROUPS = 2
_READ_BYTES = 65536


def partition(paths: Sequence[tuple[str, int]], groups: int) -> list[list[str]]:
    """Deal (path, size) pairs into groups of like size, the same way every time."""
    loads = [0] * groups
    dealt: list[list[str]] = [[] for _ in range(groups)]
    for path, size in sorted(paths, key=lambda item: (-item[1], item[0])):
        lightest = loads.index(min(loads))
        loads[lightest] += size
        dealt[lightest].append(path)
    return dealt


def compile_tree(
    tree: Path,
    paths: Sequence[str],
    *,
    interpreter: str,
    progress: Callable[[int, int], None],
) -> None:
    """Write a .pyc beside every file of `paths` (image paths below `tree`). Raises ImageError."""
    sized = [(path, os.lstat(f"{tree}{path}").st_size) for path in paths]
    # Without -E and -I, which would ignore the hash seed: it orders frozensets in constants.
    command = [interpreter, "-s", "-S", "-P", str(_WORKER), str(tree)]
    environment = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "PATH": os.defpath}
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for group in partition(sized, _GROUPS):
            if group:
                workers.append(_start(command, environment, group))
        _follow(workers, len(paths), progress)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            if worker.stdout is not None:
                worker.stdout.close()


def _start(
    command: list[str], environment: dict[str, str], group: list[str]
) -> subprocess.Popen[bytes]:
    worker = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd="/",
        umask=0o022,
    )
    assert worker.stdin is not None
    # The worker reads all of its input before it writes, so this cannot block for ever.
    with worker.stdin as pipe:
        pipe.write("\0".join(group).encode("utf-8", "surrogateescape"))
    return worker


def _follow(
    workers: list[subprocess.Popen[bytes]], total: int, progress: Callable[[int, int], None]
) -> None:
    done = 0
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            assert worker.stdout is not None
            selector.register(worker.stdout, selectors.EVENT_READ, worker)
        while selector.get_map():
            for key, _ in selector.select():
                data = os.read(key.fd, _READ_BYTES)
                if data:
                    done += len(data)
                    progress(done, total)
                    continue
                selector.unregister(key.fileobj)
                code = key.data.wait()
                if code != 0:
                    raise ImageError(f"cannot compile bytecode: the worker ended with {code}")

"""Compile Python files to bytecode, in a process of its own. Standard library only.

Run by path with the base interpreter as `worker.py <tree>`; standard input has image paths
separated by NUL, standard output gets one byte per finished file. Sources are parsed, never run.
"""

from __future__ import annotations

import py_compile
import sys


def main() -> None:
    """Write the .pyc of every file named on standard input; skip what does not compile."""
    tree = sys.argv[1]
    paths = sys.stdin.read().split("\0")
    for path in paths:
        # unchecked-hash (PEP 552): the image is read-only, so nothing has to be compared at
        # import, and the result does not depend on times.
        try:
            py_compile.compile(
                tree + path,
                dfile=path,
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
        except (py_compile.PyCompileError, ValueError, RecursionError):
            pass  # templates and files of other Python versions are data, not modules
        sys.stdout.write(".")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

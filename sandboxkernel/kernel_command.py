"""What a kernelspec's command asks for, and whether a sandbox can be that. Pure.

With `JUPYTER_DEFAULT_PROVISIONER_NAME=sandboxkernel` every kernelspec comes here. What is not
understood is refused: a sandbox never runs something else than what the kernelspec says.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sandboxkernel.errors import RequestError
from sandboxkernel.models import IPYKERNEL

__all__ = ["OwnKernel", "PythonKernel", "parse_command"]

_SAME = {"ipykernel": IPYKERNEL}
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\Z", re.ASCII)
_PYTHON = re.compile(r"python(3(\.\d+)?)?\Z")
# ipykernel writes it into its kernelspecs, for breakpoints in the interpreter's own modules; the
# daemon has settled that (docs/architecture.md, "Decisions").
_HARMLESS = {("-X", "frozen_modules=off"), ("-Xfrozen_modules=off",)}
_HINT = (
    "A sandbox can run `python -m MODULE -f {connection_file}` of a Python environment: ipykernel, "
    "and kernels written in Python. For another kernel name a provisioner in its kernelspec: "
    '"metadata": {"kernel_provisioner": {"provisioner_name": "local-provisioner"}} runs it '
    "without a sandbox."
)


@dataclass(frozen=True, slots=True)
class OwnKernel:
    """`sandboxkernel launch -f FILE`: the image's own ipykernel. `options` precede `-f`."""

    options: tuple[str, ...]
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PythonKernel:
    """A kernel written in Python, of the environment that `python` belongs to."""

    python: str
    module: str
    arguments: tuple[str, ...]


def parse_command(argv: Sequence[str], connection_file: str) -> OwnKernel | PythonKernel:
    """Recognise a command whose templates are filled in. Raises RequestError for any other."""
    if not argv:
        raise _refusal(argv, "it is empty")
    name = posixpath.basename(argv[0])
    if name == "sandboxkernel" and argv[1:2] == ["launch"]:
        before, after = _split(argv[2:], connection_file, argv)
        return OwnKernel(before, after)
    if not _PYTHON.match(name):
        raise _refusal(argv, f"{name} is not a Python interpreter")
    rest = list(argv[1:])
    while rest and rest[0] != "-m":
        flag = next((f for f in _HARMLESS if tuple(rest[: len(f)]) == f), None)
        if flag is None:
            raise _refusal(argv, f"{rest[0]!r} precedes `-m MODULE`")
        del rest[: len(flag)]
    if len(rest) < 2 or not _MODULE.match(rest[1]):
        raise _refusal(argv, "it runs no module (`-m MODULE`)")
    module = _SAME.get(rest[1], rest[1])
    before, after = _split(rest[2:], connection_file, argv)
    if before and module != IPYKERNEL:
        # Only of ipykernel it is known that its arguments may come in any order.
        raise _refusal(argv, f"{before[0]!r} precedes the connection file")
    return PythonKernel(argv[0], module, (*before, *after))


def _split(
    words: Sequence[str], connection_file: str, argv: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What stands before and after the connection file."""
    for index, word in enumerate(words):
        if word == "-f" and words[index + 1 : index + 2] == [connection_file]:
            return tuple(words[:index]), tuple(words[index + 2 :])
        if word in (f"-f{connection_file}", f"-f={connection_file}", f"--f={connection_file}"):
            return tuple(words[:index]), tuple(words[index + 1 :])
    raise _refusal(argv, "it has no `-f {connection_file}`")


def _refusal(argv: Sequence[str], why: str) -> RequestError:
    return RequestError(
        f"the kernelspec's command cannot run in a sandbox: {why} ({' '.join(argv)})",
        hint=_HINT,
        field="argv",
    )

"""The base interpreter behind the running one, and which of its files belong into an image."""

from __future__ import annotations

import os
import posixpath
import subprocess
import sys

import msgspec

from sandboxkernel.errors import ImageError
from sandboxkernel.images.hostpaths import plan_host_path, plan_host_tree
from sandboxkernel.images.treeplan import Symlink, TreePlan

__all__ = ["Interpreter", "find_interpreter", "plan_interpreter"]

_INTERVIEW_TIMEOUT_S = 20
# Asked of the base interpreter, because a virtual environment answers with its own directories
# and distributions change the scheme ("posix_local" on Debian).
_INTERVIEW = """
import json, sys, sysconfig
try:
    import ssl
    cafile = ssl.get_default_verify_paths().openssl_cafile
except ImportError:
    cafile = ""
paths = sysconfig.get_paths()
keys = ("stdlib", "platstdlib", "purelib", "platlib", "scripts", "data")
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "full_version": sys.version,
    "prefix": sys.prefix,
    "cafile": cafile,
    "wheel_dir": sysconfig.get_config_var("WHEEL_PKG_DIR") or "",
    **{key: paths[key] for key in keys},
}))
"""
_SKIP_DIRECTORIES = frozenset({
    "__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test",
    "ensurepip", "turtledemo",
})  # fmt: skip
# _tkinter alone would bring 13 X11 libraries; the rest are CPython's own tests and build products.
_SKIP_SUFFIXES = (
    ".pyc", ".a", ".o", ".exe", "EXTERNALLY-MANAGED",
)  # fmt: skip
_SKIP_EXTENSIONS = ("_tkinter", "_test", "_ctypes_test", "_xxtestfuzz", "xxlimited", "_xxsubinterp")


class Interpreter(msgspec.Struct, frozen=True, kw_only=True):
    """A base interpreter: its real path and the directories that it uses. All absolute."""

    executable: str
    version: str
    full_version: str
    prefix: str
    cafile: str
    wheel_dir: str
    stdlib: str
    platstdlib: str
    purelib: str
    platlib: str
    scripts: str
    data: str


def base_executable() -> str:
    """The real path of the interpreter below the running one, virtual environments resolved."""
    name = getattr(sys, "_base_executable", None) or sys.executable
    return os.path.realpath(name)


def find_interpreter(executable: str | None = None) -> Interpreter:
    """Ask the base interpreter (or `executable`) about itself. Raises ImageError."""
    program = executable or base_executable()
    environment = {"PATH": os.defpath}
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    try:
        answer = subprocess.run(
            [program, "-I", "-S", "-c", _INTERVIEW],
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_INTERVIEW_TIMEOUT_S,
            env=environment,
            cwd="/",
        ).stdout
        found = msgspec.json.decode(answer, type=dict[str, str])
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError) as exc:
        raise ImageError(f"cannot ask the interpreter {program}: {exc}") from exc
    for key in ("stdlib", "platstdlib", "purelib", "platlib", "scripts", "data"):
        found[key] = os.path.realpath(found[key])
    return msgspec.convert({**found, "executable": program}, Interpreter)


def plan_interpreter(plan: TreePlan, python: Interpreter) -> None:
    """Plan the program, its names, and the standard library without tests and build files."""
    plan_host_path(plan, python.executable)
    for directory in dict.fromkeys((python.stdlib, python.platstdlib)):
        plan_host_tree(
            plan,
            directory,
            directory,
            skip_directories=_SKIP_DIRECTORIES,
            skip_suffixes=_SKIP_SUFFIXES,
            skip_prefixes=_SKIP_EXTENSIONS,
        )
    name = posixpath.basename(python.executable)
    own_dir = posixpath.dirname(python.executable)
    for alias in ("python", "python3", f"python{python.version}"):
        if f"{own_dir}/{alias}" != python.executable:
            plan.add(f"{own_dir}/{alias}", Symlink(name))
        if own_dir != "/usr/bin":
            plan.add(f"/usr/bin/{alias}", Symlink(python.executable))

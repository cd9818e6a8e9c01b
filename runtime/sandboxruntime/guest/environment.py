"""Makes the interpreter of a fork the one of a Python environment that its image was made from.

The image holds copies of that environment's ipykernel and what it needs, which the zygote has
imported; the environment itself is mounted at its own path. What is imported from here on comes
from there. See PEP 405 and site.py for what an interpreter does at its start.
"""

from __future__ import annotations

import os
import site
import sys
from dataclasses import dataclass

__all__ = ["Environment", "enter", "environment_of", "reason_for_exec"]

_CONFIG_FOLDERS = ("etc/ipython", "etc/jupyter")


@dataclass(frozen=True, slots=True)
class Environment:
    """An interpreter's path and where its packages are; `prefix` only of a virtual one."""

    python: str
    prefix: str | None
    folders: tuple[str, ...]


def environment_of(python: str) -> Environment:
    """The environment of an interpreter of this very version."""
    prefix = os.path.dirname(os.path.dirname(python))
    if not os.path.exists(f"{prefix}/pyvenv.cfg"):
        return Environment(python, None, tuple(site.getsitepackages()))
    version = "{}.{}".format(*sys.version_info)
    return Environment(python, prefix, (f"{prefix}/lib/python{version}/site-packages",))


def reason_for_exec(environment: Environment) -> str | None:
    """What acts on an interpreter's start and would be missed; None if nothing does."""
    prefix = environment.prefix or sys.prefix
    for folder in _CONFIG_FOLDERS:
        if os.path.isdir(f"{prefix}/{folder}") and any(
            name.startswith(("ipython_", "jupyter_config"))
            for name in os.listdir(f"{prefix}/{folder}")
        ):
            return f"configuration in {prefix}/{folder}"
    for packages in environment.folders:
        for name in ("sitecustomize", "usercustomize"):
            if os.path.exists(f"{packages}/{name}.py"):
                return f"{name} in {packages}"
    return None


def enter(environment: Environment) -> None:
    """Become this environment's interpreter, after the environment's variables have been set."""
    sys.executable = environment.python
    images = site.getsitepackages()
    if environment.prefix is not None:
        _set_prefix(environment.prefix)
        personal = site.getusersitepackages()
        sys.path[:] = [path for path in sys.path if path not in (*images, personal)]
        site.ENABLE_USER_SITE = False
    for path in list(sys.path_importer_cache):
        if path.startswith((*images, *environment.folders)):
            del sys.path_importer_cache[path]  # other entries have been mounted over these
    for folder in environment.folders:
        site.addsitedir(folder)  # with its .pth files, which images leave out


def _set_prefix(prefix: str) -> None:
    sys.prefix = sys.exec_prefix = prefix
    site.PREFIXES[:] = [prefix]
    sysconfig = sys.modules.get("sysconfig")
    for name, value in (("_PREFIX", prefix), ("_EXEC_PREFIX", prefix), ("_CONFIG_VARS", None)):
        if hasattr(sysconfig, name):
            setattr(sysconfig, name, value)
    for module, name, tail in (
        ("jupyter_core.paths", "ENV_JUPYTER_PATH", "share/jupyter"),
        ("jupyter_core.paths", "ENV_CONFIG_PATH", "etc/jupyter"),
    ):
        folders = getattr(sys.modules.get(module), name, None)
        if folders:
            folders[:] = [f"{prefix}/{tail}"]

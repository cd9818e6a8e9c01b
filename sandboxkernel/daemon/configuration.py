"""The daemon's configuration file: root's alone, and read whole or not at all. traitlets.

traitlets' own loader logs a file that it cannot read and goes on without it, and only warns of
names that it does not know. This file is a policy: without it everybody may do everything.
"""

from __future__ import annotations

import os
import stat
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from traitlets.config.configurable import Configurable
from traitlets.config.loader import Config, JSONFileConfigLoader, PyFileConfigLoader

from sandboxkernel.errors import SandboxError

__all__ = ["load_configuration"]

LOADERS = {".py": PyFileConfigLoader, ".json": JSONFileConfigLoader}


def load_configuration(path: Path, owner: type[Configurable]) -> Config:
    """The settings of one file. Raises SandboxError with the file, and the line if any.

    Only settings of `owner` and its bases are known.
    """
    _require_root_owned(path)
    loader = LOADERS.get(path.suffix)
    if loader is None:
        raise SandboxError(f"configuration file {path} is neither .py nor .json", hint="Rename it.")
    try:
        config: Config = loader(path.name, path=str(path.parent)).load_config()
    except SyntaxError as exc:
        raise _refusal(path, exc.lineno, f"{type(exc).__name__}: {exc.msg}") from exc
    except (Exception, SystemExit) as exc:
        line = next(
            (f.lineno for f in reversed(traceback.extract_tb(exc.__traceback__))
             if f.filename == str(path)),
            getattr(exc, "lineno", None),  # of JSON
        )  # fmt: skip
        raise _refusal(path, line, f"{type(exc).__name__}: {exc}") from exc
    _require_known(path, config, owner)
    return config


def _refusal(path: Path, line: int | None, why: str) -> SandboxError:
    where = f"{path}, line {line}" if line is not None else str(path)
    return SandboxError(
        f"configuration file {where}: {why}", hint="Mend it; no setting of it was used."
    )


def _require_root_owned(path: Path) -> None:
    """Nobody but root may write the file, or put another one in its place."""
    try:
        info, folder = path.stat(), path.parent.stat()
    except OSError as exc:
        raise SandboxError(
            f"configuration file {path}: {os.strerror(exc.errno or 0)}",
            hint="Name a file that exists, or none.",
        ) from exc
    if not stat.S_ISREG(info.st_mode):
        raise SandboxError(f"configuration file {path} is not a regular file")
    if info.st_uid != 0 or info.st_mode & 0o022:
        raise SandboxError(
            f"configuration file {path} is not root's alone to write",
            hint=f"Run: chown root:root {path} && chmod 644 {path}",
        )
    if folder.st_uid != 0 or (folder.st_mode & 0o022 and not folder.st_mode & stat.S_ISVTX):
        raise SandboxError(
            f"configuration file {path} can be replaced: its folder is not root's alone to write",
            hint=f"Run: chown root:root {path.parent} && chmod 755 {path.parent}",
        )


def _require_known(path: Path, config: Mapping[str, Any], owner: type[Configurable]) -> None:
    sections = {c.__name__: c for c in owner.mro() if issubclass(c, Configurable)}
    for name, settings in config.items():
        if name not in sections or not isinstance(settings, Mapping):
            raise _unknown(path, f"c.{name}", [f"c.{owner.__name__}.NAME"])
        known = sections[name].class_trait_names(config=True)
        for setting in settings:
            if setting not in known:
                raise _unknown(path, f"c.{name}.{setting}", known)


def _unknown(path: Path, name: str, known: Iterable[str]) -> SandboxError:
    return SandboxError(
        f"configuration file {path}: {name} is not a setting",
        hint=f"Known: {', '.join(sorted(known))}.",
    )

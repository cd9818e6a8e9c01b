"""What of a caller's home a sandbox must not show. Reads the home's entries."""

from __future__ import annotations

import os

from sandboxkernel.errors import WorkFolderError
from sandboxkernel.limits import Profile, Subject

__all__ = ["hidden_entries"]


def hidden_entries(caller: Subject, profile: Profile, folder: str | None) -> tuple[str, ...]:
    """Hidden entries of the caller's home to cover, relative to the work folder.

    Whoever can write ~/.bashrc or ~/.jupyter runs code outside the sandbox, and ~/.ssh and
    ~/.aws hold keys. Symbolic links cannot be covered; where they lead is not mounted.
    """
    home = os.path.normpath(caller.home or "/nonexistent")
    if folder is None or not (home == folder or home.startswith(folder.rstrip("/") + "/")):
        return ()
    if profile.home == "refuse":
        raise WorkFolderError(
            f"the work folder {folder} is or contains your home directory",
            hint="Open the notebook from a folder below your home.",
            field="work_folder",
        )
    if profile.home == "allow" or not os.path.isdir(home):
        return ()
    relative = os.path.relpath(home, folder)
    prefix = "" if relative == "." else f"{relative}/"
    with os.scandir(home) as entries:
        names = [e.name for e in entries if e.name.startswith(".") and not e.is_symlink()]
    return tuple(sorted(prefix + name for name in names))

"""Bring host paths into a plan: real directories, the symbolic links on the way, the file.

Reads the host's file system, writes nothing.
"""

from __future__ import annotations

import os
import posixpath
import stat

from sandboxkernel.errors import ImageError
from sandboxkernel.images.treeplan import CopiedFile, Symlink, TreePlan

__all__ = ["is_public_file", "plan_host_path", "plan_host_tree"]

# path_resolution(7): the limit that Linux itself has.
_SYMLINKS_MAX = 40
# What belongs to the machine and its people, never to an image. /etc/alternatives is in here too:
# a link that leads through it is planned as a link to where it ends.
_PRIVATE_TOPS = ("etc", "var", "run", "dev", "proc", "sys", "tmp")


def is_public_file(path: str) -> bool:
    """Whether a path is a regular file that everybody may read, links not followed."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and bool(status.st_mode & stat.S_IROTH)


def plan_host_path(plan: TreePlan, path: str) -> str:
    """Plan the host's file `path` at the same path and return its real path.

    Symbolic links on the way are planned as they are, unless they pass through what is never
    copied. Raises ImageError when there is no world-readable regular file.
    """
    real, links = _trace(path)
    if not is_public_file(real) or _is_private(real):
        raise ImageError(f"cannot take {path} into an image: {real} is not a public program file")
    for link, target in links.items():
        if _is_private(link):
            continue
        private = _is_private(posixpath.normpath(posixpath.join(posixpath.dirname(link), target)))
        plan.add(link, Symlink(os.path.realpath(link) if private else target))
    executable = bool(os.lstat(real).st_mode & stat.S_IXOTH)
    plan.add(real, CopiedFile(real, executable=executable))
    return real


def plan_host_tree(
    plan: TreePlan,
    source: str,
    destination: str,
    *,
    skip_directories: frozenset[str] = frozenset(),
    skip_suffixes: tuple[str, ...] = (),
    skip_prefixes: tuple[str, ...] = (),
) -> None:
    """Plan the public files below `source`; `skip_directories` are names at any depth.

    `skip_prefixes` are beginnings of the names of extension modules.

    Links that stay inside `source` are kept, links to anything else are left out.
    """
    for directory, names, files in os.walk(source):
        names[:] = sorted(set(names) - skip_directories)
        inside = posixpath.normpath(
            posixpath.join(destination, posixpath.relpath(directory, source))
        )
        for name in (*files, *names):
            path = f"{directory}/{name}"
            if name.endswith(skip_suffixes):
                continue
            if ".so" in name and name.startswith(skip_prefixes):
                continue
            if os.path.islink(path):
                target = os.readlink(path)
                end = posixpath.normpath(posixpath.join(directory, target))
                if not target.startswith("/") and end.startswith(f"{source}/"):
                    plan.add(f"{inside}/{name}", Symlink(target))
            elif is_public_file(path):
                executable = bool(os.lstat(path).st_mode & stat.S_IXOTH)
                plan.add(f"{inside}/{name}", CopiedFile(path, executable=executable))


def _is_private(path: str) -> bool:
    return path.split("/", 2)[1] in _PRIVATE_TOPS


def _trace(path: str) -> tuple[str, dict[str, str]]:
    """The real path, and every symbolic link met with its target."""
    links: dict[str, str] = {}
    pending = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    done = "/"
    while pending:
        part = pending.pop()
        if part == "..":
            done = posixpath.dirname(done)
            continue
        here = posixpath.join(done, part)
        if not os.path.islink(here):
            done = here
            continue
        if len(links) >= _SYMLINKS_MAX:
            raise ImageError(f"cannot take {path} into an image: too many symbolic links")
        target = links[here] = os.readlink(here)
        if target.startswith("/"):
            done = "/"
        pending.extend(p for p in reversed(target.split("/")) if p not in ("", "."))
    return done, links

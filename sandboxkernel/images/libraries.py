"""Find the shared libraries that planned objects need, as ld.so(8) would. Reads the host only."""

from __future__ import annotations

import glob
import os
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sandboxkernel.errors import ImageError
from sandboxkernel.images.elf import ElfInfo, read_elf
from sandboxkernel.images.hostpaths import plan_host_path
from sandboxkernel.images.treeplan import Symlink, TreePlan

__all__ = ["BASE_LIBRARIES", "LibraryFinder", "plan_libraries"]

# What every manylinux wheel may take for granted (PEP 600 and its policy file), less X11 and
# OpenGL; and the name service modules, which glibc loads by name.
BASE_LIBRARIES = (
    "libc.so.6", "libm.so.6", "libpthread.so.0", "librt.so.1", "libdl.so.2", "libutil.so.1",
    "libresolv.so.2", "libnsl.so.1", "libanl.so.1", "libcrypt.so.1", "libstdc++.so.6",
    "libgcc_s.so.1", "libatomic.so.1", "libz.so.1", "libexpat.so.1",
    "libnss_files.so.2", "libnss_dns.so.2",
)  # fmt: skip
_OBJECTS_MAX = 20_000
_SITE_PARTS = ("/site-packages/", "/dist-packages/")
_LD_SO_CONF = "/etc/ld.so.conf"
_CONF_FILES_MAX = 100


@dataclass(frozen=True, slots=True)
class LibraryFinder:
    """Where libraries are: `default_dirs` the loader searches by itself, `extra_dirs` by cache.

    An image has no ld.so.cache, so a library of `extra_dirs` needs a link in `link_dir`.
    """

    bits: int
    machine: int
    default_dirs: tuple[str, ...]
    extra_dirs: tuple[str, ...]
    link_dir: str

    @classmethod
    def for_executable(cls, executable: str) -> LibraryFinder:
        """The finder that fits a dynamically linked program. Raises ImageError for another."""
        info = read_elf(executable)
        if info is None or info.interpreter is None:
            raise ImageError(f"cannot find libraries of {executable}: not a dynamic ELF program")
        loader_dir = posixpath.dirname(os.path.realpath(info.interpreter))
        triplet = posixpath.basename(loader_dir)
        lib = "lib64" if info.bits == 64 else "lib"
        candidates = (loader_dir, f"/lib/{triplet}", f"/usr/lib/{triplet}", f"/{lib}",
                      f"/usr/{lib}", "/lib", "/usr/lib")  # fmt: skip
        default_dirs = tuple(dict.fromkeys(d for d in candidates if os.path.isdir(d)))
        extra = tuple(d for d in _cache_dirs(_LD_SO_CONF) if d not in default_dirs)
        return cls(info.bits, info.machine, default_dirs, extra, loader_dir)

    def find(self, name: str, directories: Iterable[str]) -> str | None:
        """The first object of this name and of our machine type."""
        for directory in directories:
            path = f"{directory}/{name}"
            if os.path.isfile(path):
                info = read_elf(path)
                if info is not None and (info.bits, info.machine) == (self.bits, self.machine):
                    return path
        return None


def plan_libraries(
    plan: TreePlan,
    finder: LibraryFinder,
    *,
    names: Iterable[str] = (),
    below: TreePlan | None = None,
) -> tuple[str, ...]:
    """Plan the closure of what the planned objects (and `names`) need; return what is missing.

    `below` is the plan of the layers underneath: what it has is not planned again. A missing
    library is no error: wheels ship optional plug-ins for hardware that is not there.
    """
    pending = [
        (entry.source, path) for path, entry in plan.files() if _may_be_elf(path, entry.executable)
    ]
    missing = {
        name
        for name in names
        if not _add(plan, finder, name, paths=(), below=below, pending=pending)
    }
    seen: set[str] = set()
    while pending:
        source, destination = pending.pop()
        if source in seen:
            continue
        seen.add(source)
        if len(seen) > _OBJECTS_MAX:
            raise ImageError(f"cannot plan libraries: more than {_OBJECTS_MAX} objects")
        info = read_elf(source)
        if info is None or (info.bits, info.machine) != (finder.bits, finder.machine):
            continue
        loader = info.interpreter
        if loader is not None and not _has(plan, below, _without_links_above(loader)):
            plan_host_path(plan, loader)  # the path in PT_INTERP is a link on most hosts
        origin = posixpath.dirname(source)
        paths = _search_paths(info, origin)
        for name in info.needed:
            if not _add(plan, finder, name, paths=paths, below=below, pending=pending):
                missing.add(f"{name} (for {posixpath.basename(destination)})")
    return tuple(sorted(missing))


def _add(
    plan: TreePlan,
    finder: LibraryFinder,
    name: str,
    *,
    paths: tuple[str, ...],
    below: TreePlan | None,
    pending: list[tuple[str, str]],
) -> bool:
    """Plan one library; True when it is in the image or comes with the object that needs it."""
    if "/" in name:
        return False
    own = finder.find(name, paths)
    if own is not None and posixpath.dirname(own) not in finder.default_dirs:
        # A wheel's own library was planned with the wheel; one of a wheel that was not planned
        # has no place in the image. What else is found here is of the interpreter's prefix.
        if _has_source(plan, below, os.path.realpath(own)):
            return True
        if any(part in own for part in _SITE_PARTS):
            return False
        pending.append((plan_host_path(plan, own), own))
        return True
    found = finder.find(name, finder.default_dirs)
    if found is None:
        found = finder.find(name, finder.extra_dirs)
        if found is None:
            return False
        if not _has(plan, below, f"{finder.link_dir}/{name}"):
            plan.add(f"{finder.link_dir}/{name}", Symlink(os.path.realpath(found)))
    if not _has(plan, below, _without_links_above(found)):
        pending.append((plan_host_path(plan, found), found))
    return True


def _without_links_above(path: str) -> str:
    return f"{os.path.realpath(posixpath.dirname(path))}/{posixpath.basename(path)}"


def _may_be_elf(path: str, executable: bool) -> bool:
    return executable or ".so" in posixpath.basename(path)


def _has(plan: TreePlan, below: TreePlan | None, path: str) -> bool:
    return path in plan or (below is not None and path in below)


def _has_source(plan: TreePlan, below: TreePlan | None, source: str) -> bool:
    return source in plan.sources or (below is not None and source in below.sources)


def _search_paths(info: ElfInfo, origin: str) -> tuple[str, ...]:
    # ld.so(8): DT_RPATH counts only when there is no DT_RUNPATH.
    paths = info.runpath or info.rpath
    expanded = (path.replace("$ORIGIN", origin).replace("${ORIGIN}", origin) for path in paths)
    return tuple(posixpath.normpath(path) for path in expanded if path.startswith("/"))


def _cache_dirs(conf: str) -> list[str]:
    """Directories that ldconfig(8) reads, in the order of the configuration files."""
    found: list[str] = []
    pending = [conf]
    for _ in range(_CONF_FILES_MAX):
        if not pending:
            break
        try:
            lines = Path(pending.pop(0)).read_text("utf-8", "surrogateescape").splitlines()
        except OSError:
            continue  # a missing include is normal
        for line in lines:
            words = line.split("#", 1)[0].split()
            if len(words) == 2 and words[0] == "include":
                pending.extend(sorted(glob.glob(words[1])))
            elif len(words) == 1 and words[0].startswith("/"):
                found.append(words[0])
    return list(dict.fromkeys(path for path in found if os.path.isdir(path)))

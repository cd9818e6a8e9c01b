"""What is on the host and belongs to nobody, and what is damaged: found, and mended. asyncio.

What is of a sandbox, zygote or spare has its id for a name, and a lease is written before anything
is acquired: so objects are looked at first, and the journal after them. Only what is below the
daemon's own cgroup and directories is looked at.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from msgspec import structs

from sandboxkernel.daemon.housekeeping import Housekeeping
from sandboxkernel.daemon.lease import LeaseJournal
from sandboxkernel.daemon.service import Kernels
from sandboxkernel.errors import SandboxError
from sandboxkernel.images.hostimage import HOST_REF
from sandboxkernel.images.removal import remove_tree
from sandboxkernel.models import CheckFinding, CheckReport
from sandboxkernel.paths import Paths
from sandboxruntime.cgroup import Cgroup, Layout, remove_from_others
from sandboxruntime.errors import ContainerError

__all__ = ["Checkup", "stray_cgroups"]

_ID = re.compile(r"[0-9a-f]{12}\Z")


class Checkup:
    """Compares the host with the journal."""

    def __init__(
        self, kernels: Kernels, journal: LeaseJournal, housekeeping: Housekeeping, paths: Paths
    ) -> None:
        self._kernels = kernels
        self._journal = journal
        self._housekeeping = housekeeping
        self._paths = paths

    async def run(self, *, repair: bool) -> CheckReport:
        """Look at everything; with `repair`, give back and rebuild what can be."""
        leftovers, checked = await asyncio.to_thread(self._leftovers)
        findings = []
        for finding in leftovers:
            if repair:
                findings.append(await asyncio.to_thread(self._give_back, finding))
            else:
                findings.append(finding)
        store, layers = self._kernels.images.store, dict[str, str]()
        images = await asyncio.to_thread(store.list)
        for image in images:
            problems = await asyncio.to_thread(store.verify, image.ref, layers)
            found = [CheckFinding(kind="image", object=image.ref, problem=p) for p in problems]
            if found and repair:
                found = await self._rebuild(image.ref, found)
                layers.clear()  # others that share its layers may be whole again
            findings += found
        findings += await self._pending(repair=repair)
        return CheckReport(findings=findings, checked={**checked, "images": len(images)})

    async def _pending(self, *, repair: bool) -> list[CheckFinding]:
        """Removals that have failed: they are tried again anyway, and at once to repair."""
        removals = self._kernels.removals
        known = removals.all()
        if repair:
            await removals.run_all()
        now = removals.all()
        return [
            CheckFinding(
                kind="removal",
                object=name,
                problem=f"cannot be given back: {state.reason}",
                hint=f"tried {state.attempts} times since {state.since:%Y-%m-%d %H:%M:%S %Z}, "
                f"next at {state.next_at:%H:%M:%S}"
                if name in now
                else "",
                repaired=name not in now,
            )
            for name, state in {**known, **now}.items()
        ]

    def _leftovers(self) -> tuple[list[CheckFinding], dict[str, int]]:
        cgroups = list(stray_cgroups(self._kernels.runtime.layout, self._parent))
        sockets = _entries(self._paths.kernels_dir)
        scratch = _entries(self._paths.scratch_dir)
        unreadable = self._journal.unreadable()
        known = self._kernels.leases() - set(unreadable)
        findings = [
            CheckFinding(kind="journal", object=name, problem=f"cannot be read: {reason}")
            for name, reason in unreadable.items()
        ]
        findings += [
            CheckFinding(kind="cgroup", object=path, problem="belongs to no sandbox")
            for path in cgroups
            if path.rpartition("/")[2] not in known
        ]
        for kind, names in (("sockets", sockets), ("scratch", scratch)):
            findings += [
                CheckFinding(kind=kind, object=name, problem="belongs to no sandbox")  # type: ignore[arg-type]
                for name in names
                if name not in known
            ]
        counts = {"cgroups": len(cgroups), "sockets": len(sockets), "scratch": len(scratch),
                  "journal": len(known) + len(unreadable)}  # fmt: skip
        return findings, counts

    @property
    def _parent(self) -> str:
        return self._kernels.policy.cgroup_parent

    def _give_back(self, finding: CheckFinding) -> CheckFinding:
        try:
            match finding.kind:
                case "cgroup":
                    cgroup = Cgroup(self._kernels.runtime.layout, finding.object)
                    cgroup.kill()
                    cgroup.remove()
                    remove_from_others(cgroup.layout, cgroup.path)
                case "sockets":
                    shutil.rmtree(self._paths.kernels_dir / finding.object)
                case "scratch":
                    remove_tree(self._paths.scratch_dir / finding.object)
                case _:
                    self._journal.forget(finding.object)
        except (OSError, ContainerError) as exc:
            return structs.replace(finding, hint=f"not repaired: {exc}")
        return structs.replace(finding, repaired=True)

    async def _rebuild(self, ref: str, found: list[CheckFinding]) -> list[CheckFinding]:
        """The host image is made again; nothing is taken from under a sandbox that uses it."""
        image = self._kernels.images.store.resolve(ref)
        in_use = self._kernels.image_in_use(str(image.digest))
        hint = ""
        if ref != HOST_REF:
            hint = "not repaired: remove it and get it again"
        elif in_use:
            hint = f"not repaired: {in_use} sandboxes use it; end them first"
        if hint:
            return [structs.replace(finding, hint=hint) for finding in found]
        try:
            await self._housekeeping.remove_image(image)
            await self._kernels.images.ensure(HOST_REF)
        except SandboxError as exc:
            return [structs.replace(finding, hint=f"not repaired: {exc}") for finding in found]
        return [structs.replace(finding, repaired=True) for finding in found]


def _entries(directory: Path) -> list[str]:
    return sorted(name for name in os.listdir(directory) if _ID.match(name))


def stray_cgroups(layout: Layout, parent: str) -> Iterator[str]:
    """Paths of every cgroup below `parent` that has an id for a name, in any hierarchy."""
    seen = set()
    for mount_point in layout.hierarchies().values():
        top = f"{mount_point}/{parent}"
        for folder, names, _ in os.walk(top):
            for name in names:
                path = os.path.relpath(f"{folder}/{name}", mount_point)
                if _ID.match(name) and path not in seen:
                    seen.add(path)
                    yield path

"""An image of ours with programs of the host's packages in a layer of their own, and results."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sandboxkernel.images.hostimage import ensure_host_image
from sandboxkernel.images.hostpaths import plan_host_path
from sandboxkernel.images.hostprograms import PROGRAM_DIRS
from sandboxkernel.images.layers import TarResult, write_layer_tar
from sandboxkernel.images.libraries import LibraryFinder, plan_libraries
from sandboxkernel.images.manifest import RootFs
from sandboxkernel.images.store import ImageStore, StoredImage
from sandboxkernel.images.treebuild import build_tree, normalise_times
from sandboxkernel.images.treeplan import GeneratedFile, TreePlan
from tests.support import SHARED_DATA

__all__ = ["SHADOW", "Result", "image_with", "package", "say", "with_image"]

SHADOW = "/etc/shadow"  # made up: something for captest to fail at


@dataclass(slots=True)
class Result:
    """What one tool was used for, what came out, and what must not have come out.

    `rows` are the lines of its table, `notes` what is said below it; `problems` make the run fail.
    """

    tool: str
    version: str
    how: str
    head: tuple[str, ...]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


def say(text: str) -> None:
    """Progress."""
    os.write(2, f"{text}\n".encode())


@contextlib.contextmanager
def image_with(
    *programs: str, more: Callable[[TreePlan], None] | None = None
) -> Iterator[StoredImage]:
    """The host image with one more layer, for the length of a block.

    In it are programs and their libraries, at their own paths, what `more` plans, and a file
    of passwords that only root may read. Raises FileNotFoundError for a program that is not there.
    """
    plan = TreePlan()
    for name in programs:
        path = shutil.which(name, path=PROGRAM_DIRS)
        if path is None:
            raise FileNotFoundError(f"no program {name} in {PROGRAM_DIRS}: make third-party")
        plan_host_path(plan, path)
    if more is not None:
        more(plan)
    plan.add(SHADOW, GeneratedFile(b"root:!:1:0:99999:7:::\n"))
    plan_libraries(plan, LibraryFinder.for_executable("/bin/sh"))
    store = ImageStore(SHARED_DATA / "images")
    host = ensure_host_image(store, progress=lambda _: None)
    ref = f"third-party-{os.getpid()}"
    image = _publish(store, host, ref, plan)
    try:
        yield image
    finally:
        store.remove(ref)


def _publish(store: ImageStore, host: StoredImage, ref: str, plan: TreePlan) -> StoredImage:
    with store.stage() as made:
        tree = made.new_path("tree")
        build_tree(plan, tree, progress=lambda _done, _total: None)
        os.chmod(f"{tree}{SHADOW}", 0o600)
        normalise_times(tree)
        layer = made.write(lambda target: write_layer_tar(tree, target))
        made.adopt_tree(layer.digest, tree)
        below = [
            TarResult(digest, os.stat(store.root / "blobs" / "sha256" / digest.hex).st_size, 0)
            for digest in host.layers
        ]
        ids = (*host.config.rootfs.diff_ids, str(layer.digest))
        config = msgspec.structs.replace(
            host.config, rootfs=RootFs(type="layers", diff_ids=ids), history=()
        )
        return store.publish(made, ref, config=config, layers=[*below, layer])


def with_image(image: StoredImage) -> str:
    """Configuration, after that of the profiles: each of them takes its sandboxes from it."""
    return f"""
for _profile in c.SandboxKernelDaemon.profiles.values():
    _profile["image"] = {image.ref!r}
"""


def package(*names: str) -> str:
    """Installed Debian packages with their versions."""
    shown = subprocess.run(
        ["dpkg-query", "-W", "-f=${Package} ${Version}, ", *names],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return shown.stdout.removesuffix(", ")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As Markdown."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)]) + "\n"

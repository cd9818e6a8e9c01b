"""From what was typed to one object: exact names, else unique prefixes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sandboxkernel.errors import Conflict, KernelNotFound, LayerNotFound

if TYPE_CHECKING:
    from sandboxkernel.models import Kernel, UserLayer

__all__ = ["find_kernel", "find_layer"]

LISTED_MAX = 10


def find_kernel(name: str, kernels: Iterable[Kernel], *, uid: int) -> Kernel:
    """The sandbox of this id, name, or unambiguous prefix of either.

    An exact name wins over a prefix, and the caller's own sandbox over another user's of the
    same name. Raises KernelNotFound, or Conflict with the candidates.
    """
    known = list(kernels)
    exact = [k for k in known if name in (k.id, k.kernel_id)]
    found = [k for k in exact if k.owner_uid == uid] or exact
    if not found and name:
        found = [k for k in known if k.id.startswith(name) or k.kernel_id.startswith(name)]
    if len(found) > 1:
        raise Conflict(
            f"{name!r} is ambiguous: {_listing([f'{k.id} ({k.kernel_id})' for k in found])}",
            hint="Type more of the id.",
        )
    if not found:
        raise KernelNotFound(f"no sandbox {name!r}", hint="`sandboxkernel ps -a` lists them all.")
    return found[0]


def find_layer(lineage: str | None, layers: Sequence[UserLayer]) -> UserLayer:
    """The layer of this lineage or prefix; without one, the only layer there is."""
    found = [layer for layer in layers if layer.lineage == lineage]
    if not found:
        found = [layer for layer in layers if layer.lineage.startswith(lineage or "")]
    if len(found) > 1:
        names = _listing([layer.lineage for layer in found])
        what = f"{lineage!r} is ambiguous" if lineage else "there are several layers"
        raise Conflict(f"{what}: {names}", hint="Name one of them.")
    if not found:
        raise LayerNotFound(
            f"no layer {lineage!r}" if lineage else "there is no layer",
            hint="`sandboxkernel user layer ls` lists them.",
        )
    return found[0]


def _listing(names: list[str]) -> str:
    more = len(names) - LISTED_MAX
    return ", ".join(sorted(names)[:LISTED_MAX]) + (f" and {more} more" if more > 0 else "")

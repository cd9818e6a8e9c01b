"""Python environments of callers: what may be mounted, and which one the image was made from.

Policy is the work folders' policy: an environment is one more folder that the caller can read,
mounted read-only. The daemon's own is open to everybody, as its image is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from sandboxkernel.daemon.images import HOST_REF
from sandboxkernel.daemon.plan import is_below, python_of
from sandboxkernel.daemon.zygotes import Key
from sandboxkernel.errors import RequestError, SandboxError, WorkFolderError
from sandboxkernel.limits import NATIVE, Profile, Subject
from sandboxkernel.models import IPYKERNEL, KernelCreate, PythonEnvironment
from sandboxkernel.python_environment import running_environment
from sandboxruntime.validate import is_normalised

__all__ = ["check_environment", "own_folders", "zygote_key"]


@functools.cache
def _own() -> PythonEnvironment | None:
    try:
        return running_environment()
    except SandboxError:  # one that no sandbox can show
        return None


def own_folders() -> tuple[str, ...]:
    """The folders of the daemon's own environment."""
    own = _own()
    return tuple(own.folders) if own is not None else ()


def zygote_key(
    request: KernelCreate, image_digest: str, profile: Profile, caller: Subject
) -> Key | None:
    """Which zygotes a kernel may be forked from; None: a fresh interpreter."""
    foreign = request.environment is not None and not _is_own(request.environment, profile)
    if request.argv is not None or foreign or profile.executor != NATIVE:
        return None
    return Key.of(image_digest, profile, caller)


def _is_own(environment: PythonEnvironment, profile: Profile) -> bool:
    """Whether the profile's image, and so its zygote, holds this very kernel."""
    own = _own()
    return (
        own is not None
        and profile.image == HOST_REF
        and environment.module == IPYKERNEL
        and (environment.base, environment.folders) == (own.base, own.folders)
    )


def check_environment(
    request: KernelCreate, image_labels: Mapping[str, str], hidden: tuple[str, ...]
) -> None:
    """Refuse what would be another environment inside. `hidden` are relative to the work folder."""
    environment = request.environment
    if environment is None:
        return
    if request.argv is not None:
        raise RequestError("argv and environment exclude each other", field="environment")
    for path in (environment.python, environment.base, *environment.folders):
        if not is_normalised(path):
            raise RequestError(f"{path!r} is not a normalised path", field="environment")
    has = python_of(image_labels)
    inside = any(is_below(environment.base, folder) for folder in environment.folders)
    if not inside and environment.base != has:
        raise RequestError(
            f"the Python environment of {environment.python} is based on {environment.base}, and "
            f"sandboxes have {has}",
            hint="Make it anew with that interpreter, or run the daemon on this one.",
            field="environment",
        )
    work = request.work_folder or request.cwd
    for folder in environment.folders:
        if work is not None and is_below(work, folder):
            raise WorkFolderError(
                f"the work folder {work} lies in the Python environment {folder}, which a sandbox "
                "may not write to",
                hint="Open the notebook from another folder.",
                field="work_folder",
            )
        for name in hidden:
            if folder.startswith(f"{work}/{name}/"):
                raise WorkFolderError(
                    f"the Python environment {folder} lies in {work}/{name}, a hidden entry of "
                    "your home, which is covered",
                    hint="Open the notebook from a folder below your home.",
                    field="work_folder",
                )

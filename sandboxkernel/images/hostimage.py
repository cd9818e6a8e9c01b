"""The zero-download default image, made from the host's own interpreter and distributions.

Deterministic: the same programs and distributions give the same digest. What is decided (three
TreePlans become two layers) is separate from what is done (build, compile, tar, publish).
Licences: such an image holds the distribution's binaries; who passes it on passes those on.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandboxkernel.errors import SandboxError
from sandboxkernel.images.bytecode import compile_tree
from sandboxkernel.images.distributions import (
    SCIENTIFIC,
    Distribution,
    find_distributions,
    marker_environment,
    plan_bundled_pip,
    plan_distribution,
    record_digest,
    select_distributions,
)
from sandboxkernel.images.hostprograms import (
    HOME,
    PROGRAM_DIRS,
    PROGRAMS,
    find_ca_bundle,
    plan_directories,
    plan_etc,
    plan_programs,
    plan_root_home,
)
from sandboxkernel.images.interpreter import (
    Interpreter,
    base_executable,
    find_interpreter,
    plan_interpreter,
)
from sandboxkernel.images.layers import TarResult, write_layer_tar
from sandboxkernel.images.libraries import BASE_LIBRARIES, LibraryFinder, plan_libraries
from sandboxkernel.images.manifest import ContainerConfig, History, ImageConfig, RootFs
from sandboxkernel.images.staging import Stage
from sandboxkernel.images.store import ImageStore, StoredImage
from sandboxkernel.images.treebuild import build_tree, normalise_times
from sandboxkernel.images.treeplan import TreePlan
from sandboxkernel.models import Progress

__all__ = [
    "HOST_REF",
    "INPUTS_LABEL",
    "LINEAGE_LABEL",
    "PYTHON_LABEL",
    "build_host_image",
    "ensure_host_image",
    "host_fingerprint",
]

HOST_REF = "host"
PYTHON_LABEL = "org.sandboxkernel.python"
LINEAGE_LABEL = "org.sandboxkernel.lineage"
INPUTS_LABEL = "org.sandboxkernel.inputs"
_CREATED = "2020-01-01T00:00:00Z"  # LAYER_EPOCH: the real time is in the store's index
_FORMAT = 1  # raise it when the same host shall give another image
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm"}

ProgressSink = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class _LayerPlan:
    name: str
    plan: TreePlan


def ensure_host_image(
    store: ImageStore,
    *,
    progress: ProgressSink | None = None,
    refresh: bool = False,
    extra_distributions: Sequence[str] = (),
) -> StoredImage:
    """The image "host", built when it is missing, damaged or not made from today's packages.

    Fast when it is current. Several callers build it once. Raises ImageError or
    ResourcesExhausted.
    """
    fingerprint = host_fingerprint(extra_distributions)
    current = _current(store, fingerprint)
    if current is not None and not refresh:
        return current
    before = current.created_at if current else None
    with store.build_lock(HOST_REF):
        current = _current(store, fingerprint)
        # Somebody else may have built it while we waited for the lock.
        if current is not None and (not refresh or current.created_at != before):
            return current
        return build_host_image(
            store, progress=progress or _ignore, extra_distributions=extra_distributions
        )


def build_host_image(
    store: ImageStore,
    *,
    progress: ProgressSink,
    extra_distributions: Sequence[str] = (),
) -> StoredImage:
    """Build the image and give it the name "host". Raises ImageError or ResourcesExhausted."""
    progress(Progress(phase="plan"))
    python = find_interpreter()
    layers = _plan_layers(python, extra_distributions)
    fingerprint = host_fingerprint(extra_distributions)
    with store.stage() as made:
        results = [_build_layer(made, layer, python, progress) for layer in layers]
        progress(Progress(phase="store"))
        config = _image_config(python, layers, results, fingerprint)
        return store.publish(made, HOST_REF, config=config, layers=results)


def host_fingerprint(extra_distributions: Sequence[str] = ()) -> str:
    """A digest over what the host image is made from: contents and names, never times.

    Covers the interpreter, the distributions' records, the programs, the C libraries and the
    certification authorities.
    """
    digest = hashlib.sha256()

    def add(*parts: str) -> None:
        digest.update("\0".join(parts).encode("utf-8", "surrogateescape") + b"\n")

    add("format", str(_FORMAT), _own_version(), *sorted(extra_distributions))
    executable = base_executable()
    add("python", executable, platform.python_version(), *platform.python_build())
    for distribution in _distributions(extra_distributions):
        add("distribution", distribution.info, record_digest(distribution))
    for path in _fingerprint_files(executable):
        add("file", path, _content_digest(path))
    return digest.hexdigest()


def _ignore(step: Progress) -> None:
    """For callers that do not want progress."""


def _current(store: ImageStore, fingerprint: str) -> StoredImage | None:
    try:
        image = store.resolve(HOST_REF)
    except SandboxError:
        return None  # missing or damaged: both are mended by building it
    return image if image.labels.get(INPUTS_LABEL) == fingerprint else None


def _own_version() -> str:
    try:
        return importlib.metadata.version("sandboxkernel")
    except importlib.metadata.PackageNotFoundError:
        return "source"


def _distributions(extra_distributions: Sequence[str]) -> tuple[Distribution, ...]:
    return select_distributions(
        find_distributions(),
        required=("ipykernel", *extra_distributions),
        optional=("pip", *SCIENTIFIC),
        environment=marker_environment(),
    )


def _fingerprint_files(executable: str) -> list[str]:
    finder = LibraryFinder.for_executable(executable)
    origin = os.path.join(os.path.dirname(os.path.dirname(executable)), "lib")
    libraries = [finder.find(name, finder.default_dirs) for name in BASE_LIBRARIES]
    shared = [os.path.join(origin, name) for name in _shared_interpreter(origin)]
    programs = [
        os.path.join(directory, name)
        for name in PROGRAMS
        for directory in PROGRAM_DIRS.split(":")[:1]
    ]
    found = [executable, find_ca_bundle(), *libraries, *shared, *programs]
    return sorted({path for path in found if path and os.path.isfile(path)})


def _shared_interpreter(directory: str) -> list[str]:
    try:
        return [name for name in os.listdir(directory) if name.startswith("libpython")]
    except OSError:
        return []


def _content_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plan_layers(python: Interpreter, extra_distributions: Sequence[str]) -> list[_LayerPlan]:
    finder = LibraryFinder.for_executable(python.executable)
    system = TreePlan()
    plan_directories(system)
    plan_interpreter(system, python)
    plan_programs(system)
    plan_libraries(system, finder, names=BASE_LIBRARIES)
    plan_etc(system, python)
    plan_root_home(system)
    packages = TreePlan()
    distributions = _distributions(extra_distributions)
    for distribution in distributions:
        plan_distribution(packages, distribution, python)
    if all(distribution.name != "pip" for distribution in distributions):
        plan_bundled_pip(packages, python)
    plan_libraries(packages, finder, below=system)
    return [_LayerPlan("interpreter and system", system), _LayerPlan("distributions", packages)]


def _build_layer(
    made: Stage, layer: _LayerPlan, python: Interpreter, progress: ProgressSink
) -> TarResult:
    tree = made.new_path("tree")

    def report(phase: str, unit: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(
            Progress(phase=f"{phase} {layer.name}", done=done, total=total, unit=unit)
        )

    build_tree(layer.plan, tree, progress=report("copy", "files"))
    sources = [path for path, _ in layer.plan.items() if _is_module(path, python)]
    compile_tree(tree, sources, interpreter=python.executable, progress=report("compile", "files"))
    normalise_times(tree)
    count = len(layer.plan) + len(sources)
    packing = report("pack", "files")
    result = made.write(
        lambda target: write_layer_tar(tree, target, progress=lambda done: packing(done, count))
    )
    made.adopt_tree(result.digest, tree)
    return result


def _is_module(path: str, python: Interpreter) -> bool:
    libraries = (python.stdlib, python.platstdlib, python.purelib, python.platlib)
    return path.endswith(".py") and path.startswith(tuple(f"{base}/" for base in libraries))


def _image_config(
    python: Interpreter,
    layers: Sequence[_LayerPlan],
    results: Sequence[TarResult],
    fingerprint: str,
) -> ImageConfig:
    search = [f"{HOME}/.local/bin", python.scripts, str(Path(python.executable).parent),
              "/usr/local/bin", "/usr/bin", "/bin"]  # fmt: skip
    machine = platform.machine()
    return ImageConfig(
        created=_CREATED,
        architecture=_ARCHITECTURES.get(machine, machine),
        os="linux",
        config=ContainerConfig(
            User="1000:1000",
            Env=(
                f"PATH={':'.join(dict.fromkeys(search))}",
                "LANG=C.UTF-8",
                f"PYTHON={python.executable}",
            ),
            Cmd=(python.executable,),
            WorkingDir=HOME,
            Labels={
                PYTHON_LABEL: python.executable,
                LINEAGE_LABEL: f"host-{python.version}",
                INPUTS_LABEL: fingerprint,
            },
        ),
        rootfs=RootFs(type="layers", diff_ids=tuple(str(r.digest) for r in results)),
        history=tuple(
            History(created=_CREATED, created_by=f"sandboxkernel host image: {layer.name}")
            for layer in layers
        ),
    )

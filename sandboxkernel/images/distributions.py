"""Installed distributions: which ones an image needs, and where their files go.

Reads the environment that sandboxkernel runs in by its metadata (PyPA, "Recording installed
projects") and writes nothing. Editable installs and .pth files never get into an image: both
point at the host.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import platform
import posixpath
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sandboxkernel.errors import ImageError
from sandboxkernel.images.hostpaths import is_public_file, plan_host_tree
from sandboxkernel.images.interpreter import Interpreter
from sandboxkernel.images.requirements import canonical_name, evaluate_marker, parse_requirement
from sandboxkernel.images.treeplan import CopiedFile, GeneratedFile, TreePlan

__all__ = [
    "SCIENTIFIC",
    "Distribution",
    "find_distributions",
    "marker_environment",
    "plan_bundled_pip",
    "plan_distribution",
    "record_digest",
    "select_distributions",
]

# Taken along when the administrator's environment has them: what a notebook imports first.
SCIENTIFIC = ("numpy", "pandas", "scipy", "matplotlib", "ipywidgets")
_METADATA_MAX_BYTES = 4 * 1024 * 1024
_RECORD_MAX_BYTES = 64 * 1024 * 1024
# direct_url.json says where on the host something was installed from.
_LEFT_OUT_OF_INFO = frozenset({"direct_url.json", "RECORD", "RECORD.jws", "RECORD.p7s"})


@dataclass(frozen=True, slots=True)
class Distribution:
    """An installed distribution; `root` is its site directory, `info` its .dist-info there."""

    name: str
    root: str
    info: str

    def requires(self) -> tuple[str, ...]:
        """The values of Requires-Dist."""
        # Only the headers: the description that follows is most of the file.
        text = self.read("METADATA", _METADATA_MAX_BYTES).decode("utf-8", "replace")
        headers = text.partition("\n\n")[0]
        return tuple(
            line.partition(":")[2].strip()
            for line in headers.splitlines()
            if line.lower().startswith("requires-dist:")
        )

    def read(self, name: str, limit: int = _RECORD_MAX_BYTES) -> bytes:
        """A file of the .dist-info, b"" when there is none."""
        try:
            with open(f"{self.root}/{self.info}/{name}", "rb") as file:
                return file.read(limit)
        except (FileNotFoundError, NotADirectoryError):
            return b""

    def is_editable(self) -> bool:
        """Whether it is installed in development mode (PEP 610, PEP 660)."""
        content = self.read("direct_url.json")
        return bool(content) and b'"editable"' in content and b"true" in content


def find_distributions(search: Sequence[str] | None = None) -> dict[str, Distribution]:
    """Installed distributions by canonical name; the first one on the path counts."""
    found: dict[str, Distribution] = {}
    for root in sys.path if search is None else search:
        try:
            names = sorted(os.listdir(root or "."))
        except OSError:
            continue  # sys.path has zip files and directories that do not exist
        for name in names:
            if name.endswith(".dist-info"):
                canonical = canonical_name(name.removesuffix(".dist-info").rpartition("-")[0])
                found.setdefault(canonical, Distribution(canonical, os.path.abspath(root), name))
    return found


def marker_environment() -> dict[str, str]:
    """The marker variables of the running interpreter (PEP 508, Environment Markers)."""
    version = sys.version_info
    return {
        "os_name": os.name,
        "sys_platform": sys.platform,
        "platform_machine": platform.machine(),
        "platform_python_implementation": platform.python_implementation(),
        "platform_release": platform.release(),
        "platform_system": platform.system(),
        "platform_version": platform.version(),
        "python_version": f"{version.major}.{version.minor}",
        "python_full_version": platform.python_version(),
        "implementation_name": sys.implementation.name,
        "implementation_version": platform.python_version(),
    }


def select_distributions(
    installed: Mapping[str, Distribution],
    *,
    required: Iterable[str],
    optional: Iterable[str] = (),
    environment: Mapping[str, str],
) -> tuple[Distribution, ...]:
    """The closure of what is wanted, sorted by name.

    A transitive requirement that is not installed is left out: the image is then as whole as the
    environment. Raises ImageError when a required one is missing or cannot be copied.
    """
    wanted: list[tuple[str, frozenset[str]]] = []
    for text in required:
        requirement = parse_requirement(text)
        distribution = installed.get(requirement.name)
        if distribution is None or distribution.is_editable():
            why = "it is not installed" if distribution is None else "it is an editable install"
            raise ImageError(
                f"cannot put {requirement.name} into the host image: {why}",
                hint=f"install it with: {sys.executable} -m pip install {requirement.name}",
            )
        wanted.append((requirement.name, frozenset(requirement.extras)))
    wanted.extend((canonical_name(name), frozenset()) for name in optional)
    done: dict[str, frozenset[str]] = {}
    while wanted:
        name, extras = wanted.pop()
        distribution = installed.get(name)
        if distribution is None or distribution.is_editable():
            continue
        before = done.get(name)
        if before is not None and extras <= before:
            continue
        done[name] = extras = extras | (before or frozenset())
        for text in distribution.requires():
            requirement = parse_requirement(text)
            if evaluate_marker(requirement.marker, environment, extras):
                wanted.append((requirement.name, frozenset(requirement.extras)))
    return tuple(installed[name] for name in sorted(done))


def plan_distribution(plan: TreePlan, distribution: Distribution, python: Interpreter) -> None:
    """Plan a distribution's files into the site directory of the image's interpreter."""
    rows = _record_rows(distribution)
    if not rows:
        _plan_without_record(plan, distribution, python)
        return
    record: list[tuple[str, str, str]] = []
    for name, checksum, size in rows:
        if _is_left_out(name, distribution.info):
            continue
        source = posixpath.normpath(f"{distribution.root}/{name}")
        destination = _destination(source, distribution, python)
        if destination is None or not is_public_file(source):
            continue
        inside = posixpath.relpath(destination, python.purelib)
        script = _script_for(source, python) if inside.startswith("..") else None
        if script is not None:
            plan.add(destination, GeneratedFile(script, executable=True))
            record.append((inside, _record_hash(script), str(len(script))))
            continue
        executable = bool(os.lstat(source).st_mode & 0o001)
        plan.add(destination, CopiedFile(source, executable=executable))
        record.append((inside, checksum, size))
    # pip in the sandbox uninstalls by RECORD, which must name the image's files.
    record_name = f"{distribution.info}/RECORD"
    content = _render_record([*sorted(record), (record_name, "", "")])
    plan.add(f"{python.purelib}/{record_name}", GeneratedFile(content))


def plan_bundled_pip(plan: TreePlan, python: Interpreter) -> bool:
    """Plan pip from the wheel that ensurepip carries; False when there is none."""
    for directory in (f"{python.stdlib}/ensurepip/_bundled", python.wheel_dir):
        if not directory or not os.path.isdir(directory):
            continue
        for name in sorted(os.listdir(directory), reverse=True):
            if name.startswith("pip-") and name.endswith(".whl"):
                with zipfile.ZipFile(f"{directory}/{name}") as wheel:
                    for member in wheel.namelist():
                        if not member.endswith("/") and ".." not in member.split("/"):
                            plan.add(
                                f"{python.purelib}/{member}", GeneratedFile(wheel.read(member))
                            )
                script = (
                    f"#!{python.executable}\nimport sys\n"
                    "from pip._internal.cli.main import main\nsys.exit(main())\n"
                )
                for alias in ("pip", "pip3"):
                    plan.add(
                        f"{python.scripts}/{alias}", GeneratedFile(script.encode(), executable=True)
                    )
                return True
    return False


def _record_rows(distribution: Distribution) -> list[tuple[str, str, str]]:
    text = distribution.read("RECORD").decode("utf-8", "replace")
    rows = csv.reader(io.StringIO(text))
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3 and row[0]]


def _is_left_out(name: str, info: str) -> bool:
    directory, base = posixpath.split(name)
    return (
        base.endswith((".pyc", ".pth"))
        or "__pycache__" in directory.split("/")
        or (directory == info and base in _LEFT_OUT_OF_INFO)
        or "\0" in name
    )


def _destination(source: str, distribution: Distribution, python: Interpreter) -> str | None:
    """Where a file goes: site directory, scripts or share; None for anywhere else."""
    for directory in (distribution.root, *_site_directories()):
        if source.startswith(f"{directory}/"):
            return f"{python.purelib}/{source[len(directory) + 1 :]}"
    scripts = sysconfig.get_path("scripts")
    if posixpath.dirname(source) in (scripts, python.scripts):
        return f"{python.scripts}/{posixpath.basename(source)}"
    for prefix in (sysconfig.get_path("data"), python.data):
        if source.startswith(f"{prefix}/share/"):
            return f"{python.data}{source[len(prefix) :]}"
    return None


def _site_directories() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return (paths["purelib"], paths["platlib"])


def _script_for(source: str, python: Interpreter) -> bytes | None:
    """A script with the image's interpreter in its first line; None when it names none."""
    with open(source, "rb") as file:
        if file.read(2) != b"#!":
            return None
        first = file.readline()
        rest = file.read()
    if b"python" not in first and b"/bin/sh" not in first:
        return None
    if b"/bin/sh" in first:
        # The form for interpreter paths that are too long for a "#!" line: sh, then exec.
        _, marker, body = rest.partition(b"' '''\n")
        if not marker:
            return None
        rest = body
    return b"#!" + python.executable.encode() + b"\n" + rest


def _record_hash(content: bytes) -> str:
    encoded = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
    return f"sha256={encoded.decode()}"


def _render_record(rows: list[tuple[str, str, str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _plan_without_record(plan: TreePlan, distribution: Distribution, python: Interpreter) -> None:
    """Distributions of a system's package manager have no RECORD: take their top-level names."""
    root, site = distribution.root, python.purelib
    listed = distribution.read("top_level.txt").decode("utf-8", "replace").split()
    names = [n for n in listed or [distribution.name.replace("-", "_")] if "/" not in n]
    for name in (*names, distribution.info):
        if os.path.isdir(f"{root}/{name}"):
            plan_host_tree(
                plan,
                f"{root}/{name}",
                f"{site}/{name}",
                skip_directories=frozenset({"__pycache__"}),
                skip_suffixes=(".pyc", ".pth", "direct_url.json"),
            )
        elif is_public_file(f"{root}/{name}.py"):
            plan.add(f"{site}/{name}.py", CopiedFile(f"{root}/{name}.py"))


def record_digest(distribution: Distribution) -> str:
    """A digest over what is installed: changes when the distribution's files do."""
    content = distribution.read("RECORD") or distribution.read("METADATA")
    return hashlib.sha256(content).hexdigest()

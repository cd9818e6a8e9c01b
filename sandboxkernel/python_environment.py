"""The Python environment that an interpreter of the host belongs to, as a sandbox can show it.

Reads the host's file system as whoever calls, and runs nothing.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import sys
import sysconfig
from typing import Any

from msgspec import structs

from sandboxkernel.errors import RequestError
from sandboxkernel.kernel_command import PythonKernel, parse_command
from sandboxkernel.models import PythonEnvironment

__all__ = ["environment_of", "requested_kernel", "running_environment"]

# The prefixes of a distribution's own Python: whole, they are the system and not an environment.
SYSTEM_PREFIXES = ("/", "/usr", "/usr/local")
_HINT = (
    'Choose "Sandboxed Python", or run the kernel from a virtual environment: python3 -m venv, '
    "then pip install ipykernel."
)


def requested_kernel(argv: list[str], manager: Any) -> tuple[PythonEnvironment | None, list[str]]:
    """The environment (None: the image's own kernel) and the kernel's arguments of a command.

    `manager` is the KernelManager that filled the templates in. A provisioner's configuration in
    its kernelspec counts instead of the options of `launch`. Raises RequestError for what a sandbox
    cannot be.
    """
    configured = "kernel_provisioner" in manager.kernel_spec.metadata
    command = parse_command(argv, os.path.realpath(manager.connection_file))
    if isinstance(command, PythonKernel):
        environment = structs.replace(environment_of(command.python), module=command.module)
        return environment, list(command.arguments)
    if command.options and not configured:
        raise RequestError(
            f"the kernelspec's options {' '.join(command.options)} are for clients that run its "
            "command",
            hint="Say the same in its metadata.kernel_provisioner.config.",
            field="argv",
        )
    return None, list(command.arguments)


def running_environment() -> PythonEnvironment:
    """The environment of this very process."""
    return environment_of(sys.executable)


def environment_of(python: str) -> PythonEnvironment:
    """The environment of an interpreter, by its path or its name on PATH.

    A virtual environment or an installation of its own is one folder; of the system's Python only
    the packages are shown. Raises RequestError for what would not be the same inside.
    """
    path = python if python.startswith("/") else shutil.which(python)
    if path is None or not path.startswith("/") or not os.access(path, os.X_OK):
        raise RequestError(
            f"there is no interpreter {python} on this host",
            hint="Correct argv of the kernelspec: `jupyter kernelspec list` says where it is.",
            field="argv",
        )
    # The folder's links are followed, the interpreter's not: that is how Python finds its venv.
    path = posixpath.join(os.path.realpath(os.path.dirname(path)), posixpath.basename(path))
    base = os.path.realpath(path)
    prefix = posixpath.dirname(posixpath.dirname(path))
    if os.path.isfile(f"{prefix}/pyvenv.cfg"):
        if _sees_the_system(f"{prefix}/pyvenv.cfg"):
            raise RequestError(
                f"the environment {prefix} includes the system's packages, which a sandbox does "
                "not have",
                hint="Set include-system-site-packages = false in its pyvenv.cfg.",
                field="argv",
            )
        return PythonEnvironment(python=path, base=base, folders=[prefix])
    prefix = posixpath.dirname(posixpath.dirname(base))
    if prefix not in SYSTEM_PREFIXES:
        return PythonEnvironment(python=path, base=base, folders=[prefix])
    return PythonEnvironment(python=path, base=base, folders=_system_packages(base))


def _system_packages(base: str) -> list[str]:
    """Where the system's Python keeps packages; known only if it is the one that runs us."""
    if base != os.path.realpath(sys.executable):
        raise RequestError(
            f"{base} is the system's Python, and not the one that this Jupyter server runs on",
            hint=_HINT,
            field="argv",
        )
    found = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    found |= {path for path in sys.path if path.endswith(("/dist-packages", "/site-packages"))}
    system = sorted(
        path for path in found if path.startswith(("/usr/lib/", "/usr/local/lib/"))
        and os.path.isdir(path) and os.path.realpath(path) == path
    )  # fmt: skip
    if not system:
        raise RequestError(f"{base} has no folder of packages", hint=_HINT, field="argv")
    return system


def _sees_the_system(path: str) -> bool:
    """Whether a virtual environment was made with --system-site-packages (PEP 405)."""
    with open(path, encoding="utf-8", errors="replace") as stream:
        for line in stream:
            key, equals, value = line.partition("=")
            if equals and key.strip().lower() == "include-system-site-packages":
                return value.strip().lower() == "true"
    return False

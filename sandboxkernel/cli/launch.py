"""`launch`: the kernelspec's command, which nobody runs who knows kernel provisioners."""

from __future__ import annotations

import re
from importlib import metadata

import click

from sandboxkernel.errors import HostUnsupported

__all__ = ["launch_command", "required_client"]


@click.command(
    "launch",
    hidden=True,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    epilog="\b\nExample:\n  sandboxkernel launch -f kernel.json",
)
@click.option("-f", "connection_file", required=True, help="Jupyter's connection file.")
def launch_command(connection_file: str) -> None:
    """Explain why this kernel cannot be started like this."""
    del connection_file
    raise HostUnsupported(
        "this Jupyter client ran the kernelspec's command itself instead of its kernel "
        "provisioner, so the kernel would not be in a sandbox",
        hint=_hint(),
        feature="kernel_provisioner",
    )


def _hint() -> str:
    needed = required_client()
    return (
        f"Use a client that starts kernels through {needed}, with sandboxkernel installed in the "
        f"same environment: pip install '{needed}' sandboxkernel ({_installed()}). A client of "
        "another kind (VS Code, Emacs, nteract) must be connected to a running Jupyter server."
    )


def required_client() -> str:
    """The requirement of our own package, e.g. "jupyter_client>=8.9.1"."""
    try:
        requirements = metadata.requires("sandboxkernel") or []
    except metadata.PackageNotFoundError:
        requirements = []
    for requirement in requirements:
        if re.match(r"jupyter[-_]client\b", requirement):
            return requirement.split(";")[0].strip()
    return "jupyter_client"


def _installed() -> str:
    try:
        return f"beside sandboxkernel, {metadata.version('jupyter_client')} is installed"
    except metadata.PackageNotFoundError:
        return "it is not installed beside sandboxkernel"

"""`doctor`: what this host lacks, for which promise, and how to mend it."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import msgspec

from sandboxkernel.cli import options, output
from sandboxkernel.cli.connection import connect
from sandboxkernel.errors import DaemonUnavailable, SandboxError
from sandboxkernel.paths import Paths

__all__ = ["Finding", "doctor_command", "lacking", "parse_probes", "required_client"]

PROBE_TIMEOUT_S = 60.0
KERNELSPEC = "sandboxed-python"
# Sandboxes start and keep their promises without these; the reason stands beside each.
OPTIONAL = frozenset(
    {
        "overlay_lowerdir_append",  # layers are named in one option
        "overlay_layer_fds",  # layers are named by private mount points
        "idmapped_tmpfs",  # only for work folders there, whose starts are refused
        "executor_runc",  # only for profiles with that executor, whose starts are refused
        "file_descriptors",  # fewer kernels at once
        "cgroup_io",  # only for profiles that cap disk traffic, whose starts are refused
        "cgroup_cpuacct",  # CPU use is not counted
        "cgroup_freeze",  # pause is refused
        "cgroup_kill",  # a loop kills instead
        "clone_into_cgroup",  # a process enters its cgroup itself, before anything of the user's
    }
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `fix` is empty when it is present."""

    name: str
    present: bool
    required: bool
    detail: str
    promise: str
    fix: str

    @property
    def status(self) -> str:
        """One word."""
        if self.present:
            return "ok"
        return "MISSING" if self.required else "optional"


@click.command(
    "doctor",
    epilog=options.example("sudo sandboxkernel doctor", "sandboxkernel doctor --format json"),
)
@options.format_option()
@click.option("-q", "--quiet", is_flag=True, help="Only what is missing.")
def doctor_command(*, form: str, quiet: bool) -> None:
    """Check what this host lacks, and how to mend it.

    Tries every feature of Linux that sandboxes rely on; changes nothing. Exits with 1 when
    something required is missing. Run it as root: most trials need it.
    """
    findings = [*_probe_host(), _daemon(), _jupyter_client(), _kernelspec()]
    shown = [f for f in findings if not (quiet and f.present)]
    if form == "json":
        output.document([asdict(finding) for finding in shown])
    else:
        _print(shown)
    if lacking(findings):
        raise click.exceptions.Exit(1)


def lacking(findings: list[Finding]) -> list[Finding]:
    """What is required and missing."""
    return [f for f in findings if f.required and not f.present]


def _print(findings: list[Finding]) -> None:
    rows = []
    for finding in findings:
        rows.append((finding.status, finding.name, finding.detail))
        if not finding.present:
            rows.append(("", "", f"at stake: {finding.promise}"))
            rows.append(("", "", f"fix: {finding.fix}"))
    output.table(("STATUS", "FEATURE", "DETAIL"), rows)


def _probe_host() -> list[Finding]:
    """The runtime's probes, in a process of their own: they fork, and need nothing of ours."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "sandboxruntime.host", "--json", "--state", str(_state())],
            capture_output=True, timeout=PROBE_TIMEOUT_S, check=False,
        )  # fmt: skip
        return parse_probes(done.stdout)
    except subprocess.TimeoutExpired:
        raise SandboxError(f"the probes did not end within {PROBE_TIMEOUT_S:g} s") from None
    except msgspec.MsgspecError as exc:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [str(exc)]
        raise SandboxError(
            f"the probes failed: {reason[0]}", hint="Run `python -m sandboxruntime.host`."
        ) from exc


def _state() -> Path:
    """The data directory, or what is there of the way to it."""
    directory = Paths.from_environment().data_dir
    while not directory.is_dir():
        directory = directory.parent
    return directory


def parse_probes(data: bytes) -> list[Finding]:
    """Findings of the probes' JSON. Raises MsgspecError."""
    probes: list[dict[str, Any]] = msgspec.json.decode(data, type=list[dict[str, Any]])
    return [Finding(**{**probe, "required": probe["name"] not in OPTIONAL}) for probe in probes]


def _daemon() -> Finding:
    try:
        version = connect().version()
        detail, present = f"version {version.version}", True
    except DaemonUnavailable as exc:
        detail, present = exc.message, False
    fix = "systemctl start sandboxkernel, or sandboxkerneld as root; root's kernels start their own"
    return Finding(
        "daemon", present, False, detail, "for users other than root", "" if present else fix
    )


def _jupyter_client() -> Finding:
    needed = required_client()
    try:
        detail, present = metadata.version("jupyter_client"), True
    except metadata.PackageNotFoundError:
        detail, present = "not installed", False
    wanted = needed.partition(">=")[2]
    present = present and (not wanted or version_key(detail) >= version_key(wanted))
    fix = f"{sys.executable} -m pip install '{needed}'"
    return Finding(
        "jupyter_client", present, False, detail, "notebooks in sandboxes", "" if present else fix
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


def version_key(version: str) -> tuple[int, ...]:
    """The leading numbers: enough to compare releases."""
    numbers = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _kernelspec() -> Finding:
    from jupyter_core.paths import jupyter_path

    folders = [Path(folder) / KERNELSPEC for folder in jupyter_path("kernels")]
    found = next((folder for folder in folders if (folder / "kernel.json").is_file()), None)
    fix = f"{sys.executable} -m pip install --force-reinstall --no-deps sandboxkernel"
    return Finding(
        "kernelspec", found is not None, False, str(found or f"no {KERNELSPEC} on Jupyter's path"),
        "\"Sandboxed Python\" in Jupyter's launcher", "" if found else fix,
    )  # fmt: skip

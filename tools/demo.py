"""`make demo`: run the notebooks in sandboxes, and say what was isolated and what was capped.

Needs no setting: where no daemon answers and the caller is root, one is started. Everything that
is claimed here was read back from Linux by the daemon or by this program, or printed by a cell.
Ends with 1 when a cell fails or when something that should be isolated is not.
"""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import nbclient
import nbformat
from nbclient.exceptions import CellExecutionError, DeadKernelError

from sandboxkernel.client import SandboxClient
from sandboxkernel.errors import SandboxError
from sandboxkernel.launch_daemon import ensure_daemon
from sandboxkernel.models import Kernel, Progress, Stats
from sandboxkernel.units import format_size

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
NAMES = ("01-quickstart", "02-limits", "03-your-packages-persist", "05-escape-attempts")
KERNEL_NAME = "sandboxed-python"
CELL_TIMEOUT_S = 120
OUTPUT_LINES_MAX = 14
WIDTH = 78
COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def paint(text: str, code: str) -> str:
    """Colour, on a terminal only."""
    return f"\x1b[{code}m{text}\x1b[0m" if COLOUR else text


def say(text: str = "") -> None:
    """Print at once: somebody is watching."""
    print(text, flush=True)


@dataclass
class Result:
    """One notebook's run."""

    name: str
    cells: int = 0
    kernel_id: str = ""
    first_reply_s: float = 0.0
    memory_peak_bytes: int = 0
    cpu_s: float = 0.0
    failures: list[str] = field(default_factory=list)


def prepare() -> SandboxClient:
    """A client of a daemon whose host image is ready."""
    began = time.monotonic()
    client = ensure_daemon()
    version = client.version()
    kind = "started on demand" if version.embedded else "the system's"
    say(f"daemon   {version.version}, {kind}, at {client.socket_path}")
    say(f"host     Linux {version.linux}, control groups {version.cgroup_mode}")
    phase = ""
    for item in client.prepare_image("host"):
        if isinstance(item, Progress):
            if item.phase != phase:
                phase = item.phase
                say(f"image    {phase} ...")
            continue
        size = format_size(item.size_bytes)
        took = time.monotonic() - began
        say(
            f"image    {item.ref}, made of this machine's own Python: {size}, ready in {took:.1f} s"
        )
    return client


def titles(document: nbformat.NotebookNode) -> dict[int, str]:
    """What each code cell is about: the heading above it."""
    heading, found = "", {}
    for index, cell in enumerate(document.cells):
        if cell.cell_type == "markdown":
            for line in cell.source.splitlines():
                if line.startswith("#"):
                    heading = line.lstrip("# ")
        else:
            found[index] = heading
    return found


def output_text(cell: nbformat.NotebookNode) -> list[str]:
    """A cell's outputs as plain lines."""
    text = ""
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            text += output.text
        elif output.output_type == "error":
            text += f"{output.ename}: {output.evalue}\n"
        elif "text/html" in output.get("data", {}):
            text += f"(HTML) {output.data['text/html']}\n"
        elif "text/plain" in output.get("data", {}):
            text += output.data["text/plain"] + "\n"
    lines = [line.rstrip() for line in ANSI.sub("", text).splitlines() if line.strip()]
    if len(lines) > OUTPUT_LINES_MAX:
        left = len(lines) - OUTPUT_LINES_MAX
        lines = [*lines[:OUTPUT_LINES_MAX], f"... {left} more lines"]
    return lines


def run_notebook(name: str, client: SandboxClient, *, brief: bool) -> Result:
    """Execute one notebook in a sandbox of its own, with an account of it."""
    result = Result(name)
    say()
    say(paint(f"== {name} ".ljust(WIDTH, "="), "1"))
    document = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    runner = nbclient.NotebookClient(
        document,
        kernel_name=KERNEL_NAME,
        timeout=CELL_TIMEOUT_S,
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    )
    title_of = titles(document)
    began = time.monotonic()
    try:
        with runner.setup_kernel():
            result.first_reply_s = time.monotonic() - began
            kernel = client.inspect(runner.km.kernel_id)
            result.kernel_id = kernel.id
            say(
                f"sandbox {kernel.id}: first reply after {result.first_reply_s:.2f} s; the "
                f"kernel's process is {kernel.pid} on the host"
            )
            for number, (index, title) in enumerate(title_of.items(), start=1):
                run_cell(runner, document.cells[index], index,
                         f"[{number}/{len(title_of)}] {title}")  # fmt: skip
                result.cells = number
            stats = client.stats(kernel.id)
            result.memory_peak_bytes = stats.memory_peak_bytes
            result.cpu_s = stats.cpu_usage_s
            result.failures += tell_isolation(kernel, brief=brief)
            tell_caps(kernel, stats, brief=brief)
    except CellExecutionError as exc:
        result.failures.append(f"a cell failed: {exc.ename}: {exc.evalue}")
    except (DeadKernelError, nbclient.exceptions.CellTimeoutError) as exc:
        result.failures.append(f"{type(exc).__name__}: {exc}")
    except SandboxError as exc:
        result.failures.append(str(exc))
    for failure in result.failures:
        say(paint(f"FAILED   {failure}", "31"))
    return result


def run_cell(
    runner: nbclient.NotebookClient, cell: nbformat.NotebookNode, index: int, title: str
) -> None:
    """Execute a cell and print what it printed."""
    began = time.monotonic()
    try:
        runner.execute_cell(cell, index)
    finally:
        took = f"{time.monotonic() - began:.2f} s"
        say(paint(f"{title.ljust(WIDTH - len(took) - 1)} {took}", "2"))
        for line in output_text(cell):
            say(f"      {line}")


def tell_isolation(kernel: Kernel, *, brief: bool) -> list[str]:
    """Print what the daemon read back from Linux; what does not hold is a failure."""
    confinement = kernel.confinement
    if confinement is None:
        return ["the daemon says nothing about this sandbox's confinement"]
    failures = []
    shared = []
    for name, inode in confinement.namespaces.items():
        if f"[{inode}]" in os.readlink(f"/proc/self/ns/{name}"):
            shared.append(name)
    if shared:
        failures.append(f"namespaces shared with the host: {', '.join(shared)}")
    inside, outside, count = (int(part) for part in confinement.uid_map.split()[:3])
    if outside == 0:
        failures.append("root of the sandbox is root of the host")
    held = [name for name, value in confinement.capabilities.items() if int(value, 16)]
    if held:
        failures.append(f"capabilities held: {', '.join(held)}")
    if not confinement.no_new_privs or not confinement.seccomp_filters:
        failures.append("no_new_privs or the system call filter is missing")
    if brief:
        if not failures:
            say(f"{paint('isolated', '1;32')} as above")
        return failures
    say(paint("isolated", "1;32"))
    own = sorted(set(confinement.namespaces) - set(shared))
    say(f"  namespaces   {', '.join(own)}: its own, none shared with the host")
    say(f"  users        uid {inside} inside is uid {outside} outside, a range of {count}")
    say(
        f"  privileges   {len(confinement.capabilities) - len(held)} of "
        f"{len(confinement.capabilities)} capability sets empty; no_new_privs; system call "
        f"filters: {confinement.seccomp_filters}"
    )
    landlock = f"Landlock (ABI {confinement.landlock_abi})" if confinement.landlock_abi else "none"
    say(f"  files        {landlock}; of the host, only {kernel.cwd} is writable")
    say(f"  network      {'none but its own lo' if kernel.network == 'none' else kernel.network}")
    return failures


def tell_caps(kernel: Kernel, stats: Stats, *, brief: bool) -> None:
    """Print the limits in force with what was used."""
    limits = kernel.limits
    if brief:
        peak = format_size(stats.memory_peak_bytes)
        say(f"{paint('capped', '1;32')} as above; memory peak {peak}")
        return

    def size(value: int | None) -> str:
        return "not capped" if value is None else format_size(value)

    say(paint(f"capped (profile {kernel.profile})", "1;32"))
    say(f"  memory       {size(limits.memory_bytes)}; peak {size(stats.memory_peak_bytes)}")
    say(f"  swap         {size(limits.swap_bytes)}")
    say(f"  processors   {limits.cpus or 'not capped'}; {stats.cpu_usage_s:.1f} s used")
    say(f"  processes    {limits.pids or 'not capped'}; {stats.pids} now")
    say(f"  /dev/shm     {size(limits.shm_bytes)}")
    say(f"  /tmp         {size(limits.tmp_bytes)}")


def summarise(results: list[Result]) -> None:
    """The table at the end."""
    say()
    say(paint("== summary ".ljust(WIDTH, "="), "1"))
    say(f"{'notebook':28}{'cells':>6}{'first reply':>13}{'memory peak':>14}{'CPU':>9}   result")
    for result in results:
        peak = format_size(result.memory_peak_bytes) if result.memory_peak_bytes else "-"
        outcome = paint("FAILED", "31") if result.failures else paint("ok", "32")
        say(
            f"{result.name:28}{result.cells:>6}{result.first_reply_s:>11.2f} s"
            f"{peak:>14}{result.cpu_s:>7.1f} s   {outcome}"
        )


def main() -> int:
    """Run every notebook; the exit code."""
    try:
        client = prepare()
    except SandboxError as exc:
        say(paint(f"FAILED   {exc}", "31"))
        return 1
    results = [run_notebook(name, client, brief=name != NAMES[0]) for name in NAMES]
    summarise(results)
    ours = {result.kernel_id for result in results}
    left = [kernel.id for kernel in client.kernels() if kernel.id in ours]
    if left:
        say(paint(f"FAILED   sandboxes left behind: {', '.join(left)}", "31"))
    failed = any(result.failures for result in results) or bool(left)
    if not failed:
        say()
        say('Next: `make lab` opens JupyterLab with the kernel "Sandboxed Python".')
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

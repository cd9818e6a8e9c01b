"""Boots the machine under qemu, passes its output on, and ends it in time. Effectful."""

from __future__ import annotations

import os
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tests.vm.image import Image

__all__ = ["MachineError", "Outcome", "run_machine"]

MEMORY = "4G"
RESULTS_BYTES = 64 << 20
CONSOLE_TAIL_LINES = 40
# One, since with a second one every atomic operation is emulated as such, and a host of two
# processors has another machine for its second. "max" but for what Linux takes for a reason to
# copy and clear pages byte by byte (ERMS), or by one repeated instruction (families that are known
# to be good at it): an emulator is bad at both, and every fork and every exec clears pages.
PROCESSOR = "max,-erms,-la57,-xsave,-avx,-avx2,-pku,vendor=GenuineIntel,family=15,model=6"
# No mitigations: they guard against a processor's flaws, and this one is a program. A panic
# reboots, which is the end, unless boots are part of the tests (guest/run then notices). The journal
# is told as it is written, so that something is known of a machine that hangs.
KERNEL_ARGUMENTS = (
    "root=/dev/vda rw console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0 "
    "systemd.show_status=auto systemd.journald.forward_to_console=1"
)


class MachineError(Exception):
    """The machine gave no results; the message ends with its console's last lines."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the tests ended with, and the directory of what they left."""

    exit_code: int
    seconds: float


def run_machine(
    image: Image,
    payload: Path,
    results: Path,
    *,
    time_limit_s: float,
    on_output: Callable[[bytes], None],
    reboots: bool = False,
) -> Outcome:
    """Run the payload's tests to their end; fills `results`. Raises MachineError."""
    results.mkdir(parents=True, exist_ok=True)
    console = results / "console.txt"
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sandboxkernel-vm-") as scratch:
        out = Path(scratch) / "results.tar"
        with out.open("wb") as file:
            file.truncate(RESULTS_BYTES)
        process = subprocess.Popen(
            [*_command(image, payload, out, console), *([] if reboots else ["-no-reboot"])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            # Writes to the image go to a file of the machine's own, which qemu makes here.
            env={**os.environ, "TMPDIR": scratch},
        )
        assert process.stdout is not None
        reader = threading.Thread(target=_copy, args=(process.stdout, on_output))
        reader.start()
        try:
            process.wait(time_limit_s)
        except subprocess.TimeoutExpired:
            raise _error(f"did not end within {time_limit_s:g} s", console) from None
        finally:
            process.kill()
            process.wait()
            reader.join()
        try:
            with tarfile.open(out) as tar:
                tar.extractall(results, filter="data")
            exit_code = int((results / "exit-code").read_text())
        except (tarfile.TarError, FileNotFoundError, ValueError):
            raise _error("left no results", console) from None
    return Outcome(exit_code, time.monotonic() - began)


def _command(image: Image, payload: Path, out: Path, console: Path) -> list[str]:
    def disk(path: Path, *options: str) -> str:
        return ",".join([f"file={path}", "format=raw", "if=virtio", "cache=unsafe", *options])

    return [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config",
        "-display", "none",
        # Software emulation: nothing is asked of the processor, so it runs wherever qemu does.
        "-accel", "tcg,tb-size=512", "-cpu", PROCESSOR, "-smp", "1", "-m", MEMORY,
        "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", KERNEL_ARGUMENTS,
        "-drive", disk(image.disk, "snapshot=on"),
        "-drive", disk(payload, "readonly=on"),
        "-drive", disk(out),
        "-device", "virtio-rng-pci",
        "-serial", f"file:{console}", "-serial", "stdio",
    ]  # fmt: skip


def _copy(stream: BinaryIO, on_output: Callable[[bytes], None]) -> None:
    while chunk := stream.read1(65536):  # type: ignore[attr-defined]  # a BufferedReader
        on_output(chunk)


def _error(what: str, console: Path) -> MachineError:
    text = console.read_text(errors="replace") if console.exists() else ""
    tail = "\n".join(text.splitlines()[-CONSOLE_TAIL_LINES:])
    return MachineError(f"the virtual machine {what}; its console ends with:\n{tail}")

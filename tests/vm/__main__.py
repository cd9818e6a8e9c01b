"""`python -m tests.vm [pytest arguments]`: the reviewed selection, or what is named.

The selection is run by two machines side by side, each with a part of it: a test in an emulated
machine is slow, but waits as often as it computes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

from tests.vm.image import ensure_image
from tests.vm.machine import MachineError, run_machine
from tests.vm.payload import Phase, build_packages, write_payload
from tests.vm.selection import BOOTS, MACHINES, between_boots
from tests.vm.selection import arguments as selected

ROOT = Path(__file__).resolve().parents[2]
SLOWDOWN = 10  # of an emulated processor, for the tests' own deadlines
TEST_TIMEOUT_S = 400
BOOT_S = 120
PROGRAMS = ("mmdebstrap", "mke2fs", "qemu-system-x86_64")


def main() -> None:
    """Build, boot, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--results", type=Path, default=Path("vm-results"))
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="2400; of --all 5400")
    parser.add_argument("--all", action="store_true", help="also what takes minutes each")
    parser.add_argument(
        "--machine", choices=MACHINES, help="this one's part of the selection alone"
    )
    options, rest = parser.parse_known_args()
    time_limit_s = options.time_limit or (5400 if options.all else 2400)
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing or os.geteuid() != 0:
        parser.error(f"needs {', '.join(missing) or 'root'}: run `make test-vm` as root")
    os.environ["PATH"] = _path()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the machine ends with us
    image = ensure_image()
    if options.results.exists():
        shutil.rmtree(options.results)
    if not options.machine and not any(_is_test(argument) for argument in rest):
        sys.exit(_run_all(options.results, sys.argv[1:]))
    environment = {
        "SANDBOXKERNEL_TEST_VM": "1",
        "SANDBOXKERNEL_TESTS_MUST_RUN": "1",
        "SANDBOXKERNEL_TEST_SLOWDOWN": str(SLOWDOWN),
        "TIME_LIMIT": str(int(time_limit_s - BOOT_S)),
        "PYTHONDONTWRITEBYTECODE": "1",
        # Of packages with a plugin pytest rewrites, and compiles, every module: minutes here.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_PLUGINS": "pytest_timeout",
        # One takes a minute: those of the selection are what tests/vm/test_service.py has.
        "SANDBOXKERNEL_TEST_ZYGOTES": str(int(options.all or any(map(_is_test, rest)))),
        "PATH": "/opt/jupyter/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
    }
    phases = _phases(rest, options.machine, long=options.all)
    with tempfile.TemporaryDirectory(prefix="sandboxkernel-vm-") as scratch:
        payload = Path(scratch) / "payload.tar"
        wanted = any(argument.startswith("tests/vm/test_package") for argument in rest)
        packages = build_packages(Path(scratch)) if wanted else []
        write_payload(payload, phases, environment, packages)
        try:
            outcome = run_machine(
                image, payload, options.results,
                time_limit_s=time_limit_s, on_output=_pass_on,
                reboots=any(phase.then != "go on" for phase in phases),
            )  # fmt: skip
        except MachineError as exc:
            sys.exit(str(exc))
    print(f"vm: {outcome.seconds:.0f} s in all; results in {options.results}")
    sys.exit(outcome.exit_code)


def _run_all(results: Path, arguments: list[str]) -> int:
    """Every machine's part, side by side; the first exit status that is not 0."""
    began = time.monotonic()
    running: list[tuple[subprocess.Popen[str], threading.Thread]] = []
    try:
        for name in MACHINES:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.vm", *arguments,
                 "--machine", name, "--results", str(results / name)],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            )  # fmt: skip
            assert process.stdout is not None
            reader = threading.Thread(target=_pass_lines_on, args=(name, process.stdout))
            reader.start()
            running.append((process, reader))
        codes = [process.wait() for process, _ in running]
    finally:
        for process, reader in running:
            process.terminate()
            process.wait()
            reader.join()
    print(f"vm: both machines: {time.monotonic() - began:.0f} s")
    return next((code for code in codes if code), 0)


def _pass_lines_on(name: str, stream: IO[str]) -> None:
    for line in stream:
        print(f"{name}: {line.rstrip()}", flush=True)


def _is_test(argument: str) -> bool:
    return (ROOT / argument.partition("::")[0]).exists()


def _phases(rest: list[str], machine: str | None, *, long: bool) -> list[Phase]:
    """What is named, or else a machine's part of the selection; what takes several boots, is last."""
    common = [f"--timeout={TEST_TIMEOUT_S}", "--color=no"]
    files = [item for item in rest if _is_test(item)]
    options = [item for item in rest if item not in files]
    named = [item for item in files if item not in BOOTS]
    if not files:
        named = selected(machine or "", long=long)
    phases = [Phase([*common, *options, *named])] if named else []
    boots = set(files) & BOOTS.keys() if files else set(MACHINES[machine or ""]) & BOOTS.keys()
    phases += [
        Phase([*common, *options, test], then)
        for test, then in between_boots(boots, long=long or bool(files))
    ]
    return phases


def _path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def _pass_on(chunk: bytes) -> None:
    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

"""`python -m tests.vm [pytest arguments]`: the reviewed selection, or what is named."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tests.vm.image import ensure_image
from tests.vm.machine import MachineError, run_machine
from tests.vm.payload import Phase, build_packages, write_payload
from tests.vm.selection import BOOTS, between_boots
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
    parser.add_argument("--time-limit", type=float, default=2400, metavar="SECONDS")
    options, rest = parser.parse_known_args()
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing or os.geteuid() != 0:
        parser.error(f"needs {', '.join(missing) or 'root'}: run `make test-vm` as root")
    os.environ["PATH"] = _path()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the machine ends with us
    image = ensure_image()
    if options.results.exists():
        shutil.rmtree(options.results)
    environment = {
        "SANDBOXKERNEL_TEST_VM": "1",
        "SANDBOXKERNEL_TESTS_MUST_RUN": "1",
        "SANDBOXKERNEL_TEST_SLOWDOWN": str(SLOWDOWN),
        "TIME_LIMIT": str(int(options.time_limit - BOOT_S)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": "/opt/jupyter/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
    }
    phases = _phases(rest)
    with tempfile.TemporaryDirectory(prefix="sandboxkernel-vm-") as scratch:
        payload = Path(scratch) / "payload.tar"
        wanted = any(argument.startswith("tests/vm/test_package") for argument in rest)
        packages = build_packages(Path(scratch)) if wanted else []
        write_payload(payload, phases, environment, packages)
        try:
            outcome = run_machine(
                image, payload, options.results,
                time_limit_s=options.time_limit, on_output=_pass_on,
                reboots=any(phase.then != "go on" for phase in phases),
            )  # fmt: skip
        except MachineError as exc:
            sys.exit(str(exc))
    print(f"vm: {outcome.seconds:.0f} s in all; results in {options.results}")
    sys.exit(outcome.exit_code)


def _phases(rest: list[str]) -> list[Phase]:
    """What is named, or else the whole selection; what takes several boots, comes last."""
    common = [f"--timeout={TEST_TIMEOUT_S}", "--color=no", "-p", "no:cacheprovider"]
    files = [item for item in rest if (ROOT / item.partition("::")[0]).exists()]
    options = [item for item in rest if item not in files]
    named = [item for item in files if item not in BOOTS] if files else selected()
    phases = [Phase([*common, *options, *named])] if named else []
    if not files or set(files) & BOOTS.keys():
        phases += [Phase([*common, *options, test], then) for test, then in between_boots()]
    return phases


def _path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def _pass_on(chunk: bytes) -> None:
    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

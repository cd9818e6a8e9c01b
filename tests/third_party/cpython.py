"""CPython's own tests in a sandbox and outside, file by file and case by case.

Both run the same files: those of the image, with the standard library's tests in a layer. Outside is
a folder with the image, entered with chroot(8) as the same uid: PID and mount namespaces of its own
so that nothing is left behind, but the host's network, no filter, no Landlock and no caps.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from sandboxkernel.daemon.plan import python_of
from sandboxkernel.images.hostpaths import plan_host_tree
from sandboxkernel.images.interpreter import find_interpreter
from sandboxkernel.images.store import StoredImage
from sandboxkernel.images.treeplan import TreePlan
from sandboxkernel.models import KernelCreate
from tests.support import RunningDaemon, running_daemon
from tests.third_party.expected import EXPECTED, IGNORED, NOT_RUN, Expected
from tests.third_party.tools import Result, image_with, say, with_image

__all__ = ["Outcomes", "bench", "compare", "measure", "modules", "outcomes", "result"]

WORK = "/srv/sandboxkernel-cpython"
CONFIG = """
c.SandboxKernelDaemon.profiles = {"default": {"ephemeral": True, "zygote": "off"}}
"""
TIMEOUT_S, GIVE_UP_S = 240, 3000.0
PIECES = 8
JOBS = 2
UID = 1000
_LINE = re.compile(r"\[ *\d+/\d+(?:/\d+)?\] (test\S+) (.*)")
OUTSIDE = """
set -eu
mount --make-rprivate /
mount -t overlay -o lowerdir={lower},upperdir={upper},workdir={scratch} none {root}
mount -t proc proc {root}/proc
mount --rbind /dev {root}/dev
mount --rbind /sys {root}/sys
mount -t tmpfs -o mode=1777,size=1g none {root}/tmp
mkdir -p {root}{work}
mount --bind {work} {root}{work}
exec chroot --userspec={uid}:{uid} --groups= {root} sh -c {command}
"""


@dataclass
class Outcomes:
    """What became of files and of cases: passed, failed, skipped."""

    files: dict[str, str] = field(default_factory=dict)
    cases: dict[str, str] = field(default_factory=dict)

    def add(self, other: Outcomes) -> None:
        """Take what another run says of its files."""
        self.files |= other.files
        self.cases |= other.cases


@dataclass(frozen=True)
class Difference:
    """A file or case with another outcome inside; `reason` is empty where nobody has given one."""

    name: str
    outside: str
    inside: str
    reason: str


# --- what runs where


class Bench:
    """Runs lists of test files in a sandbox and outside."""

    def __init__(self, image: StoredImage, daemon: RunningDaemon) -> None:
        self._image, self._daemon = image, daemon
        self._python = python_of(image.labels)
        self._count = 0

    def run(self, place: str, names: Sequence[str]) -> Outcomes:
        """Outcomes of these files; `place` is "inside" or "outside"."""
        self._count += 1
        base = f"{WORK}/{place}/{self._count}"
        python = [self._python, "-m", "test", f"-j{JOBS}", f"--timeout={TIMEOUT_S}", "--tempdir=/tmp",
                  f"--junit-xml={base}.xml", *(f"--ignore={pattern}" for pattern in IGNORED), *names]  # fmt: skip
        env = [
            "env",
            "-i",
            "PATH=/usr/local/bin:/usr/bin:/bin",
            "HOME=/home/sandbox",
            "LANG=C.UTF-8",
        ]
        command = f"cd /tmp; exec {shlex.join([*env, *python])} >{base}.txt 2>&1 </dev/null"
        began = time.monotonic()
        (self._inside if place == "inside" else self._outside)(command)
        say(f"{place}: {len(names)} files, {time.monotonic() - began:.0f} s")
        return outcomes(_text(f"{base}.txt"), _text(f"{base}.xml"))

    def _inside(self, command: str) -> None:
        client = self._daemon.client()
        request = KernelCreate(
            kernel_id=f"cpython-{time.monotonic_ns()}", argv=["sh", "-c", command], work_folder=WORK
        )
        kernel = client.create(request)
        deadline = time.monotonic() + GIVE_UP_S
        while (shown := client.inspect(kernel.id)).exit is None and time.monotonic() < deadline:
            time.sleep(0.5)
        if shown.exit is None or shown.exit.reason != "exited":
            say(f"inside: {shown.exit}")
        client.remove(kernel.id)

    def _outside(self, command: str) -> None:
        with tempfile.TemporaryDirectory(prefix="outside-", dir=WORK) as folder:
            for name in ("root", "upper", "scratch"):
                os.mkdir(f"{folder}/{name}")
            os.chmod(f"{folder}/upper", 0o755)
            script = OUTSIDE.format(
                lower=":".join(str(path) for path in reversed(self._image.layer_dirs)),
                upper=f"{folder}/upper", scratch=f"{folder}/scratch", root=f"{folder}/root",
                work=WORK, uid=UID, command=shlex.quote(command),
            )  # fmt: skip
            subprocess.run(
                ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script],
                stdin=subprocess.DEVNULL, timeout=GIVE_UP_S, check=False,
            )  # fmt: skip


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    """With an image that has the standard library's tests, and a daemon."""
    for place, owner in (("inside", 0), ("outside", UID)):
        os.makedirs(f"{WORK}/{place}", exist_ok=True)
        os.chown(f"{WORK}/{place}", owner, owner)
    try:
        with (
            image_with("chroot", more=_plan_tests) as image,
            running_daemon(CONFIG + with_image(image)) as daemon,
        ):
            yield Bench(image, daemon)
    finally:
        shutil.rmtree(WORK, ignore_errors=True)


def _plan_tests(plan: TreePlan) -> None:
    """The whole standard library, with what the host image leaves out of it."""
    python = find_interpreter()
    for folder in dict.fromkeys((python.stdlib, python.platstdlib)):
        plan_host_tree(
            plan, folder, folder,
            skip_directories=frozenset({"__pycache__", "site-packages", "dist-packages"}),
            skip_suffixes=(".a", ".o", ".exe", ".pyc"), skip_prefixes=("_tkinter",),
        )  # fmt: skip


def modules() -> list[str]:
    """The test files that run."""
    python = find_interpreter()
    shown = subprocess.run(
        [python.executable, "-m", "test", "--list-tests"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in shown.stdout.split() if name not in NOT_RUN]


# --- what they say


def outcomes(text: str, xml: str) -> Outcomes:
    """Of regrtest's output and its JUnit file. Pure."""
    found = Outcomes()
    for name, said in _LINE.findall(text):
        word = said.split(maxsplit=1)[0]
        if "env changed" in said:
            word = "passed"
        found.files[name] = {"run": "skipped", "timed": "failed", "crashed": "failed",
                             "worker": "failed"}.get(word, word)  # fmt: skip
    if xml:
        for case in ElementTree.fromstring(xml).iter("testcase"):
            name = case.get("name", "")
            if case.find("failure") is not None or case.find("error") is not None:
                said = "failed"
            elif case.find("skipped") is not None or case.get("result") == "skipped":
                said = "skipped"
            else:
                said = "passed"
            # A case with subtests is there more than once: its worst outcome is its own.
            if found.cases.get(name) != "failed":
                found.cases[name] = said
    return found


def compare(outside: Outcomes, inside: Outcomes, expected: Sequence[Expected]) -> list[Difference]:
    """Files and cases with another outcome. A file whose cases say why is not told. Pure."""
    found = []
    for name in sorted(set(outside.cases) | set(inside.cases)):
        there, here = (where.cases.get(name, "absent") for where in (outside, inside))
        if there != here:
            found.append(Difference(name, there, here, _reason(name, expected)))
    for name in sorted(set(outside.files) | set(inside.files)):
        there, here = (where.files.get(name, "absent") for where in (outside, inside))
        if there != here and not any(_of(each.name, name) for each in found):
            found.append(Difference(name, there, here, _reason(name, expected)))
    return found


def _of(case: str, file: str) -> bool:
    return case.startswith((f"test.{file}.", f"{file}.")) or f".{file}." in case


def _reason(name: str, expected: Sequence[Expected]) -> str:
    return next((each.reason for each in expected if re.search(each.pattern, name)), "")


def measure() -> list[Result]:
    """Run both, twice where they differ."""
    names = modules()
    with bench() as where:
        outside, inside = Outcomes(), Outcomes()
        for piece in range(PIECES):
            inside.add(where.run("inside", names[piece::PIECES]))
            outside.add(where.run("outside", names[piece::PIECES]))
        again = differing_files(outside, inside)
        second = (where.run("outside", again), where.run("inside", again)) if again else None
    return [result(outside, inside, second)]


def differing_files(outside: Outcomes, inside: Outcomes) -> list[str]:
    """Files in which something differs."""
    differing = [each.name for each in compare(outside, inside, ())]
    files = sorted(set(outside.files) | set(inside.files))
    return [file for file in files if any(name == file or _of(name, file) for name in differing)]


def result(outside: Outcomes, inside: Outcomes, second: tuple[Outcomes, Outcomes] | None) -> Result:
    """The table; what differed once only is told as unsteady."""
    first = compare(outside, inside, EXPECTED)
    steady = {each.name for each in compare(*second, EXPECTED)} if second else set()
    real = [each for each in first if each.name in steady]
    unsteady = [each for each in first if each.name not in steady]
    made = Result(
        "CPython's test suite",
        f"Python {find_interpreter().full_version.split()[0]}, its own tests",
        f"python -m test -j{JOBS}, no extra resources, in a cold sandbox with the default limits, and "
        "outside: the same files entered with chroot as the same uid, with the host's network, no "
        "filter, no Landlock and no limits",
        ("", "passed", "failed", "skipped"),
        details={"differences": [[d.name, d.outside, d.inside, d.reason] for d in first],
                 "files": {"outside": outside.files, "inside": inside.files}},
    )  # fmt: skip
    for what in ("files", "cases"):
        for place, each in (("outside", outside), ("inside", inside)):
            counts = collections.Counter(getattr(each, what).values())
            cells = [str(counts[kind]) for kind in ("passed", "failed", "skipped")]
            made.rows.append([f"{what}, {place}", *cells])
    made.notes.append(_reasons(real))
    both = [
        name for name, said in outside.files.items() if said == "failed" == inside.files.get(name)
    ]
    made.notes.append(
        f"Files in which something fails in both: {', '.join(sorted(both)) or 'none'}."
    )
    if unsteady:
        told = ", ".join(f"{each.name} ({each.outside}, {each.inside})" for each in unsteady)
        made.notes.append(f"Unsteady, the same in a second run: {told}.")
    made.notes += [f"Not run: {name}: {reason}." for name, reason in {**NOT_RUN, **IGNORED}.items()]
    made.problems += [
        f"{each.name}: {each.outside} outside, {each.inside} inside"
        for each in real if not each.reason
    ]  # fmt: skip
    if len(outside.cases) < 1000 or len(inside.cases) < 1000:
        made.problems.append(f"few cases: {len(outside.cases)} outside, {len(inside.cases)} inside")
    return made


def _reasons(differences: Sequence[Difference]) -> str:
    by_reason: Mapping[str, list[Difference]] = collections.defaultdict(list)
    for each in differences:
        by_reason[each.reason or "nobody has said why"].append(each)
    lines = [
        f"* {reason}: {len(found)} ({', '.join(sorted({_short(d.name) for d in found}))})"
        for reason, found in sorted(by_reason.items(), key=lambda item: -len(item[1]))
    ]
    return "Differences, each with its reason:\n\n" + "\n".join(lines or ["* none"])


def _short(name: str) -> str:
    return ".".join(name.removeprefix("test.").split(".")[:2])


def _text(path: str) -> str:
    return Path(path).read_text(errors="replace") if os.path.exists(path) else ""

"""Processes that enter a hostile container, and the directory in which a program starts."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxruntime.handover import HELLO, Payload, encode_payload
from sandboxruntime.steps import Step
from tests.benchmarks.containers import merged_rootfs
from tests.escape.attacks.canaries import canary_directory
from tests.escape.attacks.model import NO_FILTER
from tests.escape.attacks.views import HANDED_ON, KEEP_OPEN, LEAK, PLANTED_FD
from tests.harness import Attempt, Harness, harness, host_image, make_spec
from tests.integration.test_bundles import OURS, runtime
from tests.support import DEADLINE_S, SHARED_DATA


def payload(*argv: str, cwd: str = "/") -> bytes:
    return encode_payload(Payload(argv=list(argv), env={"PATH": "/usr/bin:/bin"}, cwd=cwd))


def start_in(attempt: Attempt, cwd: str, *argv: str) -> int:
    """Hand over a program that starts in a directory; the errno of the refusal, or 0."""
    attempt._hand.sendall(payload(*argv, cwd=cwd))
    answer = attempt._hand.recv(65536)
    return int(json.loads(answer)["errno"]) if answer else 0


# The guard's own error, or libc's, which looks for the name of a directory that Linux cannot name.
OUTSIDE = {errno.EXDEV, errno.EACCES, errno.ENOENT}
NO_GUARD = """
import os
os.getcwd = lambda: "/"
"""
LOOK_ABOVE = """
import os
print(os.path.exists({path!r}.lstrip("/")))
"""


@pytest.mark.parametrize(
    ("lacking", "answers"),
    [("", {errno.ENOENT}), (KEEP_OPEN, {errno.ENOENT}), (HANDED_ON, {errno.ENOENT}),
     (KEEP_OPEN + HANDED_ON, OUTSIDE), (KEEP_OPEN + HANDED_ON + NO_GUARD, {0})],
    ids=["nothing", "descriptors closed", "descriptors closed at the hand-over",
         "descriptors closed, and again at the hand-over",
         "descriptors closed, and again, and the directory looked at"],
)  # fmt: skip
def test_a_directory_of_the_launchers_is_none_to_work_in(lacking: str, answers: set[int]) -> None:
    """CVE-2024-21626: where a descriptor of the host's root was left open, its number is asked for.

    Without all three defences the program works outside of its root, and finds a file there.
    """
    with (
        harness(patch=LEAK + lacking) as running,
        make_spec() as spec,
        canary_directory(None) as values,
        running.container(spec) as attempt,
    ):
        program = LOOK_ABOVE.format(**values)
        asked = f"/proc/self/fd/{PLANTED_FD}"
        assert start_in(attempt, asked, "python3", "-Ic", program) in answers
        _, output = attempt.finish()
    assert output.strip() == ("True" if 0 in answers else "")


@pytest.mark.parametrize("number", [*range(3, 12), 64, 100, 200])
def test_no_descriptor_is_a_directory_to_work_in(confined: Harness, number: int) -> None:
    with make_spec() as spec, confined.container(spec) as attempt:
        refusal = start_in(attempt, f"/proc/self/fd/{number}", "true")
        # The hand-over's own socket is there, until the program is executed.
        assert refusal == (errno.ENOTDIR if number == 200 else errno.ENOENT)
        attempt.finish()


class Joined:
    """A process that has entered a container; `run` hands a program over to it."""

    def __init__(self, running: Harness, attempt: Attempt) -> None:
        self._running = running
        self._hand, theirs = socket.socketpair()
        self._hand.settimeout(DEADLINE_S)
        self._log_fd, log_write = os.pipe()
        try:
            reply = running.request(
                "exec", [theirs.fileno(), log_write], container_id=attempt.spec.container_id
            )
        finally:
            theirs.close()
            os.close(log_write)
        self._exec_id = reply["exec_id"]

    def run(self, *argv: str) -> str:
        """The output of a program, and before it what the tests' launcher had to say."""
        assert self._hand.recv(len(HELLO)) == HELLO
        self._hand.sendall(payload(*argv))
        assert self._hand.recv(65536) == b""
        text = b""
        while chunk := os.read(self._log_fd, 65536):
            text += chunk
        event = self._running.next_event()
        assert event["exec_id"] == self._exec_id, event
        assert event["wait_status"] == 0, text
        return text.decode()

    def close(self) -> None:
        self._hand.close()
        os.close(self._log_fd)


@contextlib.contextmanager
def joined(running: Harness, attempt: Attempt) -> Iterator[Joined]:
    made = Joined(running, attempt)
    try:
        yield made
    finally:
        made.close()


# The joining process stands still after a step until the container's program has looked at it.
HOLD = """
def hold(step, dumpable):
    act = init.JOIN_STEPS[step]
    def held(context):
        import os, time
        act(context)
        if dumpable:
            syscalls.prctl(4, 1)
        os.close(os.open("/tmp/held", os.O_CREAT))
        deadline = time.monotonic() + 8  # the launcher waits for ten seconds
        while not os.path.exists("/tmp/looked") and time.monotonic() < deadline:
            time.sleep(0.001)
    init.JOIN_STEPS[step] = held
hold(init.Step({step!r}), {dumpable!r})
"""
LOOKS = """
import ctypes, os, time
assert open("/proc/self/uid_map").read().split()[1] != "0", "not confined"
libc = ctypes.CDLL(None, use_errno=True)
def call(*numbers):
    result = libc.syscall(*map(ctypes.c_long, numbers))
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result
def seize():
    child = os.fork()
    if child == 0:  # whose end lets go of it again
        try:
            call(101, 0x4206, pid, 0, 0)  # ptrace(PTRACE_SEIZE)
        except OSError:
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise PermissionError
while not os.path.exists("/tmp/held"):
    time.sleep(0.001)
(pid,) = {int(n) for n in os.listdir("/proc") if n.isdigit()} - {1, os.getpid()}
looks = {
    "memory": lambda: os.open(f"/proc/{pid}/mem", os.O_RDWR),
    "environment": lambda: os.open(f"/proc/{pid}/environ", os.O_RDONLY),
    "program": lambda: os.readlink(f"/proc/{pid}/exe"),
    "root": lambda: os.listdir(f"/proc/{pid}/root/"),
    "working directory": lambda: os.listdir(f"/proc/{pid}/cwd/"),
    "descriptors": lambda: os.listdir(f"/proc/{pid}/fd"),
    "memory map": lambda: os.open(f"/proc/{pid}/maps", os.O_RDONLY),
    "registers": seize,
    "take a descriptor": lambda: call(438, os.pidfd_open(pid), 0, 0),  # pidfd_getfd
}
found = []
for name, look in looks.items():
    try:
        look()
    except (PermissionError, ProcessLookupError):
        continue
    found.append(name)
os.close(os.open("/tmp/looked", os.O_CREAT))
print(found)
while os.path.exists(f"/proc/{pid}"):  # whose end would be this one's otherwise
    time.sleep(0.001)
"""
EVERYTHING = [
    "memory", "environment", "program", "root", "working directory", "descriptors", "memory map",
    "registers", "take a descriptor",
]  # fmt: skip


@pytest.mark.parametrize(
    ("step", "dumpable", "reached"),
    [(Step.RLIMITS, False, []), (Step.RLIMITS, True, []),
     (Step.NO_NEW_PRIVS, False, []), (Step.NO_NEW_PRIVS, True, EVERYTHING)],
    ids=["as inside root", "as inside root, dumpable", "confined", "confined, dumpable"],
)  # fmt: skip
def test_a_process_that_enters_cannot_be_looked_into(
    step: Step, dumpable: bool, reached: list[str]
) -> None:
    """CVE-2016-9962: until its exec it is a copy of the launcher. Without the filter, which would
    refuse the two system calls to anybody; the control is dumpable."""
    patch = HOLD.format(step=step.value, dumpable=dumpable)
    with (
        harness(NO_FILTER.steps, patch=patch) as running,
        make_spec() as spec,
        running.container(spec) as attempt,
    ):
        attempt.start("python3", "-Ic", LOOKS)
        with joined(running, attempt) as guest:
            guest.run("true")
        status, output = attempt.finish()
    assert (status, output.strip()) == (0, str(reached))


# Tells what Python opens and imports from the moment at which the container's files are in view.
TELL = """
import contextlib, os, sys
told = []
def tell(event, arguments):
    if told and event in ("open", "import", "os.listdir", "os.scandir", "ctypes.dlopen"):
        with contextlib.suppress(OSError):  # the waiting parent has closed it
            os.write(2, f"{event} {arguments[0]}\\n".encode())
sys.addaudithook(tell)
enter, child = container.syscalls.setns, container._joining_child
def joining(context, pidfd):
    os.dup2(context.log_fd, 2)
    child(context, pidfd)
def entering(fd, kind):
    enter(fd, kind)
    told.append(True)
container._joining_child, container.syscalls.setns = joining, entering
"""
IMPORTS = """
limit = init.JOIN_STEPS[init.Step.RLIMITS]
def limiting(context):
    with contextlib.suppress(ImportError):
        import colorsys
    limit(context)
init.JOIN_STEPS[init.Step.RLIMITS] = limiting
"""


@pytest.mark.parametrize("imports", [False, True])
def test_a_process_that_enters_reads_no_file_of_the_image(imports: bool) -> None:
    """CVE-2019-14271, CVE-2022-27650: users, libraries, modules of a hostile image, by a process
    that still has power. The control imports a module, late."""
    with (
        harness(patch=TELL + IMPORTS * imports) as running,
        make_spec() as spec,
        running.container(spec) as attempt,
    ):
        attempt.start("sleep", "600")
        with joined(running, attempt) as guest:
            told = guest.run("true").splitlines()
    opened = [line.removeprefix("open ") for line in told if line.startswith("open ")]
    others = [line for line in told if not line.startswith("open ")]
    assert "/dev/null" in opened
    own = {"/", "/dev", "/dev/null", "/proc", *spec.writable}  # Landlock's rules, and our mounts
    foreign = [path for path in opened if path not in own and not path.startswith("/proc/")]
    assert [os.path.basename(path).split(".")[0] for path in foreign] == ["colorsys"] * imports
    assert others[:1] == ["import colorsys"] * imports


@pytest.mark.parametrize("guarded", [True, False])
def test_a_bundle_cannot_start_in_a_directory_that_it_was_handed(
    tmp_path: Path, guarded: bool
) -> None:
    """CVE-2024-21626 by the OCI command line, where a config may ask for descriptors."""
    image = host_image()
    rootfs = merged_rootfs(tuple(image.layer_dirs), SHARED_DATA / "bundles" / "joining")
    code = "import os, sys; from sandboxruntime.bundles import command; "
    code += "" if guarded else "os.getcwd = lambda: '/'; "  # the control
    program = (sys.executable, "-c", code + "sys.exit(command.main())")
    with (
        canary_directory(None) as values,
        runtime(OURS, tmp_path / "ours", rootfs) as made,
        contextlib.ExitStack() as stack,
    ):
        folder = os.open(Path(values["path"]).parent, os.O_RDONLY)
        stack.callback(os.close, folder)
        made.config["process"]["cwd"] = "/proc/self/fd/3"
        made.program("cat", "file")
        if guarded:
            with pytest.raises(subprocess.CalledProcessError):
                made.create("--preserve-fds", "1", third=folder, by=program)
            assert "credentials" in made.output
            return
        made.create("--preserve-fds", "1", third=folder, by=program)
        made("start", made.id)
        made.stopped()
        assert made.output == "canary"

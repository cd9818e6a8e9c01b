"""The host's processes and sockets, from a sandbox: out of reach, and where they would not be."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxruntime import landlock
from sandboxruntime.steps import Step
from tests.escape.attacks.views import HOST_NETWORK
from tests.harness import Attempt, Harness, harness, make_spec
from tests.support import DEADLINE_S, wait_until

# Nobody's but the one sandbox's of this file: a signal to everybody who has the sandbox's user
# reaches what the test made, and nothing else on the host.
OWN_IDS = 0x6E000000
SIGNAL_ALL = """
import os, signal
assert open("/proc/self/uid_map").read().split()[1] != "0", "not confined"
seen = sorted({int(n) for n in os.listdir("/proc") if n.isdigit()} - {1, os.getpid()})
answers = []
for pid in (*(seen or [VICTIM]), -1):
    try:
        os.kill(pid, signal.SIGTERM)
        answers.append("signalled")
    except OSError as error:
        answers.append(error.strerror)
print(seen != [], *answers, sep="|", flush=True)
signal.pause()  # its end would be everybody's in its PID namespace
"""


@contextlib.contextmanager
def victim(inside: Attempt | None) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host's with the sandbox's user, in the sandbox's PID namespace or not."""
    user = str(OWN_IDS + 1000)
    enter = ["nsenter", "--pid", f"--target={inside.pid}"] if inside is not None else []
    process = subprocess.Popen(
        [*enter, "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "sleep", "600"]
    )

    def ready() -> bool:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        pid = children[0] if children else process.pid
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        return words == b"sleep\x00600\x00" and bool(children) == bool(enter)

    try:
        wait_until(ready, what="the victim is there")
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("together", "steps", "stopped_by"),
    [(False, (), "PID namespace"),
     (False, (Step.LANDLOCK, Step.SECCOMP), "PID namespace"),
     (True, (), "Landlock"),
     (True, (Step.LANDLOCK,), "")],
    ids=["nothing", "Landlock, the filter", "the PID namespace", "the PID namespace, Landlock"],
)  # fmt: skip
def test_a_process_of_the_hosts_cannot_be_signalled(
    together: bool, steps: tuple[Step, ...], stopped_by: str
) -> None:
    """By its pid, and by kill(-1). The id without a namespace of its own is the sandbox's."""
    with (
        harness(steps) as running,
        make_spec(id_base=OWN_IDS) as spec,
        running.container(spec) as attempt,
        victim(attempt if together else None) as process,
    ):
        attempt.start("python3", "-Ic", SIGNAL_ALL.replace("VICTIM", str(process.pid)))
        seen, by_pid, by_all = attempt.read_line().split("|")
        assert seen == str(together)
        if stopped_by == "PID namespace":
            assert (by_pid, by_all) == (os.strerror(errno.ESRCH),) * 2
        elif stopped_by and landlock.abi_version() >= 6:  # the first with scopes
            assert by_pid == os.strerror(errno.EPERM)  # of kill(-1) Linux does not tell it
        else:
            assert by_pid == "signalled"
            # nsenter(1) ends as what it has executed: by the same signal.
            assert process.wait(DEADLINE_S) == -signal.SIGTERM
            return
        assert process.poll() is None


SEARCH = """
import os, socket, stat
found = []
for folder, names, files in os.walk("/"):
    if folder == "/":
        names.remove("proc")
    for name in files:
        path = os.path.join(folder, name)
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            continue
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
        found.append(path)
with open("/proc/net/unix") as table:
    named = [line.split(maxsplit=7)[7].strip() for line in table if len(line.split()) > 7]
print(found, named[1:], sep="|")  # without the heading
"""


@pytest.fixture
def listener() -> Iterator[Path]:
    """A socket of the host's to which everybody may connect, and one without a file beside it."""
    folder = Path(tempfile.mkdtemp(prefix="sandboxkernel-canary-", dir="/srv"))
    folder.chmod(0o755)
    path = folder / "socket"
    with socket.socket(socket.AF_UNIX) as named, socket.socket(socket.AF_UNIX) as abstract:
        named.bind(str(path))
        path.chmod(0o777)
        named.listen()
        abstract.bind(f"\0{path}")
        abstract.listen()
        yield path
    shutil.rmtree(folder)


def search(running: Harness, work: Path | None = None) -> tuple[str, str]:
    with make_spec(work=work) as spec, running.container(spec) as attempt:
        status, output = attempt.run("python3", "-Ic", SEARCH)
    assert status == 0, output
    files, names = output.strip().split("|")
    return files, names


def test_no_socket_of_the_hosts_is_found(confined: Harness, listener: Path) -> None:
    """In no folder, and by no name. The controls: a folder that holds one, the host's network."""
    assert search(confined) == ("[]", "[]")
    files, names = search(confined, listener.parent)
    assert files == f"['{listener}']" and names in ("[]", files)  # its end of the connection
    with harness(patch=HOST_NETWORK) as exposed:
        files, names = search(exposed)
    assert files == "[]"
    assert f"'@{listener}'" in names and f"'{listener}'" in names


MAKES = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
for folder in ("/dev/shm", "/dev/mqueue", "/tmp", "/var/tmp"):
    os.makedirs(folder, exist_ok=True)
    os.close(os.open(folder + "/canary", os.O_CREAT | os.O_RDWR, 0o666))
assert libc.shmget(KEY, 4096, 0o1666) >= 0
assert libc.semget(KEY, 1, 0o1666) >= 0
assert libc.msgget(KEY, 0o1666) >= 0
listener = socket.socket(socket.AF_UNIX)
listener.bind("\\0canary")
listener.listen()
port = socket.create_server(("127.0.0.1", 7654))
"""
LOOKS = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def connects(family, address):
    with socket.socket(family) as client:
        return client.connect_ex(address) == 0
found = [folder for folder in ("/dev/shm", "/dev/mqueue", "/tmp") if os.path.exists(folder + "/canary")]
found += [name for name, id in (("shm", libc.shmget(KEY, 0, 0)), ("sem", libc.semget(KEY, 0, 0)),
                                ("msg", libc.msgget(KEY, 0))) if id >= 0]
found += [name for name, family, address in (("abstract", socket.AF_UNIX, "\\0canary"),
                                             ("port", socket.AF_INET, ("127.0.0.1", 7654)))
          if connects(family, address)]
print(found, flush=True)
"""
WAITS = "import signal; signal.pause()\n"


def test_what_one_sandbox_makes_another_of_its_user_does_not_find(confined: Harness) -> None:
    """Names of memory, queues, files, sockets and ports. The control is the one that made them."""
    key = "KEY = 0x5afe01\n"
    with (
        make_spec() as one, confined.container(one) as maker,
        make_spec() as two, confined.container(two) as other,
    ):  # fmt: skip
        maker.start("python3", "-Ic", key + MAKES + LOOKS + WAITS)
        everything = ["/dev/shm", "/dev/mqueue", "/tmp", "shm", "sem", "msg", "abstract", "port"]
        assert maker.read_line() == str(everything)
        _, output = other.run("python3", "-Ic", key + LOOKS)
    assert output.strip() == "[]"

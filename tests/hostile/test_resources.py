"""Nothing left: disk, names, descriptors, ids. What runs runs on, and what there is can be deleted."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandboxkernel.errors import ResourcesExhausted, SandboxError
from sandboxkernel.models import Kernel, KernelCreate, KernelRestart
from tests.hostile.support import answers, connect, read_reply
from tests.support import (
    DEADLINE_S,
    NO_ZYGOTES,
    ROOT,
    RunningDaemon,
    make_data_dir,
    run_inside,
    running_daemon,
    sandbox,
    wait_until,
)

MIB = 1 << 20
SIZE, NAMES = 8 * MIB, 2000


def mount(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    options = f"size={SIZE},nr_inodes={NAMES},mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "skt", str(path)], check=True)


@pytest.fixture(scope="module")
def small(daemon: RunningDaemon) -> Iterator[RunningDaemon]:
    """A daemon whose journal, and whose layers, lie on small file systems of their own.

    The image store stays where it is: `daemon` has filled it.
    """
    data = Path("/run") / f"skt-data-{os.getpid()}"
    mount(data)
    make_data_dir(data)
    journal: list[Path] = []
    try:
        config = NO_ZYGOTES
        with running_daemon(config, data_dir=data) as running:
            running.stop()
            journal.append(running.run_dir / "leases")
            mount(journal[0])
            running.start()
            yield running
            running.stop()
            subprocess.run(["umount", str(journal.pop())], check=True)
    finally:
        for path in (*journal, data):
            subprocess.run(["umount", str(path)], check=True)
        data.rmdir()


def fill_blocks(path: Path) -> None:
    with (path / "ballast").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while stream.write(b"x" * 65536):
            pass
    with (path / "ballast").open("ab", buffering=0) as stream, contextlib.suppress(OSError):
        while stream.write(b"x"):
            pass
    assert os.statvfs(path).f_bavail == 0


def fill_names(path: Path) -> None:
    (path / "ballast.d").mkdir()
    with pytest.raises(OSError, match="No space"):
        for i in range(NAMES + 1):
            (path / "ballast.d" / str(i)).touch()


def empty(path: Path) -> None:
    (path / "ballast").unlink(missing_ok=True)
    for name in (path / "ballast.d").glob("*"):
        name.unlink()
    with contextlib.suppress(FileNotFoundError):
        (path / "ballast.d").rmdir()


def create(daemon: RunningDaemon, name: str, **members: object) -> Kernel:
    request = KernelCreate(kernel_id=name, argv=["sleep", "600"], **members)  # type: ignore[arg-type]
    return daemon.client().create(request)


def works(daemon: RunningDaemon, kernel: Kernel) -> bool:
    return run_inside(daemon, kernel, "echo", "yes") == (0, "yes\n")


@pytest.mark.parametrize("fill", [fill_blocks, fill_names])
@pytest.mark.parametrize("where", ["data", "journal", "both"])
def test_a_full_disk_ends_nothing_and_keeps_nothing(
    small: RunningDaemon, fill: Callable[[Path], None], where: str
) -> None:
    client = small.client()
    places = {"data": [small.data_dir], "journal": [small.run_dir / "leases"]}
    full = places.get(where) or [*places["data"], *places["journal"]]
    old = create(small, "old")
    ended = create(small, "ended")
    throwaway = create(small, "throwaway", ephemeral=True)
    try:
        for path in full:
            fill(path)
        if where == "data" and fill is fill_blocks:  # a directory of tmpfs needs no block
            client.remove(create(small, "new", ephemeral=True).id)
        else:
            with pytest.raises(ResourcesExhausted, match=r"[Nn]o space"):
                create(small, "new", ephemeral=True)
        assert works(small, old)
        client.signal(ended.id, 9)
        wait_until(lambda: client.inspect(ended.id).state == "exited", what="an end")
        assert "SIGKILL" in client.inspect(ended.id).exit.message  # type: ignore[union-attr]
        small.kill()
        small.start()  # the next daemon takes over, on a full disk too
        assert works(small, old)
        assert {kernel.kernel_id for kernel in client.kernels()} >= {"old", "throwaway"}
        for kernel in (old, throwaway):
            client.remove(kernel.id)
        with contextlib.suppress(SandboxError):  # its end could not be recorded
            client.remove("ended")
        assert list(client.kernels()) == []
        for layer in client.layers():
            client.reset_layer(layer.lineage)
        assert client.layers() == []
    finally:
        for path in full:
            empty(path)
        for kernel in list(client.kernels()):
            client.remove(kernel.id)
    assert sorted(p.name for p in (small.run_dir / "leases").iterdir()) == []
    assert [p.name for p in (small.data_dir / "scratch").glob("[!.]*")] == []
    again = create(small, "again")
    assert works(small, again)
    client.remove(again.id)


def test_a_restart_on_a_full_disk_says_so_and_can_be_repeated(small: RunningDaemon) -> None:
    client, journal = small.client(), small.run_dir / "leases"
    kernel = create(small, "again")
    try:
        fill_blocks(journal)
        with pytest.raises(ResourcesExhausted, match="no space"):
            client.restart(kernel.id, KernelRestart())
        assert client.inspect(kernel.id).state == "exited"
        empty(journal)
        assert client.restart(kernel.id, KernelRestart()).state == "running"
        assert works(small, kernel)
    finally:
        empty(journal)
        client.remove(kernel.id)


def few_files(count: int) -> tuple[str, str]:
    """A daemon that may open so many files."""
    return "-c", (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({count}, {count})); "
        "from sandboxkernel.daemon.app import main; main()"
    )


def test_without_descriptors_starts_are_refused_and_kernels_live(daemon: RunningDaemon) -> None:
    config = NO_ZYGOTES
    with (
        running_daemon(config, program=few_files(512)) as running,
        contextlib.ExitStack() as stack,
    ):
        client, kernels = running.client(), []
        for _ in range(380):  # of the 384 that root may have
            stack.enter_context(connect(running, 0))
        with pytest.raises(ResourcesExhausted, match="too many open files"):
            for i in range(100):
                kernels.append(client.create(KernelCreate(kernel_id=f"k{i}")))
        assert kernels
        assert running.process.poll() is None
        assert {kernel.state for kernel in client.kernels()} == {"running"}
        client.remove(kernels.pop().id)
        assert works(running, kernels[0])
        for kernel in kernels:
            client.remove(kernel.id)
        assert list(client.kernels()) == []


def test_too_few_descriptors_stop_the_start(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, *few_files(100)],
        env={"PATH": os.defpath, "SANDBOXKERNEL_RUN_DIR": str(tmp_path / "run"),
             "SANDBOXKERNEL_DATA_DIR": str(tmp_path / "data"),
             "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"},
        capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the limit of open files is 100, below 512" in done.stderr


def test_without_id_ranges_a_new_user_is_refused(daemon: RunningDaemon) -> None:
    data = make_data_dir(Path("/run") / f"skt-ids-{os.getpid()}")
    (data / "ids.json").write_text('{"61011": 0}')
    config = "c.SandboxKernelDaemon.id_range_count = 1\n" + NO_ZYGOTES
    try:
        with running_daemon(config, data_dir=data) as running:
            with pytest.raises(ResourcesExhausted, match="id range for uid 0: all 1"):
                create(running, "refused", ephemeral=True)
            assert list(running.client().kernels()) == []
    finally:
        subprocess.run(["rm", "-r", str(data)], check=True)


def address_space(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmSize:")[1].split()[0]) * 1024


def test_without_memory_the_daemon_lives(daemon: RunningDaemon) -> None:
    """Large bodies all at once, by root, whom no admission bounds."""
    with running_daemon(NO_ZYGOTES) as running:
        pid = running.process.pid
        kernel = create(running, "bystander", ephemeral=True)
        bounds = resource.prlimit(pid, resource.RLIMIT_AS)
        head = b"POST /v1/kernels HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (4 * MIB)
        answered = []
        resource.prlimit(pid, resource.RLIMIT_AS, (address_space(pid) + 24 * MIB, bounds[1]))
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(connect(running, 0)) for _ in range(16)]
            for sock in held:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    sock.sendall(head + b" " * (4 * MIB - 1))
            for sock in held:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    sock.sendall(b"x")
                answered.append(read_reply(sock)[0])
        assert running.process.poll() is None, running.log_path.read_text()[-3000:]
        assert set(answered) != {400}, "nothing was short of memory"
        wait_until(lambda: answers(running), what="an answer to others")
        resource.prlimit(pid, resource.RLIMIT_AS, bounds)
        assert works(running, kernel)
        running.client().remove(kernel.id)


DEEP = """
import os
os.chdir("/home/sandbox")
for _ in range(3000):
    os.mkdir("d" * 200)
    os.chdir("d" * 200)
"""


def test_folders_as_deep_as_one_likes_can_be_removed(daemon: RunningDaemon) -> None:
    """Deeper than Python calls itself, by paths longer than Linux takes."""
    with running_daemon(NO_ZYGOTES) as own:
        client = own.client()
        for killed in (False, True):
            with sandbox(own, ephemeral=True) as kernel:
                code, text = run_inside(own, kernel, "python3", "-c", DEEP)
                assert (code, text) == (0, "")
                scratch = own.data_dir / "scratch" / kernel.id
                assert scratch.is_dir()
                assert client.disk_usage().entries
                if killed:  # both, so that the next daemon finds it
                    client.kill(kernel.id)
                    own.kill()
                    own.start()
            wait_until(lambda scratch=scratch: not scratch.exists(), what="it is gone")

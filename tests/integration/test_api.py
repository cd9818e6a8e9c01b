"""What bad input gets: a clear error with a code and a hint, at once; the daemon goes on."""

from __future__ import annotations

import json
import os
import re
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from sandboxkernel.client import SandboxClient
from sandboxkernel.errors import (
    Conflict,
    HostUnsupported,
    KernelNotFound,
    KernelNotRunning,
    KernelStartFailed,
    LayerNotFound,
    LimitError,
    NotFound,
    ProfileNotFound,
    RequestError,
    ResourcesExhausted,
    SandboxError,
    WorkFolderError,
)
from sandboxkernel.models import ExecExit, KernelCreate, Limits
from tests.support import (
    DEADLINE_S,
    EXECUTOR,
    RunningDaemon,
    connect_unix,
    make_data_dir,
    python_inside,
    run_inside,
    running_daemon,
    sandbox,
    wait_until,
)


def raw(
    daemon: RunningDaemon, method: str, path: str, body: bytes = b"", headers: str = ""
) -> tuple[int, Any]:
    with connect_unix(daemon.socket_path) as sock:
        sock.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n{headers}\r\n".encode()
            + body
        )
        reply = b""
        while chunk := sock.recv(65536):
            reply += chunk
    head, _, content = reply.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(content) if content.startswith(b"{") else content


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"{}", b'{"kernel_id": 3}',
        b'{"kernel_id": ""}', b'{"kernel_id": "a/b"}', b'{"kernel_id": "' + b"a" * 10000 + b'"}',
        b'{"kernel_id": "a", "memroy": 1}', b'{"kernel_id": "a", "limits": {"memory": 1}}',
        b'{"kernel_id": "a", "limits": {"memory_bytes": "1G"}}',
        b'{"kernel_id": "a", "limits": {"memory_bytes": 99999999999999999999999999}}',
        b'{"kernel_id": "a", "cwd": "relative"}', b'{"kernel_id": "a", "cwd": "/a\\u0000b"}',
        b'{"kernel_id": "a", "env": {"A=B": "c"}}', b'{"kernel_id": "a", "env": {"": "c"}}',
        b'{"kernel_id": "a", "argv": []}', b'{"kernel_id": "a", "profile": "../../etc"}',
        b"[" * 100000, b'{"a":' * 50000,
    ],
    ids=lambda body: repr(body[:40]),
)  # fmt: skip
def test_a_malformed_body_is_refused_as_a_problem_document(
    daemon: RunningDaemon, body: bytes
) -> None:
    status, problem = raw(daemon, "POST", "/v1/kernels", body)
    assert 400 <= status < 500
    assert problem["type"].startswith("urn:sandboxkernel:error:")
    assert problem["status"] == status
    assert problem["detail"]
    assert list(daemon.client().kernels()) == []


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        (Limits(memory_bytes=0), "limits.memory_bytes"),
        (Limits(memory_bytes=1), "limits.memory_bytes"),
        (Limits(memory_bytes=-5), "limits.memory_bytes"),
        (Limits(cpus=0), "limits.cpus"),
        (Limits(cpus=-1), "limits.cpus"),
        (Limits(pids=0), "limits.pids"),
        (Limits(pids=1 << 60), "limits.pids"),
        (Limits(shm_bytes=1), "limits.shm_bytes"),
    ],
    ids=str,
)  # fmt: skip
def test_a_limit_that_makes_no_sense_is_refused(
    daemon: RunningDaemon, limits: Limits, field: str
) -> None:
    with pytest.raises(LimitError) as caught, sandbox(daemon, limits=limits):
        pass
    assert caught.value.field == field
    assert caught.value.hint


def test_a_wish_above_the_maximum_is_clamped_and_said(daemon: RunningDaemon) -> None:
    with sandbox(
        daemon, profile="small", limits=Limits(memory_bytes=1 << 40, cpus=64.0, pids=9999)
    ) as kernel:
        assert (kernel.limits.memory_bytes, kernel.limits.cpus, kernel.limits.pids) == (
            256 << 20,
            0.5,
            64,
        )
        assert daemon.client().stats(kernel.id).memory_limit_bytes == 256 << 20


def test_the_least_limits_start(daemon: RunningDaemon) -> None:
    least = Limits(memory_bytes=64 << 20, cpus=0.01, pids=16, shm_bytes=65536, tmp_bytes=1 << 20)
    with sandbox(daemon, "sleep", "60", limits=least) as kernel:
        assert kernel.state == "running"


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ({"profile": "no-such"}, ProfileNotFound),
        ({"cwd": "/does/not/exist"}, WorkFolderError),
        ({"cwd": "/etc"}, SandboxError),
        ({"cwd": "/"}, SandboxError),
        ({"cwd": "/proc/self"}, SandboxError),
        ({"cwd": "/srv/../etc"}, WorkFolderError),
        ({"cwd": "/srv/" + "a" * 200}, WorkFolderError),
        ({"cwd": "/srv", "profile": "rooted"}, WorkFolderError),
        ({"work_folder": "/srv/a", "cwd": "/srv/b"}, WorkFolderError),
        ({"env": {"X": "y" * 4_000_000}}, RequestError),
    ],
    ids=str,
)  # fmt: skip
def test_a_request_that_cannot_be_met_is_refused_at_once(
    daemon: RunningDaemon, members: dict[str, Any], error: type[SandboxError]
) -> None:
    with pytest.raises(error) as caught, sandbox(daemon, **members):
        pass
    assert caught.value.message
    assert list(daemon.client().kernels()) == []


def test_a_work_folder_that_vanished_is_told_at_the_restart(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    folder = Path("/srv/sandboxkernel-tests/vanishing")
    folder.mkdir(parents=True)
    with sandbox(daemon, cwd=str(folder)) as kernel:
        folder.rmdir()
        from sandboxkernel.models import KernelRestart

        with pytest.raises(WorkFolderError):
            daemon.client().restart(kernel.id, KernelRestart())
        assert daemon.client().inspect(kernel.id).state == "exited"
        folder.mkdir()
        assert daemon.client().restart(kernel.id, KernelRestart()).state == "running"
    folder.rmdir()


def test_a_path_of_200_bytes_is_mounted_where_it_is(daemon: RunningDaemon) -> None:
    folder = Path("/srv/sandboxkernel-tests") / ("x" * 100) / ("ü" * 45)
    folder.mkdir(parents=True, exist_ok=True)
    assert len(os.fsencode(folder)) > 200
    with sandbox(daemon, cwd=str(folder)) as kernel:
        assert run_inside(daemon, kernel, "pwd") == (0, f"{folder}\n")
    folder.rmdir()
    folder.parent.rmdir()


def test_a_program_that_does_not_exist_fails_with_its_errno(daemon: RunningDaemon) -> None:
    with pytest.raises(KernelStartFailed) as caught, sandbox(daemon, "no-such-program"):
        pass
    assert (caught.value.step, caught.value.errno) == ("hand_over", 2)


def test_no_free_id_range_is_told_with_what_to_do(tmp_path: Path) -> None:
    with running_daemon("c.SandboxKernelDaemon.id_range_count = 1\n", data_dir=tmp_path) as daemon:
        ids = daemon.data_dir / "ids.json"
        ids.write_text(json.dumps({"4242": 0}))
    with running_daemon("c.SandboxKernelDaemon.id_range_count = 1\n", data_dir=tmp_path) as daemon:
        with pytest.raises(ResourcesExhausted, match="id range") as caught, sandbox(daemon):
            pass
        assert "id_range_count" in caught.value.hint


def test_a_quota_of_kernels_is_told_in_words_for_the_user(daemon: RunningDaemon) -> None:
    config = 'c.SandboxKernelDaemon.grants = [{"user": "*", "max_kernels": 1}]\n'
    with running_daemon(config) as own, sandbox(own):
        with (
            pytest.raises(ResourcesExhausted, match="1 of 1 kernels of root") as caught,
            sandbox(own),
        ):
            pass
        assert caught.value.retry_after_s


def test_two_kernels_of_one_name_conflict(daemon: RunningDaemon) -> None:
    twice = {"kernel_id": "twice"}
    with sandbox(daemon, **twice), pytest.raises(Conflict), sandbox(daemon, **twice):
        pass


@pytest.mark.parametrize("name", ["nothing", "..", "%2e%2e", "a" * 5000, "☃", "0" * 12])
def test_a_kernel_that_is_not_there_is_not_found(daemon: RunningDaemon, name: str) -> None:
    for call in (daemon.client().inspect, daemon.client().remove, daemon.client().kill):
        with pytest.raises((KernelNotFound, NotFound, RequestError)):
            call(name)


@pytest.mark.parametrize(
    "ref", ["nothing", "../../etc/passwd", "-x", "a" * 400, "sha256:zz", "sha256:" + "0" * 64, "x\ny", "☃"],
)  # fmt: skip
def test_a_hostile_image_name_is_refused(daemon: RunningDaemon, ref: str) -> None:
    for call in (daemon.client().image, daemon.client().remove_image):
        with pytest.raises(SandboxError) as caught:
            call(ref)
        assert caught.value.status in (400, 404, 422)


@pytest.mark.parametrize("lineage", ["nothing", "../x", "..", "a" * 500])
def test_a_layer_that_is_not_there_is_not_found(daemon: RunningDaemon, lineage: str) -> None:
    for call in (daemon.client().layer_diff, daemon.client().reset_layer):
        with pytest.raises((LayerNotFound, RequestError, NotFound)):
            call(lineage)


def test_a_layer_in_use_is_not_reset(daemon: RunningDaemon) -> None:
    with sandbox(daemon):
        lineage = daemon.client().layers()[0].lineage
        with pytest.raises(Conflict, match="in use"):
            daemon.client().reset_layer(lineage)
    daemon.client().reset_layer(lineage)
    with sandbox(daemon) as kernel:
        assert run_inside(daemon, kernel, "ls", "/home/sandbox") == (0, "")


def test_an_image_in_use_is_not_removed(daemon: RunningDaemon) -> None:
    with sandbox(daemon), pytest.raises(Conflict, match="in use"):
        daemon.client().remove_image("host")


def test_an_ended_kernel_can_be_neither_signalled_nor_paused(daemon: RunningDaemon) -> None:
    with sandbox(daemon, "true") as kernel:
        daemon.client().watch_exit(kernel.id, 1).wait(DEADLINE_S)
        for call in (
            daemon.client().pause,
            daemon.client().stats,
            lambda n: daemon.client().signal(n, 2),
        ):
            with pytest.raises(KernelNotRunning):
                call(kernel.id)


def test_a_pause_waits_until_an_exec_is_inside(daemon: RunningDaemon) -> None:
    """A process that is frozen on its way in would hold up the launcher, and with it everybody."""
    answers: list[object] = []

    def execute(name: str) -> None:
        try:
            answers.append(list(daemon.client().exec(name, ["true"]))[-1])
        except SandboxError as exc:
            answers.append(exc)

    with sandbox(daemon) as kernel, sandbox(daemon) as other:
        for pause_ms in range(0, 40, 4):
            beside = threading.Thread(target=execute, args=[kernel.id])
            beside.start()
            time.sleep(pause_ms / 1000)
            daemon.client().pause(kernel.id)
            assert run_inside(daemon, other, "true") == (0, "")
            daemon.client().unpause(kernel.id)
            beside.join(DEADLINE_S)
    assert len(answers) == 10
    assert all(isinstance(each, Conflict) or each == ExecExit(exit_code=0) for each in answers)


@pytest.mark.parametrize("number", [0, -1, 65, 1 << 40])
def test_a_signal_that_does_not_exist_is_refused(daemon: RunningDaemon, number: int) -> None:
    with sandbox(daemon) as kernel, pytest.raises(RequestError):
        daemon.client().signal(kernel.id, number)


def test_unknown_paths_and_methods_are_problem_documents(daemon: RunningDaemon) -> None:
    assert raw(daemon, "GET", "/v1/nothing")[0] == 404
    status, problem = raw(daemon, "PUT", "/v1/kernels")
    assert status == 405
    assert problem["code"] == "invalid_request"


def test_a_body_over_the_limit_is_refused_and_the_daemon_goes_on(daemon: RunningDaemon) -> None:
    try:
        status, _ = raw(
            daemon, "POST", "/v1/kernels", b'{"kernel_id": "' + b"a" * (5 << 20) + b'"}'
        )
        assert status in (400, 413)
    except (BrokenPipeError, ConnectionResetError, IndexError):
        pass  # the daemon hung up in the middle of the body, which is its right
    daemon.client().ping()


def test_slow_and_broken_clients_do_not_block_others(daemon: RunningDaemon) -> None:
    sockets = [connect_unix(daemon.socket_path) for _ in range(200)]
    for index, sock in enumerate(sockets):
        sock.sendall([b"", b"G", b"GET / HTTP/1.1\r\n", b"\x00\xff" * 100][index % 4])
    daemon.client().ping()
    for sock in sockets:
        sock.close()
    daemon.client().ping()


def test_a_client_that_leaves_while_its_kernel_starts_leaves_nothing(daemon: RunningDaemon) -> None:
    body = KernelCreate(kernel_id="abandoned", argv=["sleep", "600"])
    import msgspec

    data = msgspec.json.encode(body)
    request = (
        f"POST /v1/kernels HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    )
    # A start takes more than ten milliseconds: nobody has had an answer when leaving.
    for stay_ms in [0, 0, 0, 1, 2, 3, 4, 5, 6, 7] * 6:
        with connect_unix(daemon.socket_path) as sock:
            sock.sendall(request + data)
            select.select([sock], [], [], stay_ms / 1000)
        # No later than the daemon has dealt with all that came before this one.
        daemon.client().ping()
        wait_until(lambda: list(daemon.client().kernels()) == [])


def test_parallel_starts_all_succeed(daemon: RunningDaemon) -> None:
    results: list[int] = []

    def one() -> None:
        with sandbox(daemon, "sleep", "60") as kernel:
            results.append(python_inside(daemon, kernel, "print(1)")[0])

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [0] * 8


# What may be said to each beside that there is no such kernel (any more).
WHILE_IT_ENDS: dict[str, tuple[Callable[[SandboxClient, str], object], set[str]]] = {
    "inspect": (SandboxClient.inspect, set()),
    "stats": (SandboxClient.stats, {"kernel_not_running"}),
    "exec": (  # its program may be killed while it is made
        lambda client, name: list(client.exec(name, ["true"])),
        {"kernel_not_running", "kernel_start_failed"},
    ),
}


@pytest.mark.parametrize("act", WHILE_IT_ENDS)
def test_a_kernel_that_is_ending_is_told_as_ended(daemon: RunningDaemon, act: str) -> None:
    """While its container goes, whatever is asked of it."""
    ask, allowed = WHILE_IT_ENDS[act]
    said: list[str] = []
    name, done = "", threading.Event()

    def ask_all_the_time() -> None:
        while not done.is_set():
            if name:
                try:
                    ask(daemon.client(), name)
                    said.append("done")
                except SandboxError as error:
                    said.append(error.code)

    threads = [threading.Thread(target=ask_all_the_time) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            with sandbox(daemon) as kernel:
                name, before = kernel.id, len(said)
                wait_until(lambda before=before: len(said) > before + 3, what="answers")
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert set(said) <= {"done", "kernel_not_found", *allowed}


def test_exec_keeps_output_apart_and_gives_the_exit_code(daemon: RunningDaemon) -> None:
    with sandbox(daemon) as kernel:
        items = list(
            daemon.client().exec(kernel.id, ["sh", "-c", "echo out; echo err >&2; kill -9 $$"])
        )
        assert items[-1] == ExecExit(exit_code=137)
        assert {(i.stream, i.data) for i in items[:-1]} == {
            ("stdout", "out\n"),
            ("stderr", "err\n"),
        }  # type: ignore[union-attr]
        assert run_inside(daemon, kernel, "cat", stdin="fed") == (0, "fed")
        with pytest.raises(KernelStartFailed):
            list(daemon.client().exec(kernel.id, ["no-such-program"]))


OTHER_HIERARCHIES = re.compile(r":(cpuset|name=\w+|net_cls|net_prio|perf_event|hugetlb|rdma|misc):")


def test_an_exec_is_as_confined_as_the_kernel(daemon: RunningDaemon) -> None:
    # What another executor has made has its filter beside ours, which alone an exec gets.
    filters = "Seccomp" if EXECUTOR == "native" else "Seccomp:"
    with sandbox(daemon) as kernel:
        status = Path(f"/proc/{kernel.pid}/status").read_text()
        inside = re.search(r"^NSpid:.*\s(\d+)$", status, re.MULTILINE).group(1)
        for name, lines in (("status", f"^(Cap|NoNewPrivs|{filters}|Uid|Groups)"), ("cgroup", ".")):
            own, joined = (
                run_inside(daemon, kernel, "grep", "-E", lines, f"/proc/{pid}/{name}")
                for pid in (inside, "self")
            )
            assert own[0] == 0
            if name == "cgroup":  # runc's are in hierarchies, too, that limit nothing
                own, joined = (
                    [line for line in text.splitlines() if not OTHER_HIERARCHIES.search(line)]
                    for _, text in (own, joined)
                )
            assert own == joined


def test_an_exec_that_is_abandoned_is_killed(daemon: RunningDaemon) -> None:
    with sandbox(daemon) as kernel:
        stream = daemon.client().exec(kernel.id, ["sh", "-c", "echo started; sleep 600"])
        next(stream)
        assert daemon.client().stats(kernel.id).pids >= 4
        stream.close()  # type: ignore[attr-defined]
        wait_until(lambda: "sleep\0600" not in inside_commands(daemon, kernel.id))


def inside_commands(daemon: RunningDaemon, kernel_id: str) -> str:
    code = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"
    text = ""
    for item in daemon.client().exec(kernel_id, ["sh", "-c", code]):
        text += getattr(item, "data", "")
    return text.replace("sleep 600 ", "", 1).replace("sleep 600", "sleep\0600")


def test_logs_follow_loses_nothing(daemon: RunningDaemon) -> None:
    count = 200_000
    code = f"for i in range({count}): print(i)"
    with sandbox(daemon, "python3", "-c", "import time; time.sleep(0.5)\n" + code) as kernel:
        text = b"".join(daemon.client().logs(kernel.id, follow=True)).decode()
        assert text.split() == [str(i) for i in range(count)]


def test_logs_are_bounded_without_a_reader(daemon: RunningDaemon) -> None:
    code = "import sys\nfor i in range(20000): sys.stdout.write('x' * 1000)\nprint('end')"
    with sandbox(daemon, "python3", "-c", code) as kernel:
        daemon.client().watch_exit(kernel.id, 1).wait(DEADLINE_S)
        text = b"".join(daemon.client().logs(kernel.id))
        assert len(text) <= 256 * 1024
        assert text.endswith(b"end\n")


def test_events_are_told_in_order(daemon: RunningDaemon) -> None:
    with sandbox(daemon, "true", kernel_id="told") as kernel:
        daemon.client().watch_exit(kernel.id, 1).wait(DEADLINE_S)
    actions = [e.action for e in daemon.client().events() if e.kernel_id == "told"]
    assert actions[0] in ("kernel_running", "kernel_exited")
    assert actions[-2:] == ["kernel_exited", "kernel_removed"]


def test_the_openapi_document_is_valid(daemon: RunningDaemon) -> None:
    status, document = raw(daemon, "GET", "/v1/openapi.json")
    assert status == 200
    validate(document)


def test_pages_of_kernels_cover_all_of_them(daemon: RunningDaemon) -> None:
    import contextlib

    with contextlib.ExitStack() as stack:
        ids = [stack.enter_context(sandbox(daemon)).id for _ in range(3)]
        _, first = raw(daemon, "GET", "/v1/kernels?limit=2")
        _, rest = raw(daemon, "GET", f"/v1/kernels?limit=2&after={first['next']}")
        assert [k["id"] for k in first["kernels"] + rest["kernels"]] == ids
        assert raw(daemon, "GET", "/v1/kernels?limit=0")[0] == 400


def test_a_missing_feature_of_the_host_refuses_the_start(daemon: RunningDaemon) -> None:
    """An I/O cap on a file system without a block device cannot be enforced."""
    with pytest.raises((HostUnsupported, RequestError)) as caught:
        shm = make_data_dir(Path("/dev/shm/sandboxkernel-test"))
        try:
            config = (
                'c.SandboxKernelDaemon.profiles = {"default": {"limits": {"io_write": "1M"}}}\n'
            )
            with running_daemon(config, data_dir=shm) as own, sandbox(own):
                pass
        finally:
            import shutil

            shutil.rmtree(shm)
    assert caught.value.message


def test_an_ephemeral_sandbox_forgets(daemon: RunningDaemon) -> None:
    from sandboxkernel.models import KernelRestart

    with sandbox(daemon, "sleep", "60", profile="throwaway") as kernel:
        assert kernel.ephemeral
        assert run_inside(daemon, kernel, "sh", "-c", "echo x > ~/kept") == (0, "")
        daemon.client().restart(kernel.id, KernelRestart())
        assert run_inside(daemon, kernel, "cat", "/home/sandbox/kept") == (0, "x\n"), (
            "a restart keeps it"
        )
    with sandbox(daemon, "sleep", "60", profile="throwaway") as kernel:
        assert run_inside(daemon, kernel, "ls", "/home/sandbox") == (0, "")


def test_the_socket_is_not_taken_from_a_living_daemon(daemon: RunningDaemon) -> None:
    from sandboxkernel.daemon.server import bind_api_socket

    with pytest.raises(SandboxError, match="already listens"):
        bind_api_socket(daemon.socket_path, 0o600)
    daemon.client().ping()


def test_the_log_tells_who_what_and_why_and_no_secret() -> None:
    with running_daemon("c.SandboxKernelDaemon.log_style = 'json'\n") as own:
        key = f"secret-{os.urandom(8).hex()}"
        with (
            pytest.raises(SandboxError),
            sandbox(own, kernel_id="k-bad", cwd="/nowhere", key=key, env={"TOKEN": key}),
        ):
            pass
        with sandbox(own, kernel_id="k-good", as_kernel=True, key=key, env={"TOKEN": key}):
            pass
        lines = [json.loads(line) for line in own.log_path.read_text().splitlines()]
        assert key not in own.log_path.read_text()
        (bad,) = [line for line in lines if line.get("code") and line.get("kernel") == "k-bad"]
        assert (bad["code"], bad["user"], bad["level"]) == ("work_folder", "root", "info")
        assert bad["request"]
        said = [line["message"] for line in lines if line.get("kernel") == "k-good"]
        assert [text.partition(":")[0] for text in said][-2:] == [
            "kernel is running",
            "kernel is exited",
        ]

"""The command line as people use it: a real daemon, real sandboxes, real exit codes."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sandboxkernel.client import SandboxClient
from tests.integration.test_two_users import as_user
from tests.support import (
    DEADLINE_S,
    ROOT,
    RunningDaemon,
    connect_unix,
    host_state,
    leaks,
    make_data_dir,
    sandbox,
    wait_until,
)

NOBODY = 61003  # a uid that no other test uses: it has no layer
Done = subprocess.CompletedProcess[str]


def start(daemon: RunningDaemon, *arguments: str, **members: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sandboxkernel.cli", *arguments],
        env={**daemon.environment, "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"},
        text=True,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        | members,
    )


def run(daemon: RunningDaemon, *arguments: str, stdin: str = "") -> Done:
    with start(daemon, *arguments, stdin=subprocess.PIPE) as process:
        out, err = process.communicate(stdin, timeout=DEADLINE_S)
    return Done(arguments, process.returncode, out, err)


def ok(daemon: RunningDaemon, *arguments: str, stdin: str = "") -> str:
    done = run(daemon, *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_json(daemon: RunningDaemon, *arguments: str) -> Any:
    return json.loads(ok(daemon, *arguments, "--format", "json"))


@contextlib.contextmanager
def detached(daemon: RunningDaemon, *arguments: str) -> Iterator[str]:
    """A sandbox of `run -d`; its id."""
    sandbox_id = ok(daemon, "run", "-d", *arguments).strip()
    try:
        yield sandbox_id
    finally:
        run(daemon, "rm", "-f", sandbox_id)


# --- run ---


def test_run_passes_output_and_exit_code_on_and_leaves_nothing(daemon: RunningDaemon) -> None:
    done = run(daemon, "run", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert as_json(daemon, "ps", "-a") == []


def test_run_reads_stdin(daemon: RunningDaemon) -> None:
    assert ok(daemon, "run", "cat", stdin="fed ü\n") == "fed ü\n"
    assert ok(daemon, "run", "--no-stdin", "cat", stdin="fed") == ""


def test_run_starts_at_home_without_the_callers_environment(daemon: RunningDaemon) -> None:
    text = ok(daemon, "run", "--env", "A=1", "--", "sh", "-c", "pwd; echo $A; env")
    assert text.splitlines()[:2] == ["/home/sandbox", "1"]
    assert "SANDBOXKERNEL_HOST" not in text


def test_run_mounts_the_work_folder_and_starts_in_it(daemon: RunningDaemon) -> None:
    folder = Path("/srv/sandboxkernel-tests/cli")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        text = ok(daemon, "run", "-w", str(folder), "--", "sh", "-c", "pwd; echo hi > made")
        assert text == f"{folder}\n"
        assert (folder / "made").read_text() == "hi\n"
    finally:
        (folder / "made").unlink(missing_ok=True)
        folder.rmdir()


def test_limits_of_run_are_in_force(daemon: RunningDaemon) -> None:
    limits = ("--memory", "256M", "--cpus", "0.5", "--pids", "40", "--shm", "8M", "--tmp", "16M")
    with detached(daemon, *limits) as sandbox_id:
        (shown,) = as_json(daemon, "ps")
        assert shown["id"] == sandbox_id
        assert {k: shown["limits"][k] for k in ("memory_bytes", "cpus", "pids")} == {
            "memory_bytes": 256 << 20, "cpus": 0.5, "pids": 40,
        }  # fmt: skip
        (reading,) = as_json(daemon, "stats", sandbox_id)
        assert reading["memory_limit_bytes"] == 256 << 20
        assert reading["pids_limit"] == 40
        sizes = ok(daemon, "exec", sandbox_id, "--", "df", "--output=size", "/dev/shm", "/tmp")
        assert [int(line) for line in sizes.split()[1:]] == [8 << 10, 16 << 10]
        bomb = "import threading, time\nfor _ in range(100): threading.Thread(target=time.sleep, args=(1,)).start()"
        done = run(daemon, "exec", sandbox_id, "--", "python3", "-c", bomb)
        assert done.returncode == 1
        assert "can't start new thread" in done.stderr


def test_a_wish_that_is_lowered_is_told(daemon: RunningDaemon) -> None:
    done = run(daemon, "run", "--profile", "small", "--memory", "1T", "true")
    assert done.returncode == 0
    assert done.stderr.startswith("note: memory is 256.0 MiB, not the 1024.0 GiB") or (
        "memory is 256.0 MiB, not the 1.0 TiB" in done.stderr
    )


def test_memory_that_ran_out_is_told(daemon: RunningDaemon) -> None:
    code = "x = bytearray(1 << 30)"
    done = run(daemon, "run", "--memory", "128M", "--", "python3", "-c", code)
    assert done.returncode == 137
    # Linux may choose the sandbox's first process as well: then its own end is told.
    assert re.search(r"memory (cap of|limit) 128\.0 MiB", done.stderr), done.stderr


@pytest.mark.parametrize("detach", [(), ("-d",)], ids=["foreground", "detached"])
def test_a_program_that_is_not_there_exits_with_127(
    daemon: RunningDaemon, detach: tuple[str, ...]
) -> None:
    done = run(daemon, "run", *detach, "no-such-program")
    assert done.returncode == 127
    assert "code: kernel_start_failed" in done.stderr
    assert run(daemon, "run", "/etc/passwd").returncode == 126
    assert as_json(daemon, "ps", "-a") == []


@pytest.mark.parametrize(
    ("options", "code"),
    [(("--profile", "no-such"), "profile_not_found"), (("--memory", "1"), "invalid_limit"),
     (("--work-folder", "/does/not/exist"), "work_folder"), (("--name", "a/b"), "invalid_request")],
    ids=str,
)  # fmt: skip
def test_a_request_that_is_refused_exits_with_1(
    daemon: RunningDaemon, options: tuple[str, ...], code: str
) -> None:
    done = run(daemon, "run", *options, "true")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith(f"code: {code}\n")


def test_run_may_keep_the_sandbox(daemon: RunningDaemon) -> None:
    done = run(daemon, "run", "--no-rm", "--name", "kept", "--", "sh", "-c", "echo x > /tmp/x")
    try:
        assert "is still running" in done.stderr
        assert ok(daemon, "exec", "kept", "cat", "/tmp/x") == "x\n"
    finally:
        assert ok(daemon, "rm", "-f", "kept") == "kept\n"


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_interrupted_run_leaves_nothing(
    daemon: RunningDaemon, signum: signal.Signals, code: int
) -> None:
    with start(daemon, "run", "--", "sh", "-c", "echo started; sleep 600") as process:
        assert process.stdout
        assert process.stdout.readline() == "started\n"
        process.send_signal(signum)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code
    assert "Traceback" not in err
    assert as_json(daemon, "ps", "-a") == []


def test_a_reader_that_leaves_ends_a_run_silently(daemon: RunningDaemon) -> None:
    with start(daemon, "run", "--", "yes") as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
    assert as_json(daemon, "ps", "-a") == []


# --- exec ---


def test_exec_gives_streams_stdin_environment_and_exit_code(daemon: RunningDaemon) -> None:
    with detached(daemon) as sandbox_id:
        script = "cat; echo $A >&2; pwd; exit 5"
        done = run(
            daemon,
            "exec",
            "-e",
            "A=b",
            "-w",
            "/tmp",
            sandbox_id,
            "--",
            "sh",
            "-c",
            script,
            stdin="in\n",
        )
        assert (done.returncode, done.stdout, done.stderr) == (5, "in\n/tmp\n", "b\n")
        assert run(daemon, "exec", sandbox_id, "sh", "-c", "kill -15 $$").returncode == 143
        assert run(daemon, "exec", sandbox_id, "no-such-program").returncode == 127


def test_exec_refuses_stdin_that_it_cannot_carry(daemon: RunningDaemon) -> None:
    with detached(daemon) as sandbox_id:
        done = run(daemon, "exec", sandbox_id, "wc", "-c", stdin="x" * ((1 << 20) + 1))
        assert done.returncode == 1
        assert "code: payload_too_large" in done.stderr
        assert ok(daemon, "exec", sandbox_id, "wc", "-c", stdin="x" * (1 << 20)) == "1048576\n"


def test_exec_in_a_paused_or_ended_sandbox_is_refused_at_once(daemon: RunningDaemon) -> None:
    with detached(daemon) as sandbox_id:
        ok(daemon, "pause", sandbox_id)
        done = run(daemon, "exec", sandbox_id, "true")
        assert (done.returncode, "unpause" in done.stderr) == (1, True)
        assert done.stderr.endswith("code: conflict\n")
        ok(daemon, "kill", sandbox_id)
        done = run(daemon, "exec", sandbox_id, "true")
        assert done.returncode == 1
        assert done.stderr.endswith("code: kernel_not_running\n")


# --- names ---


def test_a_sandbox_is_found_by_id_name_and_prefix(daemon: RunningDaemon) -> None:
    with detached(daemon, "--name", "found-here") as sandbox_id:
        for name in (sandbox_id, sandbox_id[:5], "found-here", "found"):
            assert as_json(daemon, "inspect", name)["id"] == sandbox_id


def test_an_ambiguous_prefix_lists_the_candidates(daemon: RunningDaemon) -> None:
    with detached(daemon, "--name", "same-1") as one, detached(daemon, "--name", "same-2") as two:
        done = run(daemon, "rm", "-f", "same")
        assert done.returncode == 1
        assert one in done.stderr
        assert two in done.stderr
        assert done.stderr.endswith("code: conflict\n")
        assert len(as_json(daemon, "ps")) == 2


@pytest.mark.parametrize(
    "command", ["inspect", "logs", "stats", "stop", "kill", "rm", "pause", "unpause", "exec"]
)
def test_an_unknown_sandbox_is_told(daemon: RunningDaemon, command: str) -> None:
    arguments = [command, "nothing", *(["true"] if command == "exec" else [])]
    done = run(daemon, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no sandbox 'nothing'\nhint: ")
    assert done.stderr.endswith("code: kernel_not_found\n")


# --- looking at sandboxes ---


def test_ps_lists_what_runs_and_with_all_what_ended(daemon: RunningDaemon) -> None:
    with detached(daemon) as running, detached(daemon, "--", "sh", "-c", "exit 3") as ended:
        wait_until(lambda: daemon.client().inspect(ended).state == "exited")
        assert ok(daemon, "ps", "-q") == f"{running}\n"
        assert set(ok(daemon, "ps", "-aq").split()) == {running, ended}
        table = ok(daemon, "ps", "-a").splitlines()
        assert table[0].split()[:3] == ["ID", "NAME", "USER"]
        assert any(ended in line and "exited (3)" in line for line in table)
        assert [k["state"] for k in as_json(daemon, "ps")] == ["running"]


def test_inspect_shows_what_verification_read_back(daemon: RunningDaemon) -> None:
    with detached(daemon) as sandbox_id:
        shown = as_json(daemon, "inspect", sandbox_id)
        assert shown["confinement"]["no_new_privs"] is True
        table = ok(daemon, "inspect", sandbox_id)
        assert "limits.memory_bytes" in table
        assert "2.0 GiB" in table


def test_stats_show_all_that_run(daemon: RunningDaemon) -> None:
    with detached(daemon) as one, detached(daemon) as two, detached(daemon, "true") as ended:
        wait_until(lambda: daemon.client().inspect(ended).state == "exited")
        names = {k["id"]: k["kernel_id"] for k in as_json(daemon, "ps")}
        assert {s["kernel_id"] for s in as_json(daemon, "stats")} == set(names.values())
        table = ok(daemon, "stats", one, two).splitlines()
        assert [line.split()[0] for line in table] == ["ID", one, two]
        assert run(daemon, "stats", ended).returncode == 1


def test_a_stream_of_stats_ends_with_the_sandbox(daemon: RunningDaemon) -> None:
    with (
        detached(daemon) as sandbox_id,
        start(daemon, "stats", "--stream", "--format", "json", sandbox_id) as process,
    ):
        assert process.stdout
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        assert second["time"] > first["time"]
        ok(daemon, "kill", sandbox_id)
        process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0


def test_logs_are_followed_and_cut_to_lines(daemon: RunningDaemon) -> None:
    with detached(
        daemon, "--", "sh", "-c", "echo a; echo b >&2; echo c; sleep 0.3; echo d"
    ) as name:
        assert ok(daemon, "logs", "-f", name) == "a\nb\nc\nd\n"
        assert ok(daemon, "logs", name) == "a\nb\nc\nd\n"
        assert ok(daemon, "logs", "--tail", "2", name) == "c\nd\n"
        assert ok(daemon, "logs", "--tail", "0", name) == ""


def test_events_are_told_one_a_line(daemon: RunningDaemon) -> None:
    since = datetime.now(UTC).isoformat()
    with start(daemon, "events", "-f", "--since", since, "--format", "json") as follower:
        ok(daemon, "run", "--name", "told", "true")
        assert follower.stdout
        followed = []
        for line in follower.stdout:
            followed.append(json.loads(line)["action"])
            if followed[-1] == "kernel_removed":
                break
        follower.send_signal(signal.SIGINT)
        follower.communicate(timeout=DEADLINE_S)
        assert follower.returncode == 130
    text = ok(daemon, "events", "--since", since, "--format", "json")
    told = [json.loads(line) for line in text.splitlines()]
    assert [event["action"] for event in told] == followed
    assert {event["kernel_id"] for event in told} == {"told"}
    table = ok(daemon, "events", "--since", since)
    assert table.splitlines()[0].split() == ["TIME", "ACTION", "NAME", "USER", "DETAIL"]
    assert len(table.splitlines()) == len(told) + 1


# --- ending sandboxes ---


def test_stop_lets_a_program_clean_up_and_rm_removes_it(daemon: RunningDaemon) -> None:
    script = "trap 'echo bye; exit 4' TERM; while :; do sleep 0.05; done"
    with detached(daemon, "--", "sh", "-c", script) as sandbox_id:
        wait_until(lambda: as_json(daemon, "stats", sandbox_id)[0]["pids"] >= 2)
        assert ok(daemon, "stop", sandbox_id[:6]) == f"{sandbox_id[:6]}\n"
        shown = as_json(daemon, "inspect", sandbox_id)
        assert (shown["state"], shown["exit"]["code"]) == ("exited", 4)
        assert ok(daemon, "logs", sandbox_id).endswith("bye\n")
        ok(daemon, "rm", sandbox_id)
        assert as_json(daemon, "ps", "-a") == []


def test_a_program_that_ignores_stop_is_killed(daemon: RunningDaemon) -> None:
    with detached(daemon, "--", "sh", "-c", "trap '' TERM; echo ready; sleep 600") as sandbox_id:
        wait_until(lambda: ok(daemon, "logs", sandbox_id) == "ready\n")
        ok(daemon, "stop", "--time", "0", sandbox_id)
        assert as_json(daemon, "inspect", sandbox_id)["exit"]["signal"] == signal.SIGKILL


def test_kill_sends_the_signal_that_is_named(daemon: RunningDaemon) -> None:
    script = "trap 'echo usr1' USR1; echo ready; while :; do sleep 0.05; done"
    with detached(daemon, "--", "sh", "-c", script) as sandbox_id:
        wait_until(lambda: ok(daemon, "logs", sandbox_id) == "ready\n")
        ok(daemon, "kill", "-s", "USR1", sandbox_id)
        wait_until(lambda: "usr1" in ok(daemon, "logs", sandbox_id))
        ok(daemon, "kill", sandbox_id)
        done = run(daemon, "kill", sandbox_id)
        assert (done.returncode, "kernel_not_running" in done.stderr) == (1, True)


def test_pause_freezes_and_unpause_thaws(daemon: RunningDaemon) -> None:
    code = "while True: pass"
    with detached(daemon, "--", "python3", "-c", code) as sandbox_id:
        ok(daemon, "pause", sandbox_id)
        assert as_json(daemon, "ps")[0]["state"] == "paused"
        used = [as_json(daemon, "stats", sandbox_id)[0]["cpu_usage_s"] for _ in range(2)]
        assert used[1] - used[0] < 0.01
        ok(daemon, "unpause", sandbox_id)
        assert as_json(daemon, "ps")[0]["state"] == "running"
        wait_until(lambda: as_json(daemon, "stats", sandbox_id)[0]["cpu_usage_s"] > used[1] + 0.01)


def test_rm_refuses_what_runs_and_goes_on_with_the_rest(daemon: RunningDaemon) -> None:
    with detached(daemon) as running, detached(daemon, "true") as ended:
        wait_until(lambda: daemon.client().inspect(ended).state == "exited")
        done = run(daemon, "rm", running, ended)
        assert (done.returncode, done.stdout) == (1, f"{ended}\n")
        assert "--force" in done.stderr
        assert ok(daemon, "ps", "-aq") == f"{running}\n"
        ok(daemon, "rm", "--force", running)


# --- images, users, system ---


def test_images_are_listed_and_inspected(daemon: RunningDaemon) -> None:
    (image,) = [i for i in as_json(daemon, "image", "ls") if i["ref"] == "host"]
    assert as_json(daemon, "image", "inspect", "host")["digest"] == image["digest"]
    assert image["digest"].removeprefix("sha256:")[:12] in ok(daemon, "image", "ls")
    assert "size_bytes" in ok(daemon, "image", "inspect", "host")
    done = run(daemon, "image", "inspect", "no-such")
    assert (done.returncode, "image_not_found" in done.stderr) == (1, True)
    with detached(daemon):
        done = run(daemon, "image", "rm", "host")
        assert (done.returncode, "conflict" in done.stderr) == (1, True)


def test_an_image_is_prepared(daemon: RunningDaemon) -> None:
    digest = as_json(daemon, "image", "inspect", "host")["digest"]
    assert as_json(daemon, "image", "prepare")["digest"] == digest


def test_a_users_layer_is_listed_compared_and_reset(daemon: RunningDaemon) -> None:
    ok(daemon, "run", "--", "sh", "-c", "echo 12345 > ~/made-by-cli")
    layers = as_json(daemon, "user", "layer", "ls")
    assert {entry["owner_uid"] for entry in layers} == {0}
    lineage = layers[0]["lineage"]
    diff = as_json(daemon, "user", "layer", "diff", lineage)
    assert "A" in [c["change"] for c in diff["changes"] if c["path"].endswith("made-by-cli")]
    assert "made-by-cli" in ok(daemon, "user", "layer", "diff", "--user", "root", lineage)
    assert run(daemon, "user", "layer", "diff", "--limit", "1", lineage).returncode == 0
    (user,) = [u for u in as_json(daemon, "user", "ls") if u["uid"] == 0]
    assert (user["name"], user["layers"]) == ("root", len(layers))

    done = run(daemon, "user", "layer", "reset", lineage)
    assert (done.returncode, "--yes" in done.stderr) == (2, True)
    with detached(daemon):
        done = run(daemon, "user", "layer", "reset", "--yes", lineage)
        assert (done.returncode, "in use" in done.stderr) == (1, True)
    assert ok(daemon, "user", "layer", "reset", "--yes", lineage) == f"{lineage}\n"
    assert ok(daemon, "run", "ls", "/home/sandbox") == ""


def test_a_layer_that_is_not_there_is_told(daemon: RunningDaemon) -> None:
    done = run(daemon, "user", "layer", "diff", "no-such")
    assert (done.returncode, "layer_not_found" in done.stderr) == (1, True)


def test_disk_usage_and_prune(daemon: RunningDaemon) -> None:
    usage = as_json(daemon, "system", "df")
    assert {entry["kind"] for entry in usage["entries"]} >= {"images", "user_layers"}
    assert usage["free_bytes"] > 0
    table = ok(daemon, "system", "df").splitlines()
    assert table[0].split() == ["KIND", "COUNT", "SIZE", "RECLAIMABLE"]
    assert table[-1].startswith("free")
    assert as_json(daemon, "system", "prune", "--dry-run")["dry_run"] is True
    done = run(daemon, "system", "prune")
    assert (done.returncode, done.stderr.startswith("freed ")) == (0, True)


def test_info_tells_both_versions(daemon: RunningDaemon) -> None:
    info = as_json(daemon, "system", "info")
    assert info["daemon"]["version"] == info["client"]
    assert info["socket"] == str(daemon.socket_path)
    assert "daemon.linux" in ok(daemon, "system", "info")


def test_host_on_the_command_line_wins(daemon: RunningDaemon) -> None:
    done = run(daemon, "--host", "unix:///nowhere.sock", "ps")
    assert done.returncode == 125
    assert "/nowhere.sock" in done.stderr
    assert ok(daemon, "--host", f"unix://{daemon.socket_path}", "ps", "-q") == ""


# --- the host ---


def test_doctor_finds_what_this_host_has(daemon: RunningDaemon) -> None:
    done = run(daemon, "doctor", "--format", "json")
    findings = {f["name"]: f for f in json.loads(done.stdout)}
    for name in ("user_namespace", "seccomp", "landlock", "cgroup_memory", "daemon"):
        assert findings[name]["present"], findings[name]
    missing = [f for f in findings.values() if not f["present"]]
    assert all(f["fix"] and f["promise"] for f in missing)
    assert done.returncode == int(any(f["required"] for f in missing))
    assert "user_namespace" in run(daemon, "doctor").stdout


def test_doctor_without_root_says_so(daemon: RunningDaemon) -> None:
    from sandboxkernel.cli import doctor
    from sandboxruntime import host

    def probe() -> list[tuple[str, bool, str]]:
        data = json.dumps([dataclasses.asdict(feature) for feature in host.probe()]).encode()
        return [(f.name, f.present, f.fix) for f in doctor.parse_probes(data)]

    assert ("root", True, "") in probe()  # the control; it also imports what a user may not read
    found = {name: (present, fix) for name, present, fix in as_user(NOBODY, probe)}
    assert found["root"][0] is False
    assert all("run as root" in fix for present, fix in found.values() if not present)


def test_launch_fails_with_what_to_do(daemon: RunningDaemon, tmp_path: Path) -> None:
    done = run(daemon, "launch", "-f", str(tmp_path / "kernel.json"))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"cannot read the connection file {tmp_path}/kernel.json: No such file" in done.stderr


def test_a_daemon_is_started_for_run_and_not_for_ps(tmp_path: Path) -> None:
    """The embedded default: nothing runs, `run` starts a daemon, it stops when told."""
    before = host_state()
    run_dir = Path(tempfile.mkdtemp(prefix="skt-", dir="/run"))
    environ = {
        **{k: v for k, v in os.environ.items() if k != "SANDBOXKERNEL_HOST"},
        "SANDBOXKERNEL_RUN_DIR": str(run_dir),
        "SANDBOXKERNEL_DATA_DIR": str(make_data_dir(tmp_path / "data")),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}",
    }

    def cli(*arguments: str) -> Done:
        return subprocess.run(
            [sys.executable, "-m", "sandboxkernel.cli", *arguments],
            env=environ, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60,
        )  # fmt: skip

    try:
        done = cli("ps")
        assert (done.returncode, "no daemon is running" in done.stderr) == (0, True)
        assert not (run_dir / "api.sock").exists()
        assert cli("run", "echo", "hello").stdout == "hello\n"
        assert json.loads(cli("system", "info", "--format", "json").stdout)["daemon"]["embedded"]
    finally:
        stop_embedded(run_dir)
        shutil.rmtree(run_dir)
    wait_until(lambda: not leaks(before), timeout_s=10)


def stop_embedded(run_dir: Path) -> None:
    """End the daemon that serves this run directory: the peer of its socket."""
    with connect_unix(run_dir / "api.sock") as sock:
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, _, _ = struct.unpack("3i", data)
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        wait_until(lambda: not (run_dir / "api.sock").exists())
        assert select.select([process], [], [], DEADLINE_S)[0]
    finally:
        os.close(process)


def test_the_daemon_runs_in_the_foreground(tmp_path: Path) -> None:
    run_dir = Path(tempfile.mkdtemp(prefix="skt-", dir="/run"))
    environ = {
        **os.environ, "SANDBOXKERNEL_RUN_DIR": str(run_dir),
        "SANDBOXKERNEL_DATA_DIR": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}",
    }  # fmt: skip
    ready_read, ready_write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "sandboxkernel.cli", "daemon", f"--ready-fd={ready_write}"],
        env=environ, pass_fds=[ready_write], stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        os.close(ready_write)
        with open(ready_read, "rb") as ready:
            assert ready.read(1) == b"1"
        # Only when it answers has it taken over SIGTERM.
        SandboxClient(run_dir / "api.sock").ping()
        process.terminate()
        process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    shutil.rmtree(run_dir)


def test_a_user_sees_own_sandboxes_only(daemon: RunningDaemon, tmp_path: Path) -> None:
    def listing(*arguments: str) -> tuple[int, str]:
        from sandboxkernel.cli import main

        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main(["--host", str(daemon.socket_path), *arguments])
        return code, out.getvalue()

    with sandbox(daemon, kernel_id="of-root") as kernel:
        assert listing("ps", "-aq") == (0, f"{kernel.id}\n")
        assert as_user(NOBODY, lambda: listing("ps", "-aq")) == (0, "")
        code, text = as_user(NOBODY, lambda: listing("rm", "-f", kernel.id))
        assert (code, "kernel_not_found" in text) == (1, True)
        code, text = as_user(NOBODY, lambda: listing("system", "df"))
        assert (code, "not_permitted" in text) == (1, True)
        code, text = as_user(NOBODY, lambda: listing("user", "ls", "--format", "json"))
        assert (code, json.loads(text)) == (0, [])


def test_names_of_sandboxes_are_completed(
    daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_SANDBOXKERNEL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_CWORD", "2")
    with sandbox(daemon, kernel_id="complete-me") as kernel:
        for beginning, word in (("comp", "complete-me"), (kernel.id[:6], kernel.id)):
            monkeypatch.setenv("COMP_WORDS", f"sandboxkernel inspect {beginning}")
            assert run(daemon).stdout.split() == [f"plain,{word}"]

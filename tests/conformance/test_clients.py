"""Jupyter's own clients, as programs: they know nothing of sandboxes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import papermill
import pytest
import websocket

from tests.conformance.server import JUPYTER, TIMEOUT_S, Server, running_server
from tests.conformance.session import KERNEL_NAME
from tests.support import ROOT, RunningDaemon, sandbox, wait_until

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def notebook(*cells: str) -> nbformat.NotebookNode:
    document = nbformat.v4.new_notebook()
    document.cells = [nbformat.v4.new_code_cell(source) for source in cells]
    document.metadata.kernelspec = {"name": KERNEL_NAME, "display_name": "x", "language": "python"}
    return document


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nbclient_runs_the_notebooks(path: Path, work: Path, daemon: RunningDaemon) -> None:
    document = nbformat.read(path, as_version=4)
    nbformat.validate(document)
    assert document.metadata.kernelspec.name == KERNEL_NAME
    client = nbclient.NotebookClient(
        document, timeout=TIMEOUT_S, resources={"metadata": {"path": str(work)}}
    )
    client.execute()
    assert all(cell.execution_count for cell in document.cells if cell.cell_type == "code")
    assert list(daemon.client().kernels()) == []


def test_nbclient_tells_of_an_error(work: Path, daemon: RunningDaemon) -> None:
    client = nbclient.NotebookClient(
        notebook("1 / 0"), timeout=TIMEOUT_S, resources={"metadata": {"path": str(work)}}
    )
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="ZeroDivisionError"):
        client.execute()
    assert list(daemon.client().kernels()) == []


def test_nbclient_tells_of_a_kernel_that_died(work: Path) -> None:
    client = nbclient.NotebookClient(
        notebook("import os; os._exit(1)"),
        timeout=TIMEOUT_S,
        resources={"metadata": {"path": str(work)}},
    )
    with pytest.raises(nbclient.exceptions.DeadKernelError):
        client.execute()


def test_nbclient_interrupts_at_its_timeout(work: Path) -> None:
    client = nbclient.NotebookClient(
        notebook("while True: pass", "print('next')"),
        timeout=2,
        interrupt_on_timeout=True,
        allow_errors=True,
        resources={"metadata": {"path": str(work)}},
    )
    document = client.execute()
    assert document.cells[0].outputs[-1].ename == "KeyboardInterrupt"
    assert document.cells[1].outputs[0].text == "next\n"


def test_papermill(work: Path) -> None:
    parameters = nbformat.v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]})
    document = notebook("print(n * 2)")
    document.cells.insert(0, parameters)
    nbformat.write(document, work / "in.ipynb")
    papermill.execute_notebook(
        str(work / "in.ipynb"),
        str(work / "out.ipynb"),
        parameters={"n": 21},
        cwd=str(work),
        progress_bar=False,
        execution_timeout=TIMEOUT_S,
    )
    result = nbformat.read(work / "out.ipynb", as_version=4)
    assert result.cells[-1].outputs[0].text == "42\n"


def test_papermill_tells_of_an_error(work: Path) -> None:
    nbformat.write(notebook("1 / 0"), work / "in.ipynb")
    with pytest.raises(papermill.PapermillExecutionError, match="ZeroDivisionError"):
        papermill.execute_notebook(
            str(work / "in.ipynb"), str(work / "out.ipynb"), cwd=str(work), progress_bar=False
        )


def test_nbconvert_execute(work: Path) -> None:
    nbformat.write(notebook("import os; print(os.getpid() < 10, os.getcwd())"), work / "in.ipynb")
    subprocess.run(
        [*JUPYTER, "nbconvert", "--to", "notebook", "--execute", "--output", "out", "in.ipynb"],
        cwd=work,
        check=True,
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    result = nbformat.read(work / "out.ipynb", as_version=4)
    assert result.cells[0].outputs[0].text == f"True {work}\n"


def test_jupyter_execute(work: Path) -> None:
    nbformat.write(notebook("6 * 7"), work / "in.ipynb")
    subprocess.run(
        [*JUPYTER, "execute", "--inplace", "in.ipynb"],
        cwd=work,
        check=True,
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    result = nbformat.read(work / "in.ipynb", as_version=4)
    assert result.cells[0].outputs[0].data["text/plain"] == "42"


def test_jupyter_run(work: Path, daemon: RunningDaemon) -> None:
    (work / "script.py").write_text("import os; print('pid', os.getpid() < 10)\n")
    done = subprocess.run(
        [*JUPYTER, "run", "--kernel", KERNEL_NAME, "script.py"],
        cwd=work,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    assert "pid True" in done.stdout
    assert list(daemon.client().kernels()) == [], done.stderr


def test_jupyter_console(work: Path, daemon: RunningDaemon) -> None:
    # As it leaves, it sends a shutdown_request and waits for nothing: that may be lost with it.
    assert any(_console_ends_its_kernel(work, daemon) for _ in range(3))


def _console_ends_its_kernel(work: Path, daemon: RunningDaemon) -> bool:
    done = subprocess.run(
        [*JUPYTER, "console", "--simple-prompt", "--kernel", KERNEL_NAME],
        input="x = 6 * 7\nprint('answer', x)\nimport os; print('pid', os.getpid() < 10)\nexit()\n",
        cwd=work,
        env={**os.environ, "TERM": "dumb", "JUPYTER_CONSOLE_TEST": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    client = daemon.client()
    try:
        assert "answer 42" in done.stdout, (done.stdout, done.stderr)
        assert "pid True" in done.stdout
        with contextlib.suppress(AssertionError):
            wait_until(lambda: all(k.state == "exited" for k in client.kernels()), timeout_s=10)
        return all(kernel.state == "exited" for kernel in client.kernels())
    finally:
        for kernel in client.kernels():  # nobody removes what ended
            client.remove(kernel.id)


def test_kernelspec_is_listed(work: Path) -> None:
    done = subprocess.run(
        [*JUPYTER, "kernelspec", "list", "--json"], capture_output=True, text=True, check=True
    )
    assert KERNEL_NAME in json.loads(done.stdout)["kernelspecs"]
    done = subprocess.run(
        [*JUPYTER, "kernelspec", "provisioners"], capture_output=True, text=True, check=True
    )
    assert "sandboxkernel.provisioner:SandboxProvisioner" in done.stdout


class Channels:
    """The websocket of a kernel."""

    def __init__(self, server: Server, kernel_id: str) -> None:
        self.server, self.kernel_id = server, kernel_id
        self._connect()

    def _connect(self) -> None:
        server, kernel_id = self.server, self.kernel_id
        self.session = uuid.uuid4().hex
        self.socket = websocket.create_connection(
            f"{server.url.replace('http', 'ws')}/api/kernels/{kernel_id}/channels"
            f"?session_id={self.session}",
            header={"Authorization": f"token {server.token}"},
            timeout=TIMEOUT_S,
        )

    def reopen(self) -> None:
        """Start over after a restart, as JupyterLab does: the server looks whether it is heard.

        On a websocket that stays open, its iopub subscriber is back 100 to 200 ms after the old
        process's end (ZMQ_RECONNECT_IVL), and what a fresh process publishes before is lost: 21
        cells of 40 with plain ipykernel, 16 of 40 here, sent at once.
        """
        self.close()
        self._connect()

    def execute(self, code: str) -> str:
        msg_id = uuid.uuid4().hex
        header = {
            "msg_id": msg_id,
            "msg_type": "execute_request",
            "session": self.session,
            "username": "test",
            "version": "5.4",
            "date": "2026-01-01T00:00:00Z",
        }
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
        message = {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}}
        self.socket.send(json.dumps({**message, "content": content}))
        return msg_id

    def until(self, msg_id: str | None, msg_type: str, **content: Any) -> dict[str, Any]:
        """The next message of this kind; None: whatever its parent."""
        deadline = time.monotonic() + TIMEOUT_S  # the server's pings keep the socket alive
        while time.monotonic() < deadline:
            opcode, data = self.socket.recv_data(control_frame=True)
            if opcode != websocket.ABNF.OPCODE_TEXT:
                continue
            message = json.loads(data)
            if msg_id is not None and message["parent_header"].get("msg_id") != msg_id:
                continue
            if message["msg_type"] == msg_type and content.items() <= message["content"].items():
                return message["content"]
        raise TimeoutError(f"no {msg_type} for {msg_id} in {TIMEOUT_S} s")

    def result(self, code: str) -> str:
        return self.until(self.execute(code), "execute_result")["data"]["text/plain"]

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def server(
    daemon: RunningDaemon, talk_to_the_daemon: None, work: Path, tmp_path: Path
) -> Iterator[Server]:
    with running_server(work, tmp_path / "server.log") as running:
        yield running


def test_server_rest_and_websocket(server: Server, daemon: RunningDaemon) -> None:
    kernel_id = server.call("POST", "kernels", {"name": KERNEL_NAME})["id"]
    assert [k.kernel_id for k in daemon.client().kernels()] == [kernel_id]
    channels = Channels(server, kernel_id)
    assert channels.result("import os; os.getpid() < 10") == "True"

    loop = channels.execute("kept = 42\nprint('in the loop', flush=True)\nwhile True: pass")
    channels.until(loop, "stream", name="stdout")
    server.call("POST", f"kernels/{kernel_id}/interrupt")
    assert channels.until(loop, "error")["ename"] == "KeyboardInterrupt"
    # Until it is idle again, ipykernel aborts what follows a cell that failed.
    channels.until(loop, "status", execution_state="idle")
    assert channels.result("kept") == "42"

    server.call("POST", f"kernels/{kernel_id}/restart")
    channels.reopen()
    assert channels.result("'kept' in globals()") == "False"
    assert daemon.client().inspect(kernel_id).generation == 2

    server.call("DELETE", f"kernels/{kernel_id}")
    channels.close()
    assert server.call("GET", "kernels") == []
    assert list(daemon.client().kernels()) == []


def test_server_restarts_a_kernel_that_died_and_says_why(
    server: Server, daemon: RunningDaemon
) -> None:
    kernel_id = server.call("POST", "kernels", {"name": KERNEL_NAME})["id"]
    channels = Channels(server, kernel_id)
    assert channels.result("1") == "1"
    channels.execute("import os; os._exit(5)")
    channels.until(None, "status", execution_state="restarting")
    assert "5" in server.call("GET", f"kernels/{kernel_id}")["reason"]
    wait_until(lambda: daemon.client().inspect(kernel_id).generation == 2)
    channels.reopen()
    assert channels.result("2") == "2"
    channels.close()
    server.call("DELETE", f"kernels/{kernel_id}")


def test_server_sessions(server: Server, daemon: RunningDaemon, work: Path) -> None:
    """What JupyterLab does: a session of a notebook in a subfolder, two kernels at once."""
    (work / "sub").mkdir()
    nbformat.write(notebook("1"), work / "sub" / "n.ipynb")
    body = {"path": "sub/n.ipynb", "type": "notebook", "name": "n", "kernel": {"name": KERNEL_NAME}}
    first = server.call("POST", "sessions", body)
    second = server.call("POST", "kernels", {"name": KERNEL_NAME, "path": "sub"})
    channels = Channels(server, first["kernel"]["id"])
    assert channels.result("import os; os.getcwd()") == repr(str(work / "sub"))
    channels.close()
    assert len(list(daemon.client().kernels())) == 2
    server.call("DELETE", f"sessions/{first['id']}")
    assert [k.kernel_id for k in daemon.client().kernels()] == [second["id"]]


def test_server_answers_with_the_reason_of_a_failed_start(work: Path, tmp_path: Path) -> None:
    options = ("--SandboxProvisioner.profile=bio999",)
    with running_server(work, tmp_path / "server.log", *options) as server:
        body = {"path": "n.ipynb", "type": "notebook", "name": "", "kernel": {"name": KERNEL_NAME}}
        answer = server.request("POST", "sessions", body)
        assert answer.status_code == 500
        assert "no profile 'bio999'" in answer.text and "Offered to you" in answer.text


def test_server_that_stops_leaves_no_kernel(
    work: Path, tmp_path: Path, daemon: RunningDaemon
) -> None:
    with running_server(work, tmp_path / "server.log") as server:
        for _ in range(2):
            server.call("POST", "kernels", {"name": KERNEL_NAME})
        assert len(list(daemon.client().kernels())) == 2
    assert list(daemon.client().kernels()) == []


def test_a_server_that_was_killed_finds_its_kernels_again(
    daemon: RunningDaemon, talk_to_the_daemon: None, work: Path, tmp_path: Path
) -> None:
    """The notebook's page, which is still open, goes on under the same ids."""
    (work / "sub").mkdir()
    nbformat.write(notebook("1"), work / "sub" / "n.ipynb")
    body = {
        "path": "sub/n.ipynb", "type": "notebook", "name": "n.ipynb",
        "kernel": {"name": KERNEL_NAME},
    }  # fmt: skip
    with running_server(work, tmp_path / "first.log") as first:
        session = first.call("POST", "sessions", body)
        kernel_id = session["kernel"]["id"]
        channels = Channels(first, kernel_id)
        assert channels.result("kept = 42; kept") == "42"
        first.process.kill()
        first.process.wait()
        channels.close()
    wait_until(lambda: not daemon.client().inspect(kernel_id).attached)
    with running_server(work, tmp_path / "second.log") as second:
        (found,) = wait_until(lambda: second.call("GET", "sessions"))
        assert (found["path"], found["kernel"]["id"]) == ("sub/n.ipynb", kernel_id)
        assert (found["type"], found["kernel"]["name"]) == ("notebook", KERNEL_NAME)
        channels = Channels(second, kernel_id)
        assert channels.result("kept") == "42"
        assert channels.result("import os; os.getcwd()") == repr(str(work / "sub"))
        assert daemon.client().inspect(kernel_id).generation == 1
        second.call("POST", f"kernels/{kernel_id}/restart")
        channels.reopen()
        assert channels.result("'kept' in globals()") == "False"
        channels.execute("import os; os._exit(5)")
        channels.until(None, "status", execution_state="restarting")
        # A server that is still busy restarting it could not end it (jupyter_client).
        channels.reopen()
        assert channels.result("2") == "2"
        channels.close()
        assert daemon.client().inspect(kernel_id).generation == 3
        second.call("DELETE", f"sessions/{found['id']}")
        assert list(daemon.client().kernels()) == []


def test_a_server_leaves_kernels_alone_that_are_not_its_own(
    daemon: RunningDaemon, talk_to_the_daemon: None, work: Path, tmp_path: Path
) -> None:
    """One that another server is attached to, one of another folder, and a program."""
    inside, outside = work / "inside", work / "outside"
    inside.mkdir()
    outside.mkdir()
    with running_server(inside, tmp_path / "other.log") as other:
        theirs = other.call("POST", "kernels", {"name": KERNEL_NAME})["id"]
        with (
            sandbox(daemon, as_kernel=True, cwd=str(outside)) as elsewhere,
            sandbox(daemon, cwd=str(inside)) as program,
            running_server(inside, tmp_path / "mine.log") as mine,
        ):
            assert mine.call("GET", "kernels") == []
            assert daemon.client().inspect(elsewhere.id).attached is False
            assert daemon.client().inspect(program.id).attached is False
            assert daemon.client().inspect(theirs).attached
        other.call("DELETE", f"kernels/{theirs}")

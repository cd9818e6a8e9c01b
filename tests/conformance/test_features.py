"""What people do in notebooks works in a sandbox as it does outside."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.session import Message, Session, profile_config, session
from tests.support import RunningDaemon, wait_until

PACKAGE = "sandboxkernel_test_package"


@pytest.fixture
def kernel(daemon: RunningDaemon, talk_to_the_daemon: None, work: Path) -> Iterator[Session]:
    with session(work) as running:
        yield running


def test_input(kernel: Session) -> None:
    code = "a = input('first? '); b = input('second? '); print(a + b)"
    reply = kernel.run(code, answers=("one ", "two ü"))
    assert reply.text.endswith("one two ü")
    assert [c["prompt"] for c in reply.contents("input_request")] == ["first? ", "second? "]


def test_getpass(kernel: Session) -> None:
    reply = kernel.run("import getpass; print(len(getpass.getpass('secret? ')))", answers=("abc",))
    assert reply.text.endswith("3")
    (request,) = reply.contents("input_request")
    assert request["password"] is True and request["prompt"] == "secret? "


def test_input_without_a_front_end_that_answers(kernel: Session) -> None:
    assert "StdinNotImplementedError" in kernel.run("input()").error


def test_rich_output(kernel: Session) -> None:
    code = """
import base64
from IPython.display import HTML, Image, JSON, Markdown, clear_output, display
display(HTML('<b>x</b>'), Markdown('*x*'), JSON({'a': 1}))
display(Image(data=base64.b64decode(
    'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
)))
handle = display('before', display_id=True)
handle.update('after')
clear_output()
class Both:
    def _repr_mimebundle_(self, include, exclude):
        return {'text/plain': 'plain', 'text/latex': '$x$'}
Both()
"""
    reply = kernel.run(code)
    assert reply.status == "ok", reply.error
    kinds = [set(c["data"]) - {"text/plain"} for c in reply.contents("display_data")]
    assert kinds[:4] == [{"text/html"}, {"text/markdown"}, {"application/json"}, {"image/png"}]
    (update,) = reply.contents("update_display_data")
    assert "after" in update["data"]["text/plain"] and update["transient"]["display_id"]
    assert reply.contents("clear_output") == [{"wait": False}]
    assert reply.data() == {"text/plain": "plain", "text/latex": "$x$"}


def test_error_has_a_traceback(kernel: Session) -> None:
    reply = kernel.run("def f():\n    return 1 / 0\nf()")
    (error,) = reply.contents("error")
    assert error["ename"] == "ZeroDivisionError" and len(error["traceback"]) > 2


def test_large_output_arrives_whole(kernel: Session) -> None:
    reply = kernel.run("print('x' * 5_000_000); {'big': 'y' * 5_000_000}")
    assert len(reply.text) == 5_000_000
    assert len(reply.data()["text/plain"]) > 5_000_000


def test_output_of_subprocesses_and_of_the_descriptors(kernel: Session) -> None:
    code = """
import subprocess, sys, os
!echo from the shell
subprocess.run(['sh', '-c', 'echo from a subprocess; echo to stderr >&2'], check=True)
os.write(1, b'from descriptor 1\\n')
print(subprocess.run([sys.executable, '-c', 'print(6 * 7)'], capture_output=True, text=True).stdout)
"""
    reply = kernel.run(code)
    for text in ("from the shell", "from a subprocess", "from descriptor 1", "42"):
        assert text in reply.text
    assert "to stderr" in reply.stream("stderr")


def test_shell_magics_and_pipes(kernel: Session) -> None:
    assert kernel.run("%%sh\nprintf 'a\\nb\\nc\\n' | wc -l").text == "3"
    assert kernel.run("lines = !ls /\nprint('usr' in lines)").text == "True"


def test_top_level_await(kernel: Session) -> None:
    code = "import asyncio\nprint(await asyncio.gather(*(asyncio.sleep(0, n) for n in range(3))))"
    assert kernel.run(code).text == "[0, 1, 2]"


class TestComms:
    def test_round_trip(self, kernel: Session) -> None:
        code = """
opened = []
def target(comm, message):
    opened.append((comm, message['content']['data']))
    comm.on_msg(lambda m: comm.send({'echo': m['content']['data']}, buffers=m['buffers']))
    comm.send({'hello': True})
get_ipython().kernel.comm_manager.register_target('echo', target)
"""
        assert kernel.run(code).status == "ok"
        self.send(kernel, "comm_open", target_name="echo", data={"n": 1})
        assert self.answer(kernel)["content"]["data"] == {"hello": True}
        self.send(kernel, "comm_msg", data={"n": 2}, buffers=[b"\x00binary"])
        answer = self.answer(kernel)
        assert answer["content"]["data"] == {"echo": {"n": 2}}
        assert bytes(answer["buffers"][0]) == b"\x00binary"
        assert kernel.run("print(opened[0][1])").text == "{'n': 1}"

    def test_widget(self, kernel: Session) -> None:
        code = """
import ipywidgets
slider = ipywidgets.IntSlider(value=3)
seen = []
slider.observe(lambda change: seen.append(change['new']), 'value')
slider
"""
        reply = kernel.run(code)
        assert reply.status == "ok", reply.error
        view = reply.data()["application/vnd.jupyter.widget-view+json"]
        models = {c["comm_id"]: c["data"]["state"] for c in reply.contents("comm_open")}
        assert models[view["model_id"]]["value"] == 3
        update = {"method": "update", "state": {"value": 7}, "buffer_paths": []}
        self.send(kernel, "comm_msg", comm_id=view["model_id"], data=update)
        assert kernel.run("print(slider.value, seen)").text == "7 [7]"

    @staticmethod
    def send(
        kernel: Session,
        msg_type: str,
        *,
        comm_id: str = "one",
        buffers: list[bytes] | None = None,
        **content: Any,
    ) -> None:
        session = kernel.client.session
        message = session.msg(msg_type, {"comm_id": comm_id, **content})
        session.send(kernel.client.shell_channel.socket, message, buffers=buffers)

    @staticmethod
    def answer(kernel: Session) -> Message:
        return kernel.iopub_until(lambda m: m["header"]["msg_type"] == "comm_msg")


class TestDebugger:
    """The Debug Adapter Protocol as JupyterLab speaks it."""

    CODE = "def double(x):\n    y = x * 2\n    return y\n\nprint(double(21))\n"

    @pytest.mark.parametrize("encryption", ["disabled", "required"])
    def test_breakpoint_in_a_cell(self, work: Path, encryption: str) -> None:
        with session(work, transport_encryption=encryption) as kernel:
            self.debug(kernel)

    def debug(self, kernel: Session) -> None:
        self.seq = 0
        info = kernel.control("kernel_info_request", {})["content"]
        assert "debugger" in info.get("supported_features", []) or info.get("debugger")
        arguments = {
            "clientID": "test", "clientName": "test", "adapterID": "", "pathFormat": "path",
            "linesStartAt1": True, "columnsStartAt1": True, "supportsVariableType": True,
            "supportsVariablePaging": True, "supportsRunInTerminalRequest": True, "locale": "en",
        }  # fmt: skip
        assert self.request(kernel, "initialize", arguments)["success"]
        assert self.request(kernel, "attach")["success"]
        path = self.request(kernel, "dumpCell", {"code": self.CODE})["body"]["sourcePath"]
        breakpoints = self.request(
            kernel,
            "setBreakpoints",
            {"breakpoints": [{"line": 3}], "source": {"path": path}, "sourceModified": False},
        )["body"]["breakpoints"]
        assert breakpoints[0]["verified"]
        assert self.request(kernel, "debugInfo")["body"]["isStarted"]
        assert self.request(kernel, "configurationDone")["success"]

        msg_id = kernel.client.execute(self.CODE)
        event = kernel.iopub_until(lambda m: m["content"].get("event") == "stopped")["content"]
        assert event["body"]["reason"] == "breakpoint"
        thread = event["body"]["threadId"]
        frames = self.request(kernel, "stackTrace", {"threadId": thread})["body"]["stackFrames"]
        assert (frames[0]["name"], frames[0]["line"]) == ("double", 3)
        scopes = self.request(kernel, "scopes", {"frameId": frames[0]["id"]})["body"]["scopes"]
        reference = {"variablesReference": scopes[0]["variablesReference"]}
        variables = self.request(kernel, "variables", reference)["body"]["variables"]
        assert {v["name"]: v["value"] for v in variables if v["name"] in "xy"} == {
            "x": "21",
            "y": "42",
        }
        assert self.request(kernel, "continue", {"threadId": thread})["success"]
        reply = kernel.finish(msg_id)
        assert reply.status == "ok"
        arguments = {"restart": False, "terminateDebuggee": False}
        assert self.request(kernel, "disconnect", arguments)["success"]
        assert kernel.run("print(double(1))").text == "2"

    def request(
        self, kernel: Session, command: str, arguments: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        self.seq += 1
        content = {
            "type": "request",
            "seq": self.seq,
            "command": command,
            "arguments": arguments or {},
        }
        reply = kernel.control("debug_request", content)["content"]
        assert reply["command"] == command, reply
        return reply


def test_subshell_answers_while_a_cell_runs(kernel: Session) -> None:
    info = kernel.control("kernel_info_request", {})["content"]
    assert "kernel subshells" in info["supported_features"]
    created = kernel.control("create_subshell_request", {})["content"]
    assert created["status"] == "ok"
    subshell = created["subshell_id"]
    busy = kernel.start(
        "import time\nstop = False\nprint('busy', flush=True)\nwhile not stop: time.sleep(0.01)",
        until="busy",
    )
    content = {"code": "stop = True; 6 * 7", "silent": False, "allow_stdin": False}
    message = kernel.client.session.msg("execute_request", content)
    message["header"]["subshell_id"] = subshell
    kernel.client.shell_channel.send(message)
    msg_id = message["header"]["msg_id"]
    result = kernel.iopub_until(
        lambda m: (
            m["parent_header"].get("msg_id") == msg_id
            and m["header"]["msg_type"] == "execute_result"
        )
    )
    assert result["content"]["data"]["text/plain"] == "42"
    # Two threads answer: which reply comes first is not promised.
    replies: dict[str, str] = {}
    while len(replies) < 2:
        reply = kernel.client.get_shell_msg(timeout=60)
        answered = reply["parent_header"]["msg_id"]
        if answered in (busy, msg_id):  # others are of the session's start
            replies[answered] = reply["content"]["status"]
    assert replies == {busy: "ok", msg_id: "ok"}
    deleted = kernel.control("delete_subshell_request", {"subshell_id": subshell})["content"]
    assert deleted["status"] == "ok"


def test_usage_request(kernel: Session) -> None:
    """What jupyter-resource-usage asks, from inside: no process of the host is in it."""
    content = kernel.control("usage_request", {})["content"]
    assert content["pid"] < 10 and content["kernel_memory"] > 0


def wheel(folder: Path) -> Path:
    """A pure wheel, written by hand: neither a network nor a build tool is needed."""
    path = folder / f"{PACKAGE}-1.0-py3-none-any.whl"
    info = f"{PACKAGE}-1.0.dist-info"
    members = {
        f"{PACKAGE}.py": "def greet():\n    return 'installed'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    names = [*members, f"{info}/RECORD"]
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in names))
    return path


def test_pip_install_persists(work: Path) -> None:
    source = wheel(work)
    imported = f"import {PACKAGE}; print({PACKAGE}.greet(), {PACKAGE}.__file__)"
    try:
        with session(work) as kernel:
            reply = kernel.run(f"%pip install --no-index {source}", timeout_s=110)
            assert "Successfully installed" in reply.text, reply.text
            kernel.manager.restart_kernel()
            kernel.client.wait_for_ready(timeout=60)
            assert kernel.run(imported).text.startswith("installed "), "after a restart"
        with session(work) as kernel:
            assert kernel.run(imported).text.startswith("installed "), "in another notebook"
        with session(work, config=profile_config("throwaway")) as kernel:
            assert "ModuleNotFoundError" in kernel.run(imported).error, "not without a layer"
    finally:
        with session(work) as kernel:
            kernel.run(f"%pip uninstall --yes {PACKAGE}", timeout_s=110)
    assert not list(work.glob("*.dist-info")) and list(work.iterdir()) == [source]


def test_first_pip_install_is_importable_at_once(work: Path) -> None:
    """A fresh layer has no user site yet, and Python looks for one at its start only."""
    source = wheel(work)
    with session(work, config=profile_config("throwaway")) as kernel:
        kernel.run(f"%pip install --no-index {source}", timeout_s=110)
        assert kernel.run(f"import {PACKAGE}; print({PACKAGE}.greet())").text == "installed"


def test_pip_install_without_a_network_fails_and_says_so(kernel: Session) -> None:
    reply = kernel.run("%pip install --retries 0 no-such-package-of-sandboxkernel", timeout_s=110)
    output = reply.stream("stdout") + reply.stream("stderr")
    assert "No matching distribution" in output, output


def test_threads(kernel: Session) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(16) as pool:
    print(sum(pool.map(lambda n: n * n, range(1000))))
"""
    assert kernel.run(code).text == str(sum(n * n for n in range(1000)))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(kernel: Session, method: str) -> None:
    code = f"""
import math, multiprocessing, os, warnings
warnings.simplefilter('ignore')
context = multiprocessing.get_context('{method}')
with context.Pool(3) as pool:
    print(pool.map(math.factorial, range(6)), len(set(pool.starmap(os.getpid, [()] * 30))) >= 1)
queue, lock, value = context.Queue(), context.Lock(), context.Value('i', 5)
with lock:
    value.value += 1
queue.put('queued')
print(queue.get(timeout=60), value.value)
"""
    lines = kernel.run(code).text.splitlines()
    assert lines == ["[1, 1, 2, 6, 24, 120] True", "queued 6"]


def test_process_pool_executor_with_a_function_of_the_notebook(kernel: Session) -> None:
    code = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
def square(n):
    return n * n
with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('fork')) as pool:
    print(list(pool.map(square, range(5))))
"""
    assert kernel.run(code).text == "[0, 1, 4, 9, 16]"


def test_shared_memory(kernel: Session) -> None:
    code = """
import os, subprocess, sys
from multiprocessing import shared_memory
block = shared_memory.SharedMemory(create=True, size=1 << 20)
block.buf[:5] = b'hello'
child = '''
import sys
from multiprocessing import resource_tracker, shared_memory
block = shared_memory.SharedMemory(sys.argv[1])
resource_tracker.unregister(block._name, 'shared_memory')
print(bytes(block.buf[:5]).decode())
block.buf[:5] = b'world'
block.close()
'''
out = subprocess.run([sys.executable, '-c', child, block.name], capture_output=True, text=True)
print(out.stdout.strip(), out.stderr.strip(), bytes(block.buf[:5]).decode())
print(os.path.exists('/dev/shm/' + block.name))
block.close()
block.unlink()
print(os.listdir('/dev/shm'))
"""
    lines = kernel.run(code).text.splitlines()
    assert lines == ["hello  world", "True", "[]"]


def test_shared_memory_is_capped(kernel: Session, daemon: RunningDaemon) -> None:
    """A full /dev/shm is an error in the cell and not the end of the kernel."""
    limit = daemon.client().inspect(kernel.kernel_id).limits.shm_bytes
    code = f"""
import errno, os
fd = os.open('/dev/shm/big', os.O_CREAT | os.O_RDWR)
try:
    os.posix_fallocate(fd, 0, {limit} + (1 << 20))
except OSError as error:
    print(errno.errorcode[error.errno])
os.unlink('/dev/shm/big')
"""
    assert kernel.run(code).text == "ENOSPC"


def test_posix_message_queues(kernel: Session) -> None:
    """The queue of the other end is another process's, and the host has none of its name."""
    code = """
import ctypes, os
librt = ctypes.CDLL(None, use_errno=True)
queue = librt.mq_open(b'/sandboxkernel-test', os.O_CREAT | os.O_RDWR, 0o600, None)
assert queue >= 0, os.strerror(ctypes.get_errno())
if (pid := os.fork()) == 0:
    other = librt.mq_open(b'/sandboxkernel-test', os.O_WRONLY)
    os._exit(librt.mq_send(other, b'hello', 5, 0) & 1)
text = ctypes.create_string_buffer(8192)
print(os.waitpid(pid, 0)[1], text[:librt.mq_receive(queue, text, 8192, None)])
print(os.listdir('/dev/mqueue'))
print(librt.mq_unlink(b'/sandboxkernel-test'))
"""
    assert kernel.run(code).text.splitlines() == ["0 b'hello'", "['sandboxkernel-test']", "0"]


def test_numpy(kernel: Session) -> None:
    code = """
import numpy
a = numpy.arange(400 * 400, dtype=float).reshape(400, 400) / 1e4
inverse = numpy.linalg.inv(a @ a.T + numpy.eye(400))
print(numpy.allclose(inverse @ (a @ a.T + numpy.eye(400)), numpy.eye(400), atol=1e-4))
print(float((a @ numpy.eye(400)).sum()))
"""
    expected = sum(range(400 * 400)) / 1e4
    same, total = kernel.run(code).text.splitlines()
    assert same == "True" and abs(float(total) - expected) < 1e-3


def test_files_of_the_notebook(work: Path) -> None:
    """The folder is the same inside and outside, with owners that fit on both sides."""
    (work / "data.csv").write_text("a,b\n1,2\n")
    (work / "helper.py").write_text("ANSWER = 42\n")
    with session(work) as kernel:
        assert kernel.run("import helper; print(helper.ANSWER)").text == "42"
        assert kernel.run("print(open('data.csv').read().split()[1])").text == "1,2"
        code = "import os\nos.makedirs('results/deep')\nopen('results/deep/r.txt', 'w').write('r')"
        assert kernel.run(code).status == "ok"
    made = work / "results" / "deep" / "r.txt"
    assert made.read_text() == "r"
    assert (made.stat().st_uid, made.stat().st_gid) == (0, 0), "the notebook's owner's"


def test_temporary_files_and_home(kernel: Session) -> None:
    code = """
import pathlib, tempfile
with tempfile.NamedTemporaryFile() as file:
    file.write(b'x'); print(file.name.startswith('/tmp/'))
print(pathlib.Path.home())
"""
    assert kernel.run(code).text.splitlines() == ["True", "/home/sandbox"]


def test_history_and_introspection(kernel: Session) -> None:
    kernel.run("remembered = 1")
    assert "remembered = 1" in kernel.run("%history").text
    reply = kernel.client.complete("remembe", 7, reply=True, timeout=60)
    assert "remembered" in reply["content"]["matches"]
    reply = kernel.client.inspect("remembered", 5, reply=True, timeout=60)
    assert reply["content"]["found"]


def test_inputs_and_outputs_are_in_the_namespace(kernel: Session) -> None:
    kernel.run("6 * 7")
    shown = kernel.run("print(In, Out, _, _i1, [str(path) for path in _dh])").text
    line = "print(In, Out, _, _i1, [str(path) for path in _dh])"
    folder = kernel.run("import os; print(os.getcwd())").text
    assert shown == f"{['', '6 * 7', line]} {{1: 42}} 42 6 * 7 {[folder]}"


def test_history_of_earlier_kernels_is_there_for_the_very_first_cell(work: Path) -> None:
    """A forked kernel opens the database late, but never later than it is asked for."""
    marker = f"marker = {time.monotonic_ns()}"
    with session(work) as kernel:
        kernel.run(marker)
    with session(work) as kernel:
        assert marker in kernel.run("%history -g marker").text


def test_a_first_cell_that_never_ends_is_in_the_history(work: Path) -> None:
    """A forked kernel opens the database after its start, whatever its first cell does."""
    marker = f"marker = {time.monotonic_ns()}"
    with session(work, ready=False) as busy, session(work) as kernel:
        busy.client.execute(f"{marker}; import time\nwhile True: time.sleep(60)")
        wait_until(lambda: marker in kernel.run("%history -g marker").text, what="it is written")


def test_a_cell_that_is_not_stored_leaves_no_trace_in_the_history(kernel: Session) -> None:
    kernel.run("unstored = 1", store_history=False)
    kernel.run("stored = 2")
    assert kernel.run("%history").text.splitlines()[0] == "stored = 2"


def test_local_server_inside(kernel: Session) -> None:
    """lo is up: Dask, Spark and debuggers talk to themselves over it."""
    code = """
import http.server, threading, urllib.request
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
with urllib.request.urlopen(f'http://127.0.0.1:{server.server_port}/') as answer:
    print(answer.status)
server.shutdown()
"""
    reply = kernel.run(code)
    assert reply.status == "ok", reply.error
    assert reply.stream("stdout").strip() == "200"


def test_background_process_ends_with_the_kernel(work: Path, daemon: RunningDaemon) -> None:
    with session(work) as kernel:
        code = "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True)"
        assert kernel.run(code).status == "ok"
        before = daemon.client().stats(kernel.kernel_id).pids
        kernel.manager.restart_kernel(now=True)
        kernel.client.wait_for_ready(timeout=60)
        count = "import os; print(sum(open(f'/proc/{p}/comm').read() == 'sleep\\n' for p in os.listdir('/proc') if p.isdigit()))"
        assert kernel.run(count).text == "0"
        wait_until(lambda: daemon.client().stats(kernel.kernel_id).pids <= before)

"""A forked kernel cannot be told from one that was started as a fresh interpreter.

One item a test, or one member of a snapshot that both kinds of kernel answer alike. What siblings
do share, the hash seed and the layout of the address space, is said in docs/security.md.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conformance.session import KERNEL_NAME, Session, session
from tests.support import RunningDaemon, sandbox, wait_until, warm_up

SNAPSHOT = """
import asyncio, gc, json, locale, logging, os, platform, resource, signal, site, socket, sys
import tempfile, threading, time, warnings
status = dict(l.split(':\\t', 1) for l in open('/proc/self/status').read().splitlines() if ':\\t' in l)
print(json.dumps({
    'argv': sys.argv, 'orig_argv': [a for a in sys.orig_argv if 'python' not in a],
    'path': sys.path, 'executable': sys.executable, 'flags': str(sys.flags), 'prefix': sys.prefix,
    'main': sorted(n for n in vars(sys.modules['__main__']) if not n.startswith('_'))[:5],
    'main_file': getattr(sys.modules['__main__'], '__file__', None),
    'environ': {k: v for k, v in sorted(os.environ.items())},
    'cwd': os.getcwd(), 'umask': (os.umask(0o22), os.umask(0o22)), 'pid': os.getpid() < 9,
    'ppid': os.getppid(), 'leader': os.getsid(0) == os.getpid() == os.getpgid(0),
    'comm': open('/proc/self/comm').read(), 'nice': os.nice(0),
    'hostname': [platform.node() == socket.gethostname() == os.uname().nodename],
    'signals': {int(s): str(signal.getsignal(s)).split(' at ')[0] for s in signal.valid_signals()},
    'blocked': [int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    'itimer': signal.getitimer(signal.ITIMER_REAL), 'wakeup': signal.set_wakeup_fd(-1) >= 0,
    'rlimits': {n: resource.getrlimit(getattr(resource, n)) for n in dir(resource) if n[:7] == 'RLIMIT_'},
    'locale': locale.setlocale(locale.LC_CTYPE), 'tz': time.tzname, 'tmp': tempfile.gettempdir(),
    'encoding': [sys.getfilesystemencoding(), sys.stdout.encoding, sys.getdefaultencoding()],
    'site': [site.ENABLE_USER_SITE, site.USER_BASE, site.USER_SITE], 'gc': [gc.isenabled(), gc.get_threshold(), gc.get_debug()],
    'threads': sorted(t.name for t in threading.enumerate()), 'main_thread': threading.main_thread().native_id == os.getpid(),
    'daemons': sorted(t.name for t in threading.enumerate() if t.daemon),
    'stdio': [os.readlink(f'/proc/self/fd/{n}').split(':')[0] for n in range(3)],
    'inheritable': [n for n in map(int, os.listdir('/proc/self/fd')) if n > 2 and os.path.exists(f'/proc/self/fd/{n}') and os.get_inheritable(n)],
    'kinds': sorted({os.readlink(f'/proc/self/fd/{n}').split(':')[0] for n in os.listdir('/proc/self/fd') if os.path.islink(f'/proc/self/fd/{n}')} - {os.path.expanduser('~/.ipython/profile_default' + name) for name in ('', '/history.sqlite-journal')}),
    'caps': [status[n] for n in ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp', 'Groups', 'Uid', 'Gid')],
    'loggers': [type(h).__name__ for h in logging.getLogger().handlers], 'level': logging.getLogger().level,
    'warnings': [str(f[:3]) for f in warnings.filters], 'loop': type(asyncio.get_event_loop()).__name__,
    'ours': sorted(n for n in sys.modules if n.startswith('sandboxruntime')),
    'ipython': [get_ipython().profile, sorted(type(c).__name__ for c in get_ipython().configurables)],
    'history': get_ipython().history_manager.enabled, 'hist_file': str(get_ipython().history_manager.hist_file),
    'dumpable': __import__('ctypes').CDLL(None).prctl(3),
    'oom': open('/proc/self/oom_score_adj').read(), 'timerslack': __import__('ctypes').CDLL(None).prctl(30),
    'children': open(f'/proc/self/task/{os.getpid()}/children').read(),
    'mounts': sorted(l.split(' ')[4] for l in open('/proc/self/mountinfo').read().splitlines()),
    'cgroup': open('/proc/self/cgroup').read(), 'session': 'JPY_SESSION_NAME' in os.environ,
    'recursion': sys.getrecursionlimit(), 'switch': sys.getswitchinterval(), 'hooks': [sys.displayhook is get_ipython().displayhook, sys.excepthook.__name__],
    'stdin': [sys.stdin is None or sys.stdin.isatty()],
}))
"""
# One value of each kind that must not repeat from kernel to kernel.
DRAWS = {
    "random": "import random; print(random.random())",
    "random of another module's generator": "import random; print(random.getrandbits(64))",
    "numpy": "import numpy; print(numpy.random.random())",
    "numpy generator": "import numpy; print(numpy.random.default_rng().random())",
    "uuid1": "import uuid; print(uuid.uuid1().clock_seq, uuid.uuid1().node)",
    "uuid4": "import uuid; print(uuid.uuid4())",
    "temporary names": "import tempfile; print(tempfile.mktemp())",
    "secrets": "import secrets; print(secrets.token_hex())",
    "ssl": "import ssl; print(ssl.RAND_bytes(16).hex())",
    "multiprocessing key": "import multiprocessing as m; print(m.current_process().authkey.hex())",
    "session": "print(get_ipython().kernel.session.session)",
    "kernel ident": "print(get_ipython().kernel.ident)",
    "host name": "import socket; print(socket.gethostname())",
}


def talk_to(daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOXKERNEL_HOST", f"unix://{daemon.socket_path}")


def start_path(daemon: RunningDaemon, kernel: Session) -> str:
    return daemon.client().inspect(kernel.kernel_id).start_path


def snapshot(daemon: RunningDaemon, work: Path) -> tuple[str, dict[str, Any]]:
    with session(work) as kernel:
        return start_path(daemon, kernel), json.loads(kernel.run(SNAPSHOT).text)


def test_a_forked_kernel_is_like_a_fresh_one(
    daemon: RunningDaemon, cold_daemon: RunningDaemon, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk_to(cold_daemon, monkeypatch)
    with session(work) as kernel:  # the first kernel of a layer makes what later ones find
        kernel.run("pass")
    path, fresh = snapshot(cold_daemon, work)
    assert path == "cold"
    talk_to(daemon, monkeypatch)
    path, found = snapshot(daemon, work)
    if "cold" not in os.environ.get("PYTEST_CURRENT_TEST", ""):
        assert path in ("warm", "spare")
    different = {k: (v, fresh[k]) for k, v in found.items() if v != fresh[k]}
    assert not different, different


@pytest.mark.parametrize("code", DRAWS.values(), ids=DRAWS)
def test_siblings_share_no_random_state(work: Path, code: str) -> None:
    with session(work) as one, session(work) as other:
        assert one.run(code).text != other.run(code).text


def test_a_sibling_finds_nothing_of_an_earlier_one(work: Path) -> None:
    """Not a byte of memory. The secret is put together inside; the search does not find itself."""
    make = "kept = 'canary' + '-' + 'of-the-first' * 3"
    search = """
import re
found = []
for line in open('/proc/self/maps'):
    span, modes = line.split()[:2]
    if modes[0] == 'r' and '[v' not in line:
        start, end = (int(part, 16) for part in span.split('-'))
        with open('/proc/self/mem', 'rb', 0) as memory:
            try:
                memory.seek(start)
                found += re.findall(b'canary-of-the-firsto[f]-', memory.read(end - start))
            except OSError: pass
print(len(found))
"""
    with session(work) as one:
        one.run(make)
        assert int(one.run(search).text) > 0, "the search finds what is there"
    with session(work) as other:
        assert other.run(search).text == "0"


def test_threads_of_blas_are_the_kernels_own(work: Path) -> None:
    """A matrix product in parent and child, and in a child of that: no pool is lost in a fork."""
    code = """
import numpy, os
a = numpy.arange(250000.0).reshape(500, 500) % 7
expected = float((a @ a).sum())
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, str(float((a @ a).sum()) == expected).encode())
    os._exit(0)
os.wait()
print(os.read(read, 10).decode(), numpy.linalg.solve(a + numpy.eye(500) * 9, a[0]).shape)
"""
    for _ in range(2):
        with session(work) as kernel:
            assert kernel.run(code).text == "True (500,)"


def test_what_acts_on_an_interpreters_start_gets_one(
    daemon: RunningDaemon, work: Path, request: pytest.FixtureRequest
) -> None:
    """A variable that CPython or a module reads at its start: the kernel is a fresh interpreter."""
    if "cold" in request.node.callspec.id:
        return
    client = daemon.client()
    for env, reason in (
        ({"PYTHONHASHSEED": "7"}, "variable PYTHONHASHSEED"),
        ({"LC_ALL": "C"}, "locale 'C' is not UTF-8"),
    ):
        with sandbox(daemon, as_kernel=True, env=env) as kernel:
            found = client.inspect(kernel.id)
            assert (found.start_path, found.cold_reason) == ("cold", reason)


def test_kernels_of_nbclient_are_forked_and_keep_their_history_in_memory(
    daemon: RunningDaemon, work: Path, request: pytest.FixtureRequest
) -> None:
    """It gives `python3` an argument, the one that a prepared interpreter takes."""
    cold = "cold" in request.node.callspec.id
    if not cold:
        warm_up(daemon)
    code = """
import sys
manager = get_ipython().history_manager
print(manager.enabled, manager.hist_file, manager.save_thread, sys.argv[3:])
%history
"""
    argument = "--HistoryManager.hist_file=:memory:"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    client = NotebookClient(
        notebook,
        kernel_name=KERNEL_NAME,
        extra_arguments=[argument],
        resources={"metadata": {"path": str(work)}},
    )
    with client.setup_kernel():
        (found,) = [
            k for k in daemon.client().kernels() if k.state == "running" and k.cwd == str(work)
        ]
        client.execute_cell(notebook.cells[0], 0)
    (output,) = notebook.cells[0].outputs
    assert output["text"].splitlines()[0] == f"True :memory: None ['{argument}']"
    assert "manager = get_ipython()" in output["text"]
    assert (found.start_path == "cold") == cold


def test_users_configuration_and_packages_are_honoured(
    daemon: RunningDaemon, work: Path, request: pytest.FixtureRequest
) -> None:
    """IPython's configuration, a startup file, and a package that shadows an imported one."""
    if "cold" in request.node.callspec.id:
        return
    with session(work) as kernel:
        kernel.run(
            "import os, site; os.makedirs(os.path.expanduser('~/.ipython/profile_default/startup'), exist_ok=True)"
        )
        kernel.run(
            "open(os.path.expanduser('~/.ipython/profile_default/startup/00.py'), 'w').write('started = 41')"
        )
        kernel.run("os.makedirs(site.getusersitepackages(), exist_ok=True)")
        kernel.run("open(site.getusersitepackages() + '/only_mine.py', 'w').write('mine = 1')")
    try:
        with session(work) as kernel:
            assert start_path(daemon, kernel) in ("warm", "spare")
            assert kernel.run("import only_mine; print(started + only_mine.mine)").text == "42"
            # Found by no import, for the standard library comes first; who knows that of any name?
            kernel.run("import site; open(site.getusersitepackages() + '/calendar.py', 'w')")
        with session(work) as kernel:
            assert start_path(daemon, kernel) == "cold"
            assert "own package calendar" in daemon.client().inspect(kernel.kernel_id).cold_reason
    finally:
        with sandbox(daemon) as box:
            list(daemon.client().exec(box.id, ["sh", "-c", "rm -rf ~/.ipython ~/.local"]))


def test_a_zygote_that_dies_is_replaced_and_its_kernels_live_on(
    daemon: RunningDaemon, work: Path, request: pytest.FixtureRequest
) -> None:
    if "cold" in request.node.callspec.id:
        return
    zygote = warm_up(daemon)
    with session(work) as kernel:
        assert start_path(daemon, kernel) in ("warm", "spare")
        os.kill(wait_until(lambda: _pid_of(zygote.id)), 9)
        wait_until(
            lambda: (
                zygote.id not in {z.id for z in daemon.client().zygotes().zygotes if not z.retired}
            )
        )
        assert kernel.run("print(6 * 7)").text == "42"
        with session(work) as next_one:  # none to fork from: it starts cold, by itself
            assert next_one.run("print(6 * 7)").text == "42"
    wait_until(lambda: warm_up(daemon).id != zygote.id)


def _pid_of(zygote_id: str) -> int | None:
    """The zygote's pid; None while it forks a spare, which is in its cgroup for a moment."""
    found = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _is_zygote(entry, zygote_id)
    ]
    return found[0] if len(found) == 1 else None


def _is_zygote(entry: Path, zygote_id: str) -> bool:
    try:
        return (
            f"/zygotes/{zygote_id}" in (entry / "cgroup").read_text()
            and b"zygote.py" in (entry / "cmdline").read_bytes()
        )
    except OSError:
        return False

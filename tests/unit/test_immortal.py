"""Immortal objects of a zygote: from CPython 3.12 on all of them, before it none."""

from __future__ import annotations

import subprocess
import sys

from tests.support import ROOT

# A process of its own: it is for good.
SCRIPT = """
import ctypes, gc, sys

class Node:
    pass

node = Node()
node.names = {"a": [1.5, str(2.5) * 3]}

def function():
    return 123456789.25

def generator():
    yield 1

running = generator()
next(running)

def counts():
    held = (node, node.names, node.names["a"], node.names["a"][1], function.__code__,
            function.__code__.co_consts[-1], sys.modules)
    return [ctypes.c_int32.from_address(id(each)).value < 0 for each in held]

before = counts()
gc.collect()
from sandboxruntime.guest.immortal import immortalise
count = immortalise()
if sys.version_info < (3, 12):
    assert count == 0 and not any(counts()), counts()
else:
    assert not any(before), before
    assert count > 1000 and all(counts()), counts()
    assert ctypes.c_int32.from_address(id(running)).value > 0  # it ends by itself, and is freed
fresh = Node()
assert sys.getrefcount(fresh) == 2  # what comes later is counted
del node, function
gc.freeze()
gc.collect()
print("fine", next(running, "ended"))
"""


def test_what_a_zygote_holds_is_immortal_where_python_knows_that() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env={"PYTHONPATH": str(ROOT / "runtime")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "fine ended\n"), done.stderr

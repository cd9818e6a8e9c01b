"""Sources of the cells that are measured inside a kernel. Pure.

Each leaves its seconds in `taken`, a list of numbers: the clock is read inside, where the work is
done, so that no message is part of it.
"""

from __future__ import annotations

__all__ = ["BASE_FILES", "DATA", "METADATA", "PROCESSOR", "RESULT"]

RESULT = "__import__('json').dumps(taken)"
FILES = 10_000  # of the image that are opened

METADATA = """
import os, shutil, time
folder = os.path.join(os.path.expanduser({folder!r}), "metadata")
os.makedirs(folder)
names = [os.path.join(folder, "%05d" % number) for number in range({count})]
began = time.perf_counter()
for name in names:
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
for name in names:
    os.stat(name)
for name in names:
    os.rename(name, name + ".new")
for name in names:
    os.unlink(name + ".new")
taken = [time.perf_counter() - began]
shutil.rmtree(folder)
"""

DATA = """
import os, time
path = os.path.join(os.path.expanduser({folder!r}), "data")
chunk = os.urandom(1 << 20)
began = time.perf_counter()
with open(path, "wb", buffering=0) as stream:
    for _ in range({mib}):
        stream.write(chunk)
    os.fsync(stream.fileno())
with open(path, "rb", buffering=0) as stream:
    while stream.read(1 << 20):
        pass
taken = [time.perf_counter() - began]
os.unlink(path)
"""

# The same files for both: the image's tree, below its own root or below the copy on the host.
BASE_FILES = """
import os, time
found = []
for folder, folders, files in os.walk({root!r}):
    folders.sort()
    found += [os.path.join(folder, name) for name in sorted(files)]
found = (found * ({count} // max(1, len(found)) + 1))[:{count}]
for name in found:
    os.stat(name)
began = time.perf_counter()
for name in found:
    os.stat(name)
    os.close(os.open(name, os.O_RDONLY))
taken = [time.perf_counter() - began]
"""

_NBODY = """
import time
def run(steps):
    bodies = [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 39.5]]
    for i in range(1, 5):
        bodies.append([5.0 * i, -1.1 * i, 0.1 * i, 0.6, 2.8 / i, -0.02, 0.04 / i])
    pairs = [(a, b) for i, a in enumerate(bodies) for b in bodies[i + 1:]]
    for _ in range(steps):
        for a, b in pairs:
            x, y, z = a[0] - b[0], a[1] - b[1], a[2] - b[2]
            pull = 0.001 / (x * x + y * y + z * z + 0.01) ** 1.5
            mine, yours = b[6] * pull, a[6] * pull
            a[3] -= x * mine; a[4] -= y * mine; a[5] -= z * mine
            b[3] += x * yours; b[4] += y * yours; b[5] += z * yours
        for body in bodies:
            body[0] += 0.001 * body[3]; body[1] += 0.001 * body[4]; body[2] += 0.001 * body[5]
began = time.perf_counter()
run(int(70000 * {share}))
taken = [time.perf_counter() - began]
"""

_JSON = """
import json, time
record = {{"id": 1, "name": "kernel", "tags": ["a", "b", "c"], "nested": {{"x": 1.5, "y": [1, 2, 3]}}}}
document = [dict(record, id=number) for number in range(2000)]
began = time.perf_counter()
for _ in range(int(60 * {share})):
    json.loads(json.dumps(document))
taken = [time.perf_counter() - began]
"""

_REGEX = """
import re, time
text = " ".join("user%d@host%d.example.org 10.0.%d.%d" % (i, i % 7, i % 256, i % 199) for i in range(3000))
patterns = [re.compile(p) for p in (r"[a-z]+\\d+@[a-z0-9.]+", r"(\\d{{1,3}})\\.(\\d{{1,3}})\\.(\\d+)\\.(\\d+)", r"\\b\\w+9\\b")]
began = time.perf_counter()
for _ in range(int(60 * {share})):
    for pattern in patterns:
        sum(1 for _ in pattern.finditer(text))
taken = [time.perf_counter() - began]
"""

_OBJECTS = """
import time
class Node:
    def __init__(self, value):
        self.value, self.left, self.right = value, None, None
    def insert(self, value):
        node = self
        while True:
            side = "left" if value < node.value else "right"
            child = getattr(node, side)
            if child is None:
                setattr(node, side, Node(value))
                return
            node = child
    def total(self):
        return self.value + sum(child.total() for child in (self.left, self.right) if child)
began = time.perf_counter()
for _ in range(int(30 * {share})):
    root, value = Node(5000), 1
    for _ in range(2500):
        value = value * 7621 % 32768
        root.insert(value)
    root.total()
taken = [time.perf_counter() - began]
"""

_SORTING = """
import random, time
chooser = random.Random(1)
words = ["%08x" % chooser.getrandbits(32) for _ in range(50000)]
began = time.perf_counter()
for _ in range(int(10 * {share})):
    counts = {{}}
    for word in sorted(words, key=lambda word: word[::-1]):
        counts[word[:3]] = counts.get(word[:3], 0) + 1
taken = [time.perf_counter() - began]
"""

# Formatted with `share`: at 4, each takes about a second on a processor of 2024.
PROCESSOR = {
    "nbody": _NBODY,
    "json": _JSON,
    "regex": _REGEX,
    "objects": _OBJECTS,
    "sorting": _SORTING,
}

"""Programs that use as much of one thing as they are given, for as long as they live. Data.

They run in sandboxes with limits only, in ephemeral layers. What fills a disk is bounded by itself,
too: no cap of the product's holds there yet.
"""

from __future__ import annotations

__all__ = ["AGAIN", "BOMBS", "SWAPPING"]

BOMBS = {
    "CPU, 8 processes": """
import os
for _ in range(7):
    if os.fork() == 0: break
while True: pass
""",
    "memory, 400 of 512 MiB again and again": """
import os
while True:
    pid = os.fork()
    if pid == 0:
        held = [bytearray(8 << 20) for _ in range(50)]
        os._exit(0)
    os.waitpid(pid, 0)
""",
    "memory, over the cap": """
import os
pid = os.fork()
held = []
while pid == 0: held.append(bytearray(8 << 20))
os.waitpid(pid, 0)
""",
    "memory and swap, over the caps": """
import os
pid = os.fork()
held = []
while pid == 0: held.append(bytearray(8 << 20))
os.waitpid(pid, 0)
""",
    "memory traffic": """
import ctypes
size = 200 << 20
one, other = bytearray(size), bytearray(size)
while True: one[:] = other
""",
    "processes": """
import os, time
while True:
    try:
        if os.fork() == 0: time.sleep(0.01)
    except OSError: pass
""",
    "zombies": """
import os
while True:
    try:
        if os.fork() == 0: os._exit(0)
    except OSError:
        os.waitpid(-1, 0)
""",
    "descriptors": """
import os
while True:
    held = []
    try:
        while True: held += os.pipe()
    except OSError:
        for fd in held: os.close(fd)
""",
    "pipes that are full": """
import os
held = []
try:
    while True:
        read, write = os.pipe(); held.append(read)
        os.set_blocking(write, False)
        try:
            while True: os.write(write, bytes(65536))
        except BlockingIOError: pass
except OSError: pass
while True:
    for fd in held: os.stat(fd)
""",
    "files in /tmp": """
import os
while True:
    n = 0
    try:
        while True: open(f"/tmp/{n}", "w").close(); n += 1
    except OSError:
        for k in range(n): os.unlink(f"/tmp/{k}")
""",
    "files in the layer": """
import os
while True:
    for n in range(20000): open(f"/home/sandbox/{n}", "w").close()
    for n in range(20000): os.unlink(f"/home/sandbox/{n}")
""",
    "deep directories": """
import os, shutil
while True:
    os.chdir("/home/sandbox")
    for n in range(2000):
        os.mkdir("d"); os.chdir("d")
    os.chdir("/home/sandbox")
    os.system("rm -rf d")
""",
    "writing to the disk": """
import os
fd = os.open("/home/sandbox/big", os.O_RDWR | os.O_CREAT)
block = os.urandom(1 << 20)
while True:
    for n in range(512): os.pwrite(fd, block, n << 20)
""",
    "writing to the disk, synced": """
import os
fd = os.open("/home/sandbox/big", os.O_RDWR | os.O_CREAT)
block = os.urandom(1 << 16)
while True:
    for n in range(512):
        os.pwrite(fd, block, n << 16); os.fsync(fd)
""",
    "the page cache": """
import os
fd = os.open("/home/sandbox/big", os.O_RDWR | os.O_CREAT)
for n in range(768): os.pwrite(fd, bytes(1 << 20), n << 20)
while True:
    for n in range(768): os.pread(fd, 1 << 20, n << 20)
""",
    "network on the loopback": """
import os, socket
server = socket.create_server(("127.0.0.1", 0))
one = socket.create_connection(server.getsockname()); other, _ = server.accept()
if os.fork() == 0:
    while True: other.recv(1 << 20)
block = bytes(1 << 20)
while True: one.sendall(block)
""",
    "sockets that are full": """
import socket
held = []
try:
    while True:
        pair = socket.socketpair(); held.append(pair)
        pair[0].setblocking(False)
        try:
            while True: pair[0].send(bytes(65536))
        except BlockingIOError: pass
except OSError: pass
while True: pass
""",
    "output": """
import os
block = b"x" * 4095 + b"\\n"
while True: os.write(1, block)
""",
    "signals": """
import os, signal
for number in (10, 12): signal.signal(number, lambda *_: None)
me = os.getpid()
if os.fork() == 0: me = os.getppid()
while True: os.kill(me, 10)
""",
    "watches": """
import ctypes, os
libc = ctypes.CDLL(None)
while True:
    held = []
    while True:
        fd = libc.inotify_init()
        if fd < 0: break
        held.append(fd)
        for name in os.listdir("/usr/lib"): libc.inotify_add_watch(fd, f"/usr/lib/{name}".encode(), 0xFFF)
    for fd in held: os.close(fd)
""",
    "terminals": """
import os
while True:
    held = []
    try:
        while True: held += os.openpty()
    except OSError:
        for fd in held: os.close(fd)
""",
    "mappings": """
import mmap
held = []
try:
    while True: held.append(mmap.mmap(-1, 4096, prot=1 + len(held) % 2 * 2))
except (OSError, ValueError): pass
while True: held[0][0]
""",
    "keyrings (refused)": """
import ctypes
libc = ctypes.CDLL(None)
while True: libc.syscall(248, b"user", b"x", b"y", 1, -3)
""",
}  # fmt: skip
# Their sandbox ends at the cap, whichever of its processes is over it: it is started again each time.
AGAIN = ("memory, over the cap", "memory and swap, over the caps")
# It has swap beside memory, where the host has any.
SWAPPING = "memory and swap, over the caps"

"""The daemon's end of the launcher's socket, with a launcher that is slow, and little room."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import threading

import pytest

from sandboxkernel.daemon.launcher_client import LauncherClient
from sandboxkernel.daemon.walks import Walks
from sandboxruntime.channel import DescriptorsLost, recv_message, send_message


def test_requests_that_do_not_fit_wait_for_room() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # room for a few
    ours.setblocking(False)
    full = threading.Event()

    def answer_all() -> None:
        full.wait(30)
        while (message := recv_message(theirs)[0]) is not None:
            send_message(theirs, {"serial": message["serial"], "said": message["text"][:3]})

    async def main() -> list[str]:
        client = LauncherClient(lambda event: None)
        client._sock = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), client._read)
        client.open()
        asked = [
            asyncio.create_task(client.request("x", text=f"{n:03}" + "." * 1000))
            for n in range(100)
        ]
        while len(client._waiting) < len(asked):
            await asyncio.sleep(0)
        with pytest.raises(BlockingIOError):
            send_message(ours, {"text": "." * 1000})
        full.set()
        said = [reply["said"] for reply, _ in await asyncio.gather(*asked)]
        await client.stop()
        return said

    with theirs:
        answering = threading.Thread(target=answer_all)
        answering.start()
        assert asyncio.run(main()) == [f"{n:03}" for n in range(100)]
        answering.join()


def test_a_message_that_lost_its_descriptors_is_answered_all_the_same() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        send_message(theirs, {"serial": 5}, [0, 1, 2])
        probe = os.dup(0)
        os.close(probe)
        before = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (probe + 1, hard))  # room for one
        try:
            with pytest.raises(DescriptorsLost) as caught:
                recv_message(ours)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert caught.value.message == {"serial": 5}
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_user_walks_once_at_a_time_and_once_for_all_who_ask_the_same() -> None:
    gates = {name: threading.Event() for name in ("a", "b")}
    began: list[str] = []

    def walk(name: str) -> str:
        began.append(name)
        assert gates[name].wait(30)
        return name

    async def main() -> None:
        walks = Walks()
        same = [asyncio.create_task(walks.run(1, walk, "a")) for _ in range(5)]
        other = asyncio.create_task(walks.run(1, walk, "b"))
        while began != ["a"]:
            await asyncio.sleep(0.001)
        same.pop().cancel()  # who has gone ends it for nobody
        assert await walks.run(2, str, 7) == "7"  # others' walks go on
        gates["a"].set()
        assert await asyncio.gather(*same) == ["a"] * 4
        gates["b"].set()
        assert await other == "b"
        assert began == ["a", "b"]

    asyncio.run(main())

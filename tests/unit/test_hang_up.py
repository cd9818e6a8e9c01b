"""Callers who leave bytes of a next request behind, of whose hang-up tornado does not tell."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from pathlib import Path

import pytest
from tornado import web

from sandboxkernel.daemon import hangups
from sandboxkernel.daemon.admission import Admission
from sandboxkernel.daemon.server import BaseHandler, bind_api_socket, make_server
from tests.support import DEADLINE_S

WAIT = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Waiting(BaseHandler):
    begun: asyncio.Event
    ended: asyncio.Event

    async def get(self) -> None:
        self.begun.set()
        assert await self.unless_gone(asyncio.Event().wait()) is None
        self.ended.set()


class Finishing(BaseHandler):
    begun: asyncio.Event
    go_on: asyncio.Event
    found: asyncio.Future[bool]

    async def get(self) -> None:
        self.begun.set()
        await self.unless_gone(self.go_on.wait())
        self.found.set_result(self.gone)


@pytest.mark.parametrize("stays", [True, False])
def test_who_has_gone_is_known_when_the_work_is_done(tmp_path: Path, stays: bool) -> None:
    """With bytes left behind, and long before the next look: what was made is for nobody."""

    async def main() -> None:
        Finishing.begun, Finishing.go_on = asyncio.Event(), asyncio.Event()
        Finishing.found = asyncio.get_running_loop().create_future()
        path = tmp_path / "s"
        served = make_server(
            web.Application([("/", Finishing)]), Admission(per_user=9, descriptors=512)
        )
        served.add_socket(bind_api_socket(path, 0o600))
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(WAIT + b"G")
            await Finishing.begun.wait()
            await asyncio.sleep(0.05)  # the handler waits
            if not stays:
                sock.close()
            Finishing.go_on.set()
            assert await asyncio.wait_for(Finishing.found, DEADLINE_S) is not stays
        served.stop()
        await served.close_all_connections()

    asyncio.run(main())


@pytest.mark.parametrize("rest", [b"", b"G", WAIT * 3])
def test_a_hang_up_is_noticed_whatever_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rest: bytes
) -> None:
    monkeypatch.setattr(hangups, "CHECK_S", 0.01)

    async def main() -> None:
        Waiting.begun, Waiting.ended = asyncio.Event(), asyncio.Event()
        path = tmp_path / "s"
        served = make_server(
            web.Application([("/", Waiting)]), Admission(per_user=9, descriptors=512)
        )
        served.add_socket(bind_api_socket(path, 0o600))
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(WAIT + rest)
            await Waiting.begun.wait()
        await asyncio.wait_for(Waiting.ended.wait(), DEADLINE_S)
        served.stop()
        await served.close_all_connections()

    asyncio.run(main())


def test_one_look_tells_of_those_alone_that_have_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """And there is another one for as long as anything is watched, none afterwards."""
    monkeypatch.setattr(hangups, "CHECK_S", 0.01)

    async def main() -> None:
        watch, told = hangups.HangUps(), list[str]()
        pairs = {name: socket.socketpair() for name in ("stays", "goes", "closed")}
        with contextlib.ExitStack() as stack:
            for name, (sock, _) in pairs.items():
                stack.enter_context(watch.watching(sock, functools.partial(told.append, name)))
            pairs["closed"][0].close()
            await asyncio.sleep(0.05)
            assert told == []
            pairs["goes"][1].close()
            while not told:
                await asyncio.sleep(0.01)
            assert set(told) == {"goes"} and not watch.is_idle
        told.clear()
        await asyncio.sleep(0.05)
        assert told == [] and watch.is_idle
        for pair in pairs.values():
            for sock in pair:
                sock.close()

    asyncio.run(main())

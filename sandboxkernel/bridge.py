"""A client's own five endpoints, each spliced to the kernel's socket of that channel. asyncio.

Bytes are passed on as they are: ZMTP runs over any stream, so encryption (CurveZMQ) and signatures
stay between client and kernel, and nothing that a sandbox sends is parsed outside of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat

from sandboxkernel.connection_file import ConnectionFile
from sandboxkernel.errors import Conflict, RequestError
from sandboxkernel.models import ConnectionInfo

__all__ = ["Bridge", "bind_endpoints"]

BACKLOG = 128  # connections that wait while the sandbox is made
CONNECTIONS_MAX = 256  # of two descriptors each: the usual limit of a process is 1024
CHUNK = 256 * 1024
BACKLOG_RETRY_S = 0.02
Endpoints = dict[str, socket.socket]


def bind_endpoints(connection: ConnectionFile) -> Endpoints:
    """Listen where the client will connect, on nothing else; sockets by the name of their port.

    From here on clients may connect: they wait in the backlog. Raises Conflict when an endpoint
    is taken, RequestError when it cannot be one.
    """
    with contextlib.ExitStack() as stack:
        bound = {}
        for name, port in connection.ports().items():
            tcp = connection.transport == "tcp"
            where = f"{connection.ip}:{port}" if tcp else f"{connection.ip}-{port}"
            try:
                sock = _bind_tcp(connection.ip, port) if tcp else _bind_ipc(where)
            except OSError as exc:
                if exc.errno == errno.EADDRINUSE:
                    raise Conflict(
                        f"{name} of the connection file, {where}, is taken by another program",
                        hint="Start the kernel again: the client then chooses other ports.",
                    ) from exc
                raise RequestError(
                    f"cannot listen on {name} of the connection file, {where}: "
                    f"{exc.strerror or exc}",
                    field=name,
                ) from exc
            bound[name] = stack.enter_context(sock)
        stack.pop_all()
        return bound


def _bind_tcp(ip: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(ip, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        # As libzmq: a port whose last connections are in TIME_WAIT is not taken.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_ipc(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        _unlink_stale(path)
        sock.bind(path)
        # Nobody can connect before listen(2), so there is no window with other modes.
        os.chmod(path, 0o600)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _unlink_stale(path: str) -> None:
    """Remove the socket that a kernel which was killed has left, as libzmq does."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EADDRINUSE, "a file that is no socket", path)
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, "somebody listens", path)


class Bridge:
    """Owner of the client's endpoints and of every connection through them."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._names = [s.getsockname() for s in endpoints.values() if s.family == socket.AF_UNIX]
        self._servers: list[asyncio.Server] = []
        self._relays: set[asyncio.Task[None]] = set()

    async def serve(self, kernel: ConnectionInfo) -> None:
        """Accept clients and connect each to the kernel."""
        for name, sock in self._endpoints.items():
            path = f"{kernel.ip}-{getattr(kernel, name)}"

            def accept(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str = path
            ) -> None:
                if len(self._relays) >= CONNECTIONS_MAX:
                    writer.close()  # a client that means well comes again
                    return
                relay = asyncio.create_task(_relay(reader, writer, path))
                self._relays.add(relay)
                relay.add_done_callback(self._relays.discard)

            self._servers.append(await asyncio.start_server(accept, sock=sock, limit=CHUNK))

    async def drain(self, timeout_s: float) -> None:
        """After the kernel's end: let its last messages reach the clients."""
        if self._relays:
            await asyncio.wait(self._relays, timeout=timeout_s)

    async def close(self) -> None:
        """Stop listening and end what still runs."""
        for server in self._servers:
            server.close()
        for relay in list(self._relays):
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)
        for sock in self._endpoints.values():
            sock.close()
        for name in self._names:
            with contextlib.suppress(FileNotFoundError):  # jupyter_client unlinks them, too
                os.unlink(name)


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
    """Both directions of one connection, until either side ends it."""
    with contextlib.suppress(OSError):  # either side may break off at any time
        try:
            inner_reader, inner_writer = await _connect(path)
            try:
                pumps = {
                    asyncio.create_task(_pump(reader, inner_writer)),
                    asyncio.create_task(_pump(inner_reader, writer)),
                }
                try:
                    # ZMTP has no half-closed connections: the end of one side ends both.
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()
                    await asyncio.gather(*pumps, return_exceptions=True)
            finally:
                await _end(inner_writer)
        finally:
            await _end(writer)


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(CHUNK):
        target.write(data)
        await target.drain()  # a slow reader slows its sender down, here as without us


async def _end(writer: asyncio.StreamWriter) -> None:
    writer.close()  # sends what is still buffered
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _connect(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the kernel's socket; waits while its backlog is full."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        while True:
            try:
                sock.connect(path)
                break
            except BlockingIOError:
                # connect(2) of a unix socket does not go on later: it has to be called again,
                # which asyncio's own connect does not do.
                await asyncio.sleep(BACKLOG_RETRY_S)
        return await asyncio.open_unix_connection(sock=sock, limit=CHUNK)
    except BaseException:
        sock.close()
        raise

"""A running kernel and what its cells answer, for tests that are Jupyter clients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from traitlets.config import Config

from tests.support import SLOWDOWN

KERNEL_NAME = "sandboxed-python"
TIMEOUT_S = 60.0 * SLOWDOWN
Message = dict[str, Any]


@dataclass
class Reply:
    """What one cell answered."""

    reply: Message = field(default_factory=dict)
    iopub: list[Message] = field(default_factory=list)

    @property
    def status(self) -> str:
        return self.reply["content"]["status"]

    @property
    def error(self) -> str:
        content = self.reply["content"]
        return f"{content.get('ename', '')}: {content.get('evalue', '')}"

    def contents(self, msg_type: str) -> list[Message]:
        return [m["content"] for m in self.iopub if m["header"]["msg_type"] == msg_type]

    def stream(self, name: str) -> str:
        return "".join(c["text"] for c in self.contents("stream") if c["name"] == name)

    @property
    def text(self) -> str:
        """stdout, of a cell that did not fail."""
        assert self.status == "ok", (self.error, self.iopub)
        return self.stream("stdout").strip()

    def data(self, msg_type: str = "execute_result") -> dict[str, Any]:
        """The mime bundle of the only message of this type."""
        (content,) = self.contents(msg_type)
        return content["data"]


def profile_config(profile: str | None = None, **traits: Any) -> Config:
    """Configuration of a manager whose kernels run under a profile."""
    config = Config()
    if profile:
        config.SandboxProvisioner.profile = profile
    for name, value in traits.items():
        config.SandboxProvisioner[name] = value
    return config


@dataclass
class Session:
    """A kernel, its manager and one client."""

    manager: KernelManager
    client: BlockingKernelClient

    @property
    def kernel_id(self) -> str:
        return self.manager.kernel_id

    def run(
        self, code: str, *, answers: tuple[str, ...] = (), timeout_s: float = TIMEOUT_S,
        store_history: bool = True,
    ) -> Reply:  # fmt: skip
        """Execute a cell to its end; input() gets `answers` in their order."""
        waiting = iter(answers)
        prompts: list[Message] = []
        result = Reply()

        def answer(message: Message) -> None:
            prompts.append(message)
            self.client.input(next(waiting))

        result.reply = self.client.execute_interactive(
            code,
            timeout=timeout_s,
            store_history=store_history,
            allow_stdin=bool(answers),
            output_hook=result.iopub.append,
            stdin_hook=answer,
        )
        result.iopub += prompts
        return result

    def start(self, code: str, *, until: str) -> str:
        """Execute a cell and return, with its message id, once it has printed `until`."""
        msg_id = self.client.execute(code)
        text = ""
        while until not in text:
            message = self.client.get_iopub_msg(timeout=TIMEOUT_S)
            if message["parent_header"].get("msg_id") == msg_id:
                text += message["content"].get("text", "")
        return msg_id

    def finish(self, msg_id: str) -> Reply:
        """The rest of a started cell."""
        result = Reply()
        while True:
            result.reply = self.client.get_shell_msg(timeout=TIMEOUT_S)
            if result.reply["parent_header"].get("msg_id") == msg_id:
                break
        while True:
            message = self.client.get_iopub_msg(timeout=TIMEOUT_S)
            if message["parent_header"].get("msg_id") != msg_id:
                continue
            result.iopub.append(message)
            if message["content"].get("execution_state") == "idle":
                return result

    def control(self, msg_type: str, content: Message) -> Message:
        """One request on the control channel and its reply."""
        message = self.client.session.msg(msg_type, content)
        self.client.control_channel.send(message)
        while True:
            reply = self.client.get_control_msg(timeout=TIMEOUT_S)
            if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                return reply

    def iopub_until(self, wanted: Callable[[Message], bool]) -> Message:
        """Read iopub until a message that is wanted."""
        while True:
            message = self.client.get_iopub_msg(timeout=TIMEOUT_S)
            if wanted(message):
                return message


@contextlib.contextmanager
def session(
    folder: Path, *, config: Config | None = None, env: dict[str, str] | None = None,
    ready: bool = True, **members: Any,
) -> Iterator[Session]:  # fmt: skip
    """A kernel that is ready, or at least being started, and is shut down at the end."""
    members.setdefault("kernel_name", KERNEL_NAME)
    manager = KernelManager(config=config or Config(), **members)
    manager.start_kernel(cwd=str(folder), **({"env": env} if env else {}))
    client = manager.client()
    client.start_channels()
    try:
        if ready:
            client.wait_for_ready(timeout=TIMEOUT_S)
        yield Session(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)

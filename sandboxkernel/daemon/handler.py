"""The base of every handler, and what handlers work on. tornado."""

from __future__ import annotations

from dataclasses import dataclass

from sandboxkernel.daemon.checkup import Checkup
from sandboxkernel.daemon.housekeeping import Housekeeping
from sandboxkernel.daemon.logformat import note
from sandboxkernel.daemon.sandbox import Sandbox
from sandboxkernel.daemon.server import BaseHandler
from sandboxkernel.daemon.service import Kernels
from sandboxkernel.errors import NotPermitted
from sandboxkernel.models import Version

__all__ = ["Handler", "Services"]


@dataclass(frozen=True, slots=True)
class Services:
    """What handlers work on."""

    kernels: Kernels
    housekeeping: Housekeeping
    checkup: Checkup
    version: Version


class Handler(BaseHandler):
    """Base with the services."""

    services: Services

    def initialize(self, services: Services) -> None:
        """Called by tornado with the route's keyword arguments."""
        self.services = services

    @property
    def kernels(self) -> Kernels:
        """The sandboxes."""
        return self.services.kernels

    def sandbox(self, name: str) -> Sandbox:
        """One of the caller's sandboxes, by a name of the path."""
        found = self.kernels.find(self.caller, name)
        note(kernel=found.request.kernel_id)
        return found

    def require_admin(self) -> None:
        """Only root and the administrators' groups."""
        if not self.kernels.policy.is_admin(self.caller):
            raise NotPermitted("only an administrator may do this", hint="Ask one, or use sudo.")

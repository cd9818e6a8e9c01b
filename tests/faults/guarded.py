"""Runs as the daemon: the product's, with the switch in its launcher and in its zygotes.

python -m tests.faults.guarded SWITCH [arguments of the daemon]
"""

from __future__ import annotations

import os
import sys
from typing import Any

from tests.faults.zygotes import with_switch

LAUNCHER_BOOTSTRAP = (
    "import sys; sys.path[:0] = {path!r}; sys.argv.pop(1); "
    "from tests.faults.injector import in_launcher; in_launcher({switch!r}); "
    "from sandboxruntime.launcher import main; main()"
)


def main() -> None:
    """Be the daemon."""
    switch = sys.argv.pop(1)
    from sandboxkernel.daemon import launcher_client
    from sandboxkernel.daemon import zygote as product

    zygote: Any = product
    launcher_client._BOOTSTRAP = LAUNCHER_BOOTSTRAP.format(path=sys.path, switch=switch)
    fd = os.open(switch, os.O_RDWR | os.O_CLOEXEC)
    plan, create = zygote.plan_zygote_payload, zygote.ZygoteStart._create
    zygote.plan_zygote_payload = lambda ground, source: with_switch(plan(ground, source))

    async def with_one_more(self: Any, made: Any, ground: Any, sockets: list[int]) -> None:
        await create(self, made, ground, [*sockets, fd])

    zygote.ZygoteStart._create = with_one_more
    from sandboxkernel.daemon.app import main as daemon_main

    daemon_main(sys.argv[1:])


if __name__ == "__main__":
    main()

"""Programs of a config that are run at moments of a container's life. Effects.

Source: config.md, POSIX-platform Hooks.
"""

from __future__ import annotations

import subprocess

from sandboxruntime.bundles.config import Config
from sandboxruntime.errors import SetupError
from sandboxruntime.steps import Step

__all__ = ["run_hooks"]


def run_hooks(config: Config, name: str, state: bytes) -> None:
    """Run the hooks of one moment, in order; the first that fails ends it. Raises SetupError."""
    for hook in config.hooks.get(name, ()):
        try:
            done = subprocess.run(
                list(hook.args), executable=hook.path, env=dict(hook.env), input=state,
                capture_output=True, timeout=hook.timeout, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise SetupError(f"hook {name} {hook.path}: {exc}", step=Step.HOOKS) from exc
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()[-500:]
            raise SetupError(
                f"hook {name} {hook.path} ended with {done.returncode}: {said}", step=Step.HOOKS
            )

"""The environment of a kernel: an allow-list. Pure.

The server's environment is full of what a notebook must not see: hub tokens, cloud keys, agent
sockets. What passes is what is harmless by name, what the kernelspec sets, and what the user
asked for by name.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

__all__ = ["INHERITED", "looks_like_credential", "select_environment"]

# Of the server's own environment, these pass: language, time zone, terminal, and what a front
# end says about the notebook. PATH and PYTHON* describe the host; the image has its own.
INHERITED = (
    "LANG",
    "LANGUAGE",
    "LC_*",
    "TZ",
    "TERM",
    "COLORTERM",
    "COLUMNS",
    "LINES",
    "NO_COLOR",
    "MPLBACKEND",
    "JPY_SESSION_NAME",
    "PAPERMILL_*",
)
_CREDENTIAL_PARTS = (
    "TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "APIKEY", "API_KEY",
    "ACCESS_KEY", "PRIVATE_KEY", "AUTH", "COOKIE", "SESSION_KEY",
)  # fmt: skip
_CREDENTIAL_PREFIXES = (
    "AWS_", "AZURE_", "GOOGLE_", "GCP_", "GCLOUD_", "JUPYTERHUB_", "SSH_", "GPG_", "DBUS_",
    "KUBE", "DOCKER_", "VAULT_", "LD_", "SANDBOXKERNEL_",
)  # fmt: skip


def looks_like_credential(name: str, value: str = "") -> bool:
    """Whether a variable of the server must never be passed on by its pattern alone."""
    upper = name.upper()
    if upper.startswith(_CREDENTIAL_PREFIXES) or any(part in upper for part in _CREDENTIAL_PARTS):
        return True
    return "://" in value and "@" in value.split("://", 1)[1].split("/", 1)[0]


def select_environment(
    requested: Mapping[str, str],
    *,
    server: Mapping[str, str],
    kernelspec: Mapping[str, str],
    chosen: Iterable[str] = (),
) -> dict[str, str]:
    """What of `requested` reaches the kernel.

    `requested` is what KernelManager hands over: the server's environment with the kernelspec's
    and the client's additions merged in. A variable that differs from the server's was added
    for this kernel and passes; `chosen` are names or patterns ("MY_*") that the user listed.
    """
    patterns = tuple(chosen)
    selected = {}
    for name, value in requested.items():
        # An equal value in the kernelspec was chosen too, whatever the server has.
        added = name in kernelspec or server.get(name) != value
        if (
            _matches(name, patterns)
            or added
            or (_matches(name, INHERITED) and not looks_like_credential(name, value))
        ):
            selected[name] = value
    # The host's parent process does not exist inside (see jupyter_client's parent poller).
    selected["JPY_PARENT_PID"] = "1"
    return selected


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

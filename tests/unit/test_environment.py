"""What of a server's environment a kernel gets to see."""

from __future__ import annotations

import pytest

from sandboxkernel.environment import INHERITED, looks_like_credential, select_environment

SERVER = {
    "LANG": "de_DE.UTF-8",
    "LC_TIME": "en_DK.UTF-8",
    "TZ": "Europe/Berlin",
    "PATH": "/opt/jupyter/bin:/usr/bin",
    "PYTHONPATH": "/opt/lib",
    "LD_PRELOAD": "/opt/x.so",
    "HOME": "/home/ada",
    "JUPYTERHUB_API_TOKEN": "abc",
    "JUPYTER_TOKEN": "abc",
    "AWS_ACCESS_KEY_ID": "abc",
    "SSH_AUTH_SOCK": "/run/ssh",
    "COURSE_ID": "bio101",
    "COURSE_TOKEN": "abc",
    "EDITOR": "vi",
}


def select(added: dict[str, str] | None = None, **options: object) -> dict[str, str]:
    arguments = {"server": SERVER, "kernelspec": {}, **options}
    return select_environment({**SERVER, **(added or {})}, **arguments)  # type: ignore[arg-type]


def test_language_and_time_zone_pass_and_little_else() -> None:
    assert select() == {
        "LANG": "de_DE.UTF-8", "LC_TIME": "en_DK.UTF-8", "TZ": "Europe/Berlin",
        "JPY_PARENT_PID": "1",
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in SERVER if looks_like_credential(name)])
def test_credentials_of_the_server_do_not_pass(name: str) -> None:
    assert name not in select()


def test_a_credential_under_an_inherited_pattern_does_not_pass() -> None:
    server = {"PAPERMILL_TOKEN": "abc", "LC_X": "https://user:secret@host/", "PAPERMILL_RUN": "7"}
    selected = select_environment(server, server=server, kernelspec={})
    assert selected == {"PAPERMILL_RUN": "7", "JPY_PARENT_PID": "1"}


def test_what_was_added_for_this_kernel_passes() -> None:
    assert select({"DATASET": "big", "LANG": "C"})["DATASET"] == "big"
    assert select({"LANG": "C"})["LANG"] == "C"


def test_what_the_kernelspec_says_passes_though_the_server_says_the_same() -> None:
    assert select(kernelspec={"EDITOR": "vi"})["EDITOR"] == "vi"


def test_what_the_user_chose_by_name_or_pattern_passes() -> None:
    selected = select(chosen=["COURSE_*", "EDITOR"])
    assert selected["COURSE_ID"] == "bio101" and selected["EDITOR"] == "vi"
    assert selected["COURSE_TOKEN"] == "abc", "named on purpose"
    assert "course_id" not in select(chosen=["course_*"])


@pytest.mark.parametrize(
    "name",
    ["GITHUB_TOKEN", "DB_PASSWORD", "MYSQL_PASSWD", "APIKEY", "OPENAI_API_KEY", "NETRC_AUTH",
     "AZURE_X", "GCLOUD_PROJECT", "KUBECONFIG", "DOCKER_HOST", "VAULT_ADDR", "session_key"],
)  # fmt: skip
def test_names_of_credentials(name: str) -> None:
    assert looks_like_credential(name)


def test_values_of_credentials() -> None:
    assert looks_like_credential("DATABASE", "postgres://u:p@db/x")
    assert not looks_like_credential("DOCS", "https://example.org/@user")


def test_nothing_that_is_inherited_describes_the_host() -> None:
    assert not {"PATH", "HOME", "USER", "PYTHONPATH", "TMPDIR", "XDG_RUNTIME_DIR"} & set(INHERITED)

"""When the daemon looks whether the host image is current: never beside a start."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sandboxkernel.daemon import images
from sandboxkernel.daemon.images import HOST_CHECK_S, HOST_REF, QUIET_S, Images, _pause_s

NOW = 1000.0


def test_a_look_waits_until_no_start_has_come_for_a_while() -> None:
    long_ago = NOW - 100
    assert _pause_s(NOW, called=NOW, asked=NOW, checked=long_ago) == QUIET_S
    assert _pause_s(NOW, called=NOW - 0.5, asked=NOW - 0.1, checked=long_ago) == pytest.approx(
        QUIET_S - 0.1
    )
    assert _pause_s(NOW, called=NOW - 2, asked=NOW - QUIET_S, checked=long_ago) <= 0


def test_looks_are_not_more_frequent_than_they_need_be() -> None:
    assert _pause_s(NOW, called=NOW, asked=NOW, checked=NOW - 1) == HOST_CHECK_S - 1


def test_a_look_does_not_wait_for_ever_for_starts_to_pause() -> None:
    called = NOW - HOST_CHECK_S
    assert _pause_s(NOW, called=called, asked=NOW, checked=NOW - 100) <= 0


def test_a_start_does_not_wait_for_the_look_that_it_calls_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[Any] = []
    monkeypatch.setattr(images, "ensure_host_image", lambda *_, **__: looks.append(1) or "image")
    monkeypatch.setattr(images, "_pause_s", lambda *_: 0.0)

    async def starts() -> None:
        subject = Images(None)  # type: ignore[arg-type]  # ensure_host_image() alone uses it
        await subject.ensure(HOST_REF)
        assert len(looks) == 1  # the first one needs an image
        await subject.ensure(HOST_REF)
        await subject.ensure(HOST_REF)
        assert len(looks) == 1
        assert subject._check is not None
        await subject._check
        assert len(looks) == 2

    asyncio.run(starts())

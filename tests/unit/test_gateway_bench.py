"""Gateways of the benchmark that ask several servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import backends
from bench.backends import Backend, ForkedNginx


def test_each_backend_has_a_port_of_its_own_though_one_is_drawn_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter((20_001, 20_001, 20_002, 20_001, 20_003))
    monkeypatch.setattr(backends, "free_port", lambda: next(drawn))
    asked = [Backend(1), Backend(2), Backend(3)]
    gateway = ForkedNginx(tmp_path, backends=asked, upstream_port=4)
    assert gateway.urls == [f"http://127.0.0.1:{port}" for port in (20_001, 20_002, 20_003)]
    assert list(gateway.backends.values()) == asked

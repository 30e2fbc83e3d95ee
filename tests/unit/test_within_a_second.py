"""How long a change may wait on its way to the answers; what happens between the waits is tested with real servers.

tests/integration/test_changes.py shows that a change needs each of these waits once at most.
"""

from __future__ import annotations

from sidecar.control import catalogue_file
from sidecar.ledger import flusher
from sidecar.settings import Settings

WORK_S = 0.1  # what is left for what a change makes to be done, a few milliseconds each


def test_the_waits_of_a_changed_tenant_add_up_to_less_than_a_second() -> None:
    assert flusher.PROJECT_INTERVAL_S + Settings().changes_interval_ms / 1000 <= 1 - WORK_S


def test_the_waits_of_a_changed_catalogue_file_add_up_to_less_than_a_second() -> None:
    waits_s = catalogue_file.INTERVAL_S + flusher.PROJECT_INTERVAL_S + Settings().changes_interval_ms / 1000
    assert waits_s <= 1 - WORK_S

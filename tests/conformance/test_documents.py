"""The conformance kit on every document driver of the registry.

A new driver is one line in the registry and one in harnesses.py; nothing here changes.
"""

from engines.drivers.registry import DOCUMENT_DRIVERS
from engines.testing.documents import *  # noqa: F403 (importing the kit is how it is run)
from tests.conformance.harnesses import HARNESSES


def test_every_registered_driver_has_a_harness() -> None:
    assert set(HARNESSES) == set(DOCUMENT_DRIVERS)

"""The conformance kit for document drivers: whatever passes it is a `DocumentDriver`.

Owns the rules of `ports/documents.py` as tests, a class a verb. To run them on a driver of your own, write a
test module with one fixture, `harness`, that makes fresh storage for each test:

    import pytest
    from engines.testing.clock import ManualClock
    from engines.testing.documents import *  # the tests, and the fixture `driver` that they use

    @pytest.fixture
    def harness(tmp_path):
        clock = ManualClock()  # judges expiry in every driver that `open` makes
        return DocumentHarness(clock=clock, open=lambda: MyDriver(tmp_path, clock))

Each `open` makes one more client of this test's storage. That runs all that needs no more than clients; three
capabilities let the rest run. A test whose capability is not offered is skipped, with the reason that the
harness gives (`NotOffered`):

    server=Server(kill=..., start=...)          # SIGKILL the database, and start it on the same data
    network=Network(address=..., open=...)      # where it listens, and a client that connects elsewhere
    process=Process(function="module:open", arguments={...})  # how another process opens a client

It needs the extra `engines[testing]`. A seed stands in the name of each test that draws random numbers.
"""

import pytest

_MODULES = (
    "batches",
    "concurrency",
    "crashes",
    "expiry",
    "harness",
    "limits",
    "network",
    "process",
    "reads",
    "upkeep",
    "writes",
)
pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in _MODULES))

from engines.testing.documents.batches import TestBatch, TestBatchConditions  # noqa: E402
from engines.testing.documents.concurrency import TestCancellation, TestConcurrency  # noqa: E402
from engines.testing.documents.crashes import TestClientCrash, TestServerCrash  # noqa: E402
from engines.testing.documents.expiry import TestExpiry  # noqa: E402
from engines.testing.documents.harness import (  # noqa: E402
    DocumentHarness,
    Network,
    NotOffered,
    Process,
    Server,
    driver,
)
from engines.testing.documents.limits import TestLimits  # noqa: E402
from engines.testing.documents.network import TestNetwork  # noqa: E402
from engines.testing.documents.reads import TestGet, TestScan, TestScanPages  # noqa: E402
from engines.testing.documents.upkeep import TestClose, TestProvision, TestReclaim, TestSurface  # noqa: E402
from engines.testing.documents.writes import TestBodies, TestDelete, TestPut  # noqa: E402

__all__ = [
    "DocumentHarness",
    "Network",
    "NotOffered",
    "Process",
    "Server",
    "TestBatch",
    "TestBatchConditions",
    "TestBodies",
    "TestCancellation",
    "TestClientCrash",
    "TestClose",
    "TestConcurrency",
    "TestDelete",
    "TestExpiry",
    "TestGet",
    "TestLimits",
    "TestNetwork",
    "TestProvision",
    "TestPut",
    "TestReclaim",
    "TestScan",
    "TestScanPages",
    "TestServerCrash",
    "TestSurface",
    "driver",
]

"""The conformance kit for the log on a document driver: whatever passes it may hold logs.

Owns the rules of `core/log.py` as tests, and random histories of several writers on bad connections whose
books are checked. It runs on the storage of the same fixture as `engines.testing.documents`; in a module of
its own:

    import pytest
    from engines.testing.clock import ManualClock
    from engines.testing.documents import DocumentHarness
    from engines.testing.log import *                  # the tests, and the fixture `logs` that they use

    @pytest.fixture
    def harness(tmp_path):
        clock = ManualClock()
        return DocumentHarness(
            clock=clock,                               # judges expiry in every driver that `open` makes
            open=lambda: MyDriver(tmp_path, clock),    # one more client of this test's storage
        )

With the capability `process` several operating-system processes share a log, and one of them is killed. The
environment variable ENGINES_LOG_SEEDS says how many histories are played, ENGINES_LOG_FIRST_SEED with which
seed they begin; a failure names its seed. A harness whose storage is slow to test on asks for fewer
repetitions with its field `repetitions_share`.
"""

import pytest

pytest.register_assert_rewrite(
    *(
        f"engines.testing.log.{name}"
        for name in (
            *("appending", "ends", "harness", "histories", "history", "lost", "processes"),
            *("reading", "repeating", "segments", "tampering"),
        )
    )
)

from engines.testing.log.appending import (  # noqa: E402
    TestAppend,
    TestCancellation,
    TestClose,
    TestExpectedPosition,
    TestLimits,
    TestNeighbours,
)
from engines.testing.log.ends import TestSeal, TestTrim  # noqa: E402
from engines.testing.log.harness import logs  # noqa: E402
from engines.testing.log.histories import TestHistories  # noqa: E402
from engines.testing.log.lost import TestDeadline, TestLateDeliveries, TestLostReplies  # noqa: E402
from engines.testing.log.processes import TestProcesses, process  # noqa: E402
from engines.testing.log.reading import (  # noqa: E402
    TestFind,
    TestFollow,
    TestListing,
    TestSeek,
    TestVisibility,
)
from engines.testing.log.repeating import TestClientIds, TestIdempotencyKey  # noqa: E402
from engines.testing.log.segments import TestRepeatsAcrossSegments, TestSegments  # noqa: E402
from engines.testing.log.tampering import TestRedact, TestVerify  # noqa: E402

__all__ = [
    "TestAppend",
    "TestCancellation",
    "TestClientIds",
    "TestClose",
    "TestDeadline",
    "TestExpectedPosition",
    "TestFind",
    "TestFollow",
    "TestHistories",
    "TestIdempotencyKey",
    "TestLateDeliveries",
    "TestLimits",
    "TestListing",
    "TestLostReplies",
    "TestNeighbours",
    "TestProcesses",
    "TestRedact",
    "TestRepeatsAcrossSegments",
    "TestSeal",
    "TestSeek",
    "TestSegments",
    "TestTrim",
    "TestVerify",
    "TestVisibility",
    "logs",
    "process",
]

"""Where the servers of the tests listen: ports of loopback that nobody else is given meanwhile.

Owns choosing one. They lie below the range from which the system gives out ports of its own, so that a server
that was killed finds its port free when it is started again.
"""

import contextlib
import random
import socket

PORTS = range(20_000, 32_000)


def free_port() -> int:
    """Raises OSError where none of many is free."""
    for port in random.SystemRandom().sample(PORTS, 50):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no free loopback port found in {PORTS}")

"""The numbers: what the service bounds and charges, and what the driver bounds itself.

Owns the proof that what core lets through fits into the service's limits. It needs no SDK, so the driver's
description can be made from these constants without it.
"""

from typing import Final

from engines.drivers.documents.dynamodb.items import BODY, EXPIRY, KEY, PARTITION, VERSION
from engines.ports.documents import (
    BODY_BYTES_MAX,
    KEY_BYTES_MAX,
    OPS_MAX,
    PARTITION_BYTES_MAX,
    WRITE_BYTES_MAX,
)

# The service's. Sizes are of UTF-8, names of attributes included.
ITEM_BYTES_MAX: Final = 400 * 1024
TRANSACTION_OPS_MAX: Final = 100
TRANSACTION_BYTES_MAX: Final = 4 * 1024 * 1024
PARTITION_WRITE_UNITS_PER_S: Final = 1_000
PARTITION_READ_UNITS_PER_S: Final = 3_000
WRITE_UNIT_BYTES: Final = 1024
READ_UNIT_BYTES: Final = 4 * 1024
TOKEN_LENGTH_MAX: Final = 36

# What an item holds beside its body: its names, keys, version and expiry. No number takes more than 21 bytes.
VERSION_BYTES_MAX: Final = 36
NUMBER_BYTES_MAX: Final = 21
OVERHEAD_BYTES_MAX: Final = (
    sum(map(len, (PARTITION, KEY, BODY, VERSION, EXPIRY)))
    + PARTITION_BYTES_MAX
    + KEY_BYTES_MAX
    + VERSION_BYTES_MAX
    + NUMBER_BYTES_MAX
)
# Core counts a body as it is when escaped once more, which is never less than its UTF-8.
assert BODY_BYTES_MAX + OVERHEAD_BYTES_MAX <= ITEM_BYTES_MAX
assert WRITE_BYTES_MAX + OPS_MAX * OVERHEAD_BYTES_MAX <= TRANSACTION_BYTES_MAX
assert OPS_MAX <= TRANSACTION_OPS_MAX

# The driver's.
POOL_SIZE_MAX: Final = 1_000
CONNECT_TIMEOUT_S: Final = 3.0
# Of silence. The service ends a request of its own well before.
READ_TIMEOUT_S: Final = 7.0
# The service closes an idle connection later than this, so a write is not sent into one that is closing.
KEEPALIVE_S: Final = 12.0
# How long, and in what number, calls wait while all connections are busy.
WAIT_TIMEOUT_S: Final = 8.0
WAITING_MAX: Final = 10_000

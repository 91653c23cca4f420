"""Reserved kinds: the shape exists, every call answers Reserved, and nothing depends on them."""

from __future__ import annotations

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.catalogue import RESERVED, RESERVED_DETAIL
from engines.errors import Reserved

router = Router("reserved", is_limited=False)
# Those that are described; any other (TRACE, an extension) is answered as GET is.
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
_NAMES = frozenset(kind.name for kind in RESERVED)


async def answer_reserved(call: Call) -> Sendable:
    """A reserved kind: always 501, whatever is asked of it."""
    kind = call.id("kind")
    raise Reserved(RESERVED_DETAIL, resource_kind=kind if kind in _NAMES else None)


for _method in METHODS:
    router.add(
        _method,
        "/reserved/{kind}",
        statuses=(501,),
        is_idempotent=False,
        ignores_input=True,
        answers_any_method=_method == "GET",
    )(answer_reserved)

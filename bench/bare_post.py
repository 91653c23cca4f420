"""Engines' own server with one more call: a POST that decodes its body and answers with constant JSON.

Started as `python -m bench.bare_post`, with the control plane's URL on the first line of stdin; says where it
listens on its first line. The call is public, so what it leaves out is the context, the store and the answer;
parsing, limits, routing, the log and the metrics are those of every call.
"""

from __future__ import annotations

import sys
from typing import Final

from engines.api.app import ROUTERS
from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.ofrep import EvaluationRequest
from engines.api.reply import json_reply
from engines.cli.serve import Served, bind, run
from engines.stores.flag_rules import Evaluation

PATH: Final = "/bare"
ANSWER: Final = Evaluation(key="banner", reason="TARGETING_MATCH", variant="on", value=True)

router = Router("bare")


@router.post(PATH, body=EvaluationRequest, reply=Evaluation, reads=True, access="public")
async def answer(call: Call) -> Sendable:
    """The same body in, the same body out."""
    await call.body(EvaluationRequest)
    return json_reply(ANSWER)


def main() -> None:
    what = Served(control_plane=sys.stdin.readline().strip(), secrets={}, host="127.0.0.1", port=0)
    with bind(what.host, what.port) as listener:
        run(what, listener, routers=(*ROUTERS, router))


if __name__ == "__main__":
    main()

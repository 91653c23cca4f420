"""Engines' own server with one more call: a POST that decodes its body and answers with constant JSON.

Started as `python -m bench.bare_post`, with the control plane's URL on the first line of stdin; says where it
listens on its first line. The call is public, so what it leaves out is the context, the store and the answer;
parsing, limits, routing, the log and the metrics are those of every call.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Final

import uvicorn
import uvloop

from engines.api.app import ROUTERS, create_app
from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.logs import Lines
from engines.api.ofrep import EvaluationRequest
from engines.api.protocol import BoundedProtocol
from engines.api.reply import json_reply
from engines.cli.serve import bind
from engines.clock import SystemClock
from engines.stores.flag_rules import Evaluation
from engines.wiring import open_engines

PATH: Final = "/bare"
ANSWER: Final = Evaluation(key="banner", reason="TARGETING_MATCH", variant="on", value=True)

router = Router("bare")


@router.post(PATH, body=EvaluationRequest, reply=Evaluation, reads=True, access="public")
async def answer(call: Call) -> Sendable:
    """The same body in, the same body out."""
    await call.body(EvaluationRequest)
    return json_reply(ANSWER)


async def serve(control_plane: str) -> None:
    lines = Lines(sys.stderr.buffer, SystemClock())
    lines.configure_structlog()
    with bind("127.0.0.1", 0) as listener:
        async with open_engines(control_plane) as engines:
            config = uvicorn.Config(
                create_app(engines, tell=lines.account, routers=(*ROUTERS, router)),
                http=BoundedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
            )
            server = uvicorn.Server(config)
            asyncio.get_running_loop().add_signal_handler(
                signal.SIGTERM, server.handle_exit, signal.SIGTERM, None
            )
            print(f"listens on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
            await server.serve(sockets=[listener])
    lines.flush()


def main() -> None:
    control_plane = sys.stdin.readline().strip()
    uvloop.run(serve(control_plane))


if __name__ == "__main__":
    main()

"""`engines`: the command.

Owns the list of commands and how the process ends: 0 done, 1 failed, 2 wrongly called. A command's module is
imported when it is run, so that `engines --help` is fast. `lab`, `serve` and `init` become a process of
Engines; every other command is a client of one.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Sequence
from typing import Final

from cyclopts import App, Group, Parameter

# The shell's convention for a process that SIGINT ended (128 + 2).
INTERRUPTED: Final = 130
# Ctrl-C is how these are meant to end.
_UNTIL_INTERRUPTED: Final = frozenset({"lab", "serve"})

_SERVERS: Final = Group("Run a server", sort_key=0)
_CONTROL: Final = Group("Control plane", sort_key=1)
_DATA: Final = Group("Data and health", sort_key=2)

app = App(
    name="engines",
    help="Durable, multi-tenant state for agent applications.",
    version=lambda: importlib.metadata.version("engines"),
    suppress_keyboard_interrupt=False,
    # No option has a second, negated form unless it says so.
    default_parameter=Parameter(negative=()),
)

_COMMANDS: Final = (
    ("lab", "lab:lab", _SERVERS, "Serve a whole deployment from one directory, for trying things out."),
    ("init", "init:init", _SERVERS, "Make a database a control plane. Safe to repeat."),
    ("serve", "serve:serve", _SERVERS, "Serve an initialised control plane."),
    ("tenants", "tenants:app", _CONTROL, "The isolation boundaries."),
    ("users", "users:app", _CONTROL, "People and agents."),
    ("members", "members:app", _CONTROL, "Who belongs to a tenant."),
    ("keys", "keys:app", _CONTROL, "API keys of a tenant."),
    ("backends", "backends:app", _CONTROL, "Databases as data."),
    ("routes", "routes:app", _CONTROL, "Which backend holds what."),
    ("moves", "moves:app", _CONTROL, "Kinds of a tenant on their way to another backend."),
    ("events", "events:app", _DATA, "Follow the spine, prove that nobody rewrote it, export it."),
    ("import", "imports:app", _DATA, "Bring data of other programs in."),
    ("doctor", "doctor:doctor", _DATA, "Write, read back and delete on every required kind, and report."),
)

for _name, _path, _group, _help in _COMMANDS:
    app.command(f"engines.cli.{_path}", name=_name, group=_group, help=_help)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return the process's exit status. Raises SystemExit for a wrong call (2)."""
    from engines.cli.output import FAILED, OK, print_error
    from engines.errors import EnginesError

    try:
        result = app(list(arguments), result_action="return_value")
        sys.stdout.flush()
    except EnginesError as error:
        print_error(error, as_json="--json" in arguments)
        return FAILED
    except KeyboardInterrupt:
        return OK if arguments[:1] and arguments[0] in _UNTIL_INTERRUPTED else INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough; what is still buffered goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    return result if isinstance(result, int) else OK


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))

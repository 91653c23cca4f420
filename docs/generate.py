"""Writes the reference pages that are made from the code: HTTP calls, kinds, roles, drivers, stores.

    python docs/generate.py          writes the pages that are listed in PAGES
    python docs/generate.py --check  exits 1 where a page is not what the code says

Owns their layout alone: every sentence comes from a type, a summary or a driver's description.
"""

from __future__ import annotations

import inspect
import json
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from engines.api.app import ROUTERS
from engines.api.openapi import describe, router_for
from engines.catalogue import KINDS, Kind
from engines.control.bootstrap import read_seed
from engines.drivers.registry import DOCUMENT_DRIVERS, document_driver
from engines.ports.documents import DriverDescription
from engines.safety.reasons import REASONS
from engines.stores.definition_schemas import SCHEMAS

HERE = Path(__file__).parent
METHODS = ("get", "put", "post", "patch", "delete")


def http_page() -> str:
    """Every call by tag: parameters, body, answers."""
    endpoints = [endpoint for router in ROUTERS for endpoint in router.endpoints]
    endpoints += router_for(endpoints).endpoints
    description = describe(endpoints)
    lines = [
        "# HTTP reference",
        "",
        "Made from the OpenAPI description by `python docs/generate.py`; the server gives it at `/openapi.json`.",
        "Problems are `application/problem+json` with `type, title, status, detail, code, request_id` and, where it",
        "applies, `field, resource_kind, scope, gate, reason_code, outcome`; under `/ofrep` they are",
        "[EvaluationFailure](#evaluationfailure), as OFREP has them.",
        "",
    ]
    tags: dict[str, list[str]] = {}
    for path, operations in description["paths"].items():
        for method in METHODS:
            if method in operations:
                operation = operations[method]
                tags.setdefault(operation["tags"][0], []).extend(_call(method, path, operation))
    for tag, calls in tags.items():
        lines += [f"## {tag}", "", *calls]
    lines += ["## Bodies and records", ""]
    for name, schema in sorted(description["components"]["schemas"].items()):
        lines += list(_schema(name, schema))
    return "\n".join(lines).rstrip() + "\n"


def _call(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"### `{method.upper()} {path}`"
    yield ""
    yield f"{operation['summary']}."
    yield ""
    query = [item["name"] for item in operation.get("parameters", ()) if item.get("in") == "query"]
    referred = [item["$ref"].rsplit("/", 1)[1] for item in operation.get("parameters", ()) if "$ref" in item]
    conditions = [name for name in ("If-Match", "If-None-Match", "Idempotency-Key") if name in referred]
    conditions += ["If-None-Match"] if "If-None-Match-of-a-read" in referred else []
    query += [name for name in ("limit", "after", "order") if name in referred]
    if query:
        yield f"- query: {', '.join(f'`{name}`' for name in query)}"
    if conditions:
        yield f"- headers: {', '.join(f'`{name}`' for name in conditions)}"
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"- body: {_type(content['schema'])} (`{media}`)"
    for event_type, schema in operation.get("x-payloads", {}).items():
        yield f"- payload of `{event_type}`: {_type(schema)}"
    for status, response in operation["responses"].items():
        if status < "400":
            shown = [
                _type(content["schema"])
                for content in response.get("content", {}).values()
                if "schema" in content
            ]
            yield f"- {status}: {' or '.join(shown) or 'no body'}"
    yield f"- problems: {', '.join(status for status in operation['responses'] if status >= '400')}"
    yield ""


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {name}"
    yield ""
    if "description" in schema:
        yield " ".join(schema["description"].split())
        yield ""
    if "properties" in schema:
        yield "| member | type | |"
        yield "|---|---|---|"
        required = set(schema.get("required", ()))
        for member, value in schema["properties"].items():
            yield f"| `{member}` | {_type(value)} | {'required' if member in required else ''} |"
        yield ""


def _type(schema: Mapping[str, Any]) -> str:
    """A type in words, with its limits."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_type(item) for item in schema[key])
    if "enum" in schema:
        return "one of " + ", ".join(f"`{item}`" for item in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = str(schema.get("type", "any JSON"))
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    limits = [
        f"{word} {schema[key]}"
        for key, word in (
            ("minimum", "≥"),
            ("maximum", "≤"),
            ("minLength", "length ≥"),
            ("maxLength", "length ≤"),
        )
        if key in schema
    ]
    if "pattern" in schema:
        pattern = schema["pattern"].replace("|", "\\|")
        limits.append(f"`{pattern}`")
    return f"{kind} ({', '.join(limits)})" if limits else kind


def kinds_page() -> str:
    """The catalogue."""
    lines = [
        "# Resource kinds",
        "",
        "Made from `src/engines/catalogue.py` by `python docs/generate.py`. A kind that is not served yet can be named",
        "by nothing but its reservation here.",
        "",
        "| kind | aliases | family | scope beyond tenant, mode, env | holds | served | options of a route |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        options = "<br>".join(
            f"`{option.name}`: {option.meaning}, {option.minimum} to {option.maximum}, default {option.default}"
            for option in kind.options
        )
        aliases = ", ".join(f"`{alias}`" for alias in kind.aliases)
        served = "yes" if kind.served else ""
        lines.append(
            f"| `{kind.name}` | {aliases} | {kind.family} | {kind.scope} | {kind.holds} | {served} | {options} |"
        )
    return "\n".join(lines) + "\n"


def backends_page() -> str:
    """The index: what tells the drivers apart."""
    lines = [
        "# Backends",
        "",
        "Made from each driver's `DESCRIPTION` by `python docs/generate.py`. Each has a page of its own, with what an operator",
        "needs to put one; `engines backends drivers NAME` tells the same where this documentation is not to hand.",
        "",
        "| | class | consistency | durability | proven on |",
        "|---|---|---|---|---|",
    ]
    abouts = [document_driver(name).DESCRIPTION for name in DOCUMENT_DRIVERS]
    for about in abouts:
        cells = (f"`{about.backend_class}`", about.consistency, about.durability, _peers(about))
        lines.append(f"| [{about.name}](backends/{about.name}.md) | {' | '.join(map(_cell, cells))} |")
    lines += ["", "A mode says which classes its tenants may use: `host_local` in a lab alone.", ""]
    for title in ("limits", "costs"):
        lines += [f"## {title.capitalize()}", "", f"| | {title} |", "|---|---|"]
        for about in abouts:
            told = "<br>".join(f"{name}: {value}" for name, value in getattr(about, title).items())
            lines.append(f"| [{about.name}](backends/{about.name}.md) | {_cell(told)} |")
        lines.append("")
    lines += ["A backend that is not here is one file: [add a backend](add-a-backend.md)."]
    return "\n".join(lines).rstrip() + "\n"


def backend_page(name: str) -> str:
    """All that an operator needs to use one backend."""
    module = document_driver(name)
    about = module.DESCRIPTION
    lines = [
        f"# {name}",
        "",
        "Made from the driver by `python docs/generate.py`. All of them: [backends](../backends.md).",
        "",
        *inspect.cleandoc(module.__doc__ or "").splitlines(),
        "",
        f"- class: `{about.backend_class}`",
        f"- consistency: {about.consistency}",
        f"- durability: {about.durability}",
        "",
        "## Before you begin",
        "",
        f"- the driver: {_installation(name)}",
        *(f"- {item}" for item in about.prerequisites),
        "",
        "## Put it",
        "",
        "As an admin of `t_system`:",
        "",
        "```",
        *_commands(about),
        "```",
        "",
        *(_SECRETS if about.secrets else ()),
        "`probe` provisions what is missing, then writes, reads back and deletes one document: what is wrong with a credential, a",
        "permission or a table is told there, before traffic finds it. Then route to it:",
        "`engines routes put notes_store main --tenant TENANT`.",
        "",
        f"As a control plane: `engines init --control-plane '{about.control_plane_url}'`.",
        "",
    ]
    for title, table in (("config", about.config), ("secrets", about.secrets)):
        lines += _table(title, {f"`{key}`": value for key, value in table.items()})
    lines += ["## Rights", "", f"`provision` creates {about.provisions}. The least that it runs with:", ""]
    lines += ["```", about.policy, "```", ""]
    for title, column in (("limits", "limit"), ("costs", "cost"), ("proven", "on")):
        lines += [f"## {title.capitalize()}", "", *_table(column, getattr(about, title))]
    return "\n".join(lines).rstrip() + "\n"


_SECRETS = (
    "A secret is named by a handle and never given: `env:`, `json:`, `file:`, `aws:`, `google:` or `azure:`, where the",
    "server finds it. Leave out the secrets that your way to a credential does not need.",
    "",
)


def _installation(name: str) -> str:
    extras = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"][
        "optional-dependencies"
    ]
    return f"`pip install 'engines[{name}]'`" if name in extras else "part of Engines"


def _commands(about: DriverDescription) -> Iterator[str]:
    yield f"engines backends put main --driver {about.name} --class {about.backend_class} \\"
    yield f"  --config '{json.dumps(about.example)}' \\"
    for secret in about.secrets:
        yield f"  --secret.{secret} env:ENGINES_SECRET_{about.name.upper()}_{secret.upper()} \\"
    yield "  --offered-to '*'"
    yield "engines backends probe main"


def _peers(about: DriverDescription) -> str:
    return "<br>".join(
        f"{peer}: not run" if found.startswith("not run") else peer for peer, found in about.proven.items()
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def stores_page() -> str:
    """The summary of the stores: what each is, where it can lie, how routing selects it, what it is ready for."""
    drivers = [document_driver(name).DESCRIPTION for name in DOCUMENT_DRIVERS]
    clouds = ", ".join(about.name for about in drivers if about.backend_class == "cloud")
    lines = [
        "# Phase 0.5: real stores, a summary",
        "",
        "Made from the catalogue, the registry of drivers and their descriptions by `python docs/generate.py`.",
        "",
        "## Selection",
        "",
        "The routing registry is the only selector; no environment variable and no code of a store picks a backend. A kind is",
        "looked up for the tenant, most specific route first, then among the defaults of `t_system`; see",
        "[concepts](../concepts.md). Without a route a call fails with `MissingRoute`, which names the command that adds one, and",
        "outside a lab the server does not start where a required kind has no default. A backend of class `host_local` is refused",
        "outside mode `lab`. One service uses all backends at once, and a tenant may have each kind on another:",
        "",
        "```",
        "engines backends put BACKEND --driver DRIVER --class CLASS --config JSON --offered-to TENANT",
        "engines backends probe BACKEND",
        "engines routes put KIND BACKEND --tenant TENANT",
        "engines doctor --tenant TENANT",
        "```",
        "",
        "## Stores",
        "",
        f"Whatever is kept as documents lies on any of {', '.join(DOCUMENT_DRIVERS)}; of class cloud are {clouds}. There is no",
        "other implementation of a store, in memory or on files, to fall back to.",
        "",
        "| resource kind | named too | holds | backends | ready for UI and agents |",
        "|---|---|---|---|---|",
        *map(_store_row, KINDS),
        "",
        "A kind that is not served cannot be used: there is no call for it, and nothing pretends to be it.",
        "",
        "## Proven",
        "",
        "| backend | class | against | what was run |",
        "|---|---|---|---|",
    ]
    for about in drivers:
        page = f"[{about.name}](../backends/{about.name}.md)"
        lines += [
            f"| {page} | `{about.backend_class}` | {_cell(peer)} | {_cell(found)} |"
            for peer, found in about.proven.items()
        ]
    lines += [
        "",
        "All at once, in `tests/together/`: one service with tenants on each backend and one tenant on several, the control plane",
        "on each in turn, restarts, each backend in turn refusing, hanging, resetting replies, slow or throttling, and bad",
        "credentials, tables and accounts, against the same servers. No service of a cloud was reached.",
    ]
    return "\n".join(lines) + "\n"


def _store_row(kind: Kind) -> str:
    named = ", ".join(f"`{alias}`" for alias in kind.aliases)
    lies_on_documents = kind.family in ("documents", "log", "definitions")
    if kind.served:
        backends, ready = "all", "yes: HTTP, the Python client, and a probe of `engines doctor`"
    else:
        backends, ready = ("all, once served" if lies_on_documents else "none yet"), "no: not served"
    return f"| `{kind.name}` | {named} | {_cell(kind.holds)} | {backends} | {ready} |"


def reasons_page() -> str:
    """The closed list of reason codes."""
    lines = [
        "# Reason codes",
        "",
        "Made from `src/engines/safety/reasons.py` by `python docs/generate.py`. What a decision of the",
        "[gates](gates.md) gives as its `reason_code` is one of these, and nothing else.",
        "",
        "| reason code | from | meaning |",
        "|---|---|---|",
    ]
    for code, reason in REASONS.items():
        gates = ", ".join(gate if " " in gate else f"`{gate}`" for gate in reason.gates)
        lines.append(f"| `{code}` | {gates} | {reason.meaning} |")
    return "\n".join(lines) + "\n"


_KEYS = """## Keys

An admin makes keys for members of the tenant, for nobody and nothing that may more than the admin. A key acts as its
user, so:

- **It may what its role and its user's present role both grant.** Who is demoted is demoted with every key, within a
  second, t_system's admins too; a key of the role `agent` for a viewer reads. `GET /me` shows what is left: `roles` are
  those that are granted whole, and `agent` for whoever is one by either side, who is held to an agent's rules.
- `beacon` and `scrape` are roles of machines, for what no person's role is for. A key in one of them has that role's
  permissions while its user is a member, whatever as: end it by revoking it.
- **It ends with the membership.** A user who is invited anew starts without keys: the old ones stay 403, and cannot
  accept the invitation. Such keys are still listed until they are revoked.
- **What is asked with a key, its maker asked too.** `made_by` names whoever made it for somebody else and, where they
  used such a key themselves, its makers. None of them decides about a
  [strategy lock](records/strategy-locks.md#who-decides) that was written with it, or answers a
  [request](records/firearms.md#approvals) that a person's key made. An agent asks as itself: whoever gave it its key may
  answer it. Keys of releases that did not keep this have none.
- **A key opens what its user sees**, private notes and sessions too, to whoever made it: give `admin` to those who may.
  That a key was made or revoked is an `audit` event on the tenant's spine: its actor is the maker, and `about` names
  the user and the role.""".splitlines()


def roles_page() -> str:
    """What the seeded roles may do, and what writing each kind of definition asks for."""
    roles = {row["role"]: row["permissions"] for row in read_seed("system")["roles"]}
    permissions = sorted({permission for granted in roles.values() for permission in granted})
    lines = [
        "# Roles",
        "",
        "Made from `src/engines/control/seeds/system.json` and the table of definitions by `python docs/generate.py`. A call",
        "that needs a permission which the caller's role does not grant is 403 `Forbidden`. A key has a role of its own, [within its user's](#keys).",
        "",
        f"| permission | {' | '.join(roles)} |",
        f"|---|{'---|' * len(roles)}",
    ]
    for permission in permissions:
        granted = ("yes" if permission in roles[role] else "" for role in roles)
        lines.append(f"| `{permission}` | {' | '.join(granted)} |")
    lines += [
        "",
        "Roles are records. An older deployment's gain what a newer release's may do when it is",
        "[upgraded](operations.md#upgrade), and keep what they had; which permission a call asks for may change.",
        "",
        *_KEYS,
        "",
        "## Writing definitions",
        "",
        "To write, delete, restore or copy to a definition needs:",
        "",
        "| calls | holds | permission |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{schema.base_path}` | {_cell(schema.holds)} | `{schema.write_permission}` |"
        for schema in SCHEMAS
    ]
    return "\n".join(lines) + "\n"


def _table(title: str, rows: Mapping[str, str]) -> list[str]:
    if not rows:
        return []
    return [
        f"| {title} | |",
        "|---|---|",
        *(f"| {key} | {_cell(value)} |" for key, value in rows.items()),
        "",
    ]


PAGES: Mapping[str, Callable[[], str]] = {
    "http.md": http_page,
    "kinds.md": kinds_page,
    "roles.md": roles_page,
    "records/reason-codes.md": reasons_page,
    "backends.md": backends_page,
    "foundational/PHASE_0_5_POST_LANE5_REAL_STORES_SUMMARY.md": stores_page,
    **{f"backends/{name}.md": partial(backend_page, name) for name in DOCUMENT_DRIVERS},
}


def main() -> int:
    stale = [name for name, page in PAGES.items() if _read(name) != page()]
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"docs/{name} is not what the code says; run python docs/generate.py")
        return 1 if stale else 0
    for name in stale:
        (HERE / name).parent.mkdir(exist_ok=True)
        (HERE / name).write_text(PAGES[name](), "utf-8")
        print(f"wrote docs/{name}")
    return 0


def _read(name: str) -> str:
    path = HERE / name
    return path.read_text("utf-8") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())

"""Writes the reference pages that are made from the code: HTTP calls, resource kinds, drivers.

    python docs/generate.py          writes docs/http.md, docs/kinds.md and docs/backends.md
    python docs/generate.py --check  exits 1 where a page is not what the code says

Owns their layout alone: every sentence comes from a type, a summary or a driver's description.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engines.api.app import ROUTERS
from engines.api.openapi import describe, router_for
from engines.catalogue import KINDS
from engines.drivers.registry import DOCUMENT_DRIVERS, document_driver

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
        "applies, `field, resource_kind, scope, gate, reason_code, outcome`.",
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
    query += [name for name in ("limit", "after", "order") if name in referred]
    if query:
        yield f"- query: {', '.join(f'`{name}`' for name in query)}"
    if conditions:
        yield f"- headers: {', '.join(f'`{name}`' for name in conditions)}"
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"- body: {_type(content['schema'])} (`{media}`)"
    for status, response in operation["responses"].items():
        if status < "300":
            shown = [
                _type(content["schema"])
                for content in response.get("content", {}).values()
                if "schema" in content
            ]
            yield f"- {status}: {' or '.join(shown) or 'no body'}"
    yield f"- problems: {', '.join(status for status in operation['responses'] if status >= '300')}"
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
    """What each driver says of itself."""
    lines = [
        "# Backends",
        "",
        "Made from each driver's `DESCRIPTION` by `python docs/generate.py`; `engines backends describe` shows the same.",
        "",
    ]
    for name in DOCUMENT_DRIVERS:
        about = document_driver(name).DESCRIPTION
        lines += [f"## {name}", "", f"Class `{about.backend_class}`.", ""]
        lines += [f"- consistency: {about.consistency}", f"- durability: {about.durability}", ""]
        named = (("config", about.config), ("secrets", about.secrets))
        told = (("limits", about.limits), ("costs", about.costs))
        for title, table in named:
            lines += _table(title, {f"`{key}`": value for key, value in table.items()})
        for title, table in told:
            lines += _table(title, table)
        lines += [f"`provision` creates {about.provisions}. The least that it runs with:", ""]
        lines += ["```", about.policy, "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(title: str, rows: Mapping[str, str]) -> list[str]:
    if not rows:
        return []
    return [f"| {title} | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items()), ""]


PAGES = {"http.md": http_page, "kinds.md": kinds_page, "backends.md": backends_page}


def main() -> int:
    stale = [name for name, page in PAGES.items() if _read(name) != page()]
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"docs/{name} is not what the code says; run python docs/generate.py")
        return 1 if stale else 0
    for name in stale:
        (HERE / name).write_text(PAGES[name](), "utf-8")
        print(f"wrote docs/{name}")
    return 0


def _read(name: str) -> str:
    path = HERE / name
    return path.read_text("utf-8") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())

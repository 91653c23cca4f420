"""The description of every call, OpenAPI 3.1, made from the types that the calls are run with.

Owns how an endpoint becomes an operation: parameters with their rules, bodies, answers, problems and header
fields. Nothing is described by hand that a type already says. Leaves the types to the stores and services.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from types import UnionType
from typing import Any, Final, get_args

import msgspec

from engines.api.call import Call
from engines.api.endpoint import CHANGING_METHODS, Endpoint, Router, Sendable
from engines.api.fields import IDEMPOTENCY_KEY_CHARS_MAX
from engines.api.ofrep_errors import EvaluationFailure, is_ofrep
from engines.api.reply import JSON, Problem, Reply
from engines.api.stream import MEDIA_TYPE as STREAM_MEDIA_TYPE
from engines.catalogue import KINDS

_SCHEMAS: Final = "#/components/schemas/{name}"
_ID: Final = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._~:@|+-]{0,127}$"}
_TENANT_ID: Final = {"type": "string", "pattern": "^t_[a-z0-9_-]+$", "maxLength": 64}
_ENV: Final = {"type": "string", "pattern": "^[a-z][a-z0-9-]{0,31}$"}
_TEXT: Final = {"type": "string", "minLength": 1, "maxLength": 1024}
_VERSION_TAG: Final = {"type": "string", "pattern": '^"[0-9a-f]{32}"$'}
_KIND: Final = {
    "type": "string",
    "enum": sorted(name for kind in KINDS for name in (kind.name, *kind.aliases)),
}
_PATH_SCHEMAS: Final[Mapping[str, Mapping[str, Any]]] = {"tenant_id": _TENANT_ID, "resource_kind": _KIND}

# Optional on every call with a context; the server checks each against what it derives, and trusts none.
_CONTEXT_HEADERS: Final[Mapping[str, tuple[Mapping[str, Any], str]]] = {
    "X-Tenant-Id": (_TENANT_ID, "the tenant, where the credential does not say which"),
    "X-Mode": (_ID, "the mode, which must be the tenant's"),
    "X-Env": (_ENV, "one of the tenant's envs"),
    "X-Surface-Id": (_TEXT, "a surface, in any of its spellings"),
    "X-App-Id": (_ID, "an app"),
    "X-Project-Id": (_ID, "a project of the tenant"),
    "X-Run-Id": (_ID, "the run that the request belongs to"),
    "X-Step-Id": (_ID, "the step of the run"),
    "X-Thread-Id": (_ID, "the thread"),
    "X-Session-Id": (_ID, "the session"),
    "X-Request-Id": (_ID, "an id for the request, where the client has one"),
    "traceparent": ({"type": "string"}, "W3C Trace Context"),
}
_STATUSES: Final[Mapping[int, str]] = {
    400: "the request is malformed: `field` names where it breaks a rule",
    401: "there is no valid credential",
    403: "another's identity, no membership, no permission, a backend class that the mode forbids, or a gate",
    404: "there is no such record for this caller",
    408: "the body did not come in time",
    409: "the record is in another state: read again and decide",
    410: "the cursor is below what is kept",
    412: "the record is not what If-Match or If-None-Match says",
    413: "the body, a batch or a value is past its limit",
    415: "the body is not application/json",
    428: "say with If-Match or If-None-Match what is to be replaced",
    429: "a limit was met: wait and repeat",
    431: "the header section is past 32 KiB",
    501: "the kind is reserved",
    503: "a missing route, an unavailable or refusing backend, or `outcome: unknown`",
}
# A 500 is a bug of the server's or corrupt data: nothing that a call may answer, so none is described.
_ALWAYS: Final = (400, 429, 431, 503)
_LIMIT_HEADERS: Final = ("RateLimit-Policy", "RateLimit")
_PROBLEM_HEADERS: Final = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}
_SUCCESS_DESCRIPTIONS: Final[Mapping[int, str]] = {
    200: "done",
    201: "created",
    202: "begun; send it again to go on",
    204: "done, nothing to show",
    304: "it is what If-None-Match says",
}
_KNOWN_ETAG: Final = "If-None-Match-of-a-read"
_OFREP: Final = "OFREP-{status}"


def router_for(endpoints: Sequence[Endpoint]) -> Router:
    """`GET /openapi.json`, over these endpoints; made when it is first asked for."""
    router = Router("description", is_limited=False)
    made: list[Reply] = []

    @router.get("/openapi.json", reply=dict[str, Any], access="public")
    async def get_description(_: Call) -> Sendable:
        """This description."""
        if not made:
            made.append(Reply(200, msgspec.json.encode(describe([*endpoints, *router.endpoints])), (JSON,)))
        return made[0]

    return router


def describe(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The whole document."""
    types = list(dict.fromkeys(_types(endpoints)))
    refs, components = msgspec.json.schema_components(types, ref_template=_SCHEMAS)
    schemas = dict(zip(types, refs, strict=True))
    names = Counter(endpoint.handler.__name__ for endpoint in endpoints)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        name = endpoint.handler.__name__
        operation_id = name if names[name] == 1 else f"{endpoint.method.lower()}_{name}"
        operation = {"operationId": operation_id, **_operation(endpoint, schemas)}
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "Engines",
            "version": version("engines"),
            "summary": "Durable, multi-tenant state for agent applications.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"bearer": []}],
        "tags": [{"name": tag} for tag in dict.fromkeys(endpoint.tag for endpoint in endpoints)],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {
                name: _problem(status, form)
                for status in _STATUSES
                for name, form in ((str(status), Problem), (_OFREP.format(status=status), EvaluationFailure))
            },
            "parameters": _parameters(),
            "headers": _headers(),
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "a JSON Web Token of a trusted issuer, or an API key `ek_<id>_<secret>`",
                }
            },
        },
    }
    readable: dict[str, Any] = _with_readable_patterns(document)
    return readable


def _types(endpoints: Iterable[Endpoint]) -> Iterable[Any]:
    yield from (Problem, EvaluationFailure)
    for endpoint in endpoints:
        for type_ in (endpoint.body, endpoint.reply):
            yield from (part for part in _alternatives(type_) if part not in (None, str))
        for payloads in endpoint.payloads.values():
            yield from payloads


def _operation(endpoint: Endpoint, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {"tags": [endpoint.tag], "summary": endpoint.summary}
    if endpoint.description:
        operation["description"] = endpoint.description
    if endpoint.access == "public":
        operation["security"] = []
    parameters = [*_path_parameters(endpoint), *_query_parameters(endpoint), *_header_parameters(endpoint)]
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {name: {"schema": _schema(endpoint.body, schemas)} for name in endpoint.accepts},
        }
    if endpoint.payloads:
        # JSON Schema could say it with if and then, which hardly any generator of clients reads.
        operation["x-payloads"] = {
            event_type: {"anyOf": [schemas[payload] for payload in payloads]}
            for event_type, payloads in endpoint.payloads.items()
        }
    operation["responses"] = _responses(endpoint, schemas)
    return operation


def _alternatives(type_: Any) -> Sequence[Any]:
    """The parts of a union, which msgspec does not describe where they have no tag, or the type alone."""
    return get_args(type_) if isinstance(type_, UnionType) else (type_,)


def _schema(type_: Any, schemas: Mapping[Any, Any]) -> Any:
    if isinstance(type_, UnionType):
        return {"anyOf": [schemas[part] for part in _alternatives(type_)]}
    return {"type": "string"} if type_ is str else schemas[type_]


def _path_parameters(endpoint: Endpoint) -> Iterable[Mapping[str, Any]]:
    for name in endpoint.parameters:
        yield {"name": name, "in": "path", "required": True, "schema": _PATH_SCHEMAS.get(name, _ID)}


def _query_parameters(endpoint: Endpoint) -> Iterable[Mapping[str, Any]]:
    if endpoint.query is None:
        return
    _, own = msgspec.json.schema_components([endpoint.query], ref_template=_SCHEMAS)
    for name, schema in own[endpoint.query.__name__]["properties"].items():
        # In a query there is no null: a parameter that is not there is left out.
        choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
        shown = {"anyOf": choices} if len(choices) > 1 else choices[0] if choices else schema
        yield {"name": name, "in": "query", "required": False, "schema": shown}


def _header_parameters(endpoint: Endpoint) -> Iterable[Mapping[str, Any]]:
    names: list[str] = []
    if endpoint.conditions != "none":
        names += ["If-Match", "If-None-Match"]
    if 304 in endpoint.statuses:
        names.append(_KNOWN_ETAG)
    if endpoint.is_idempotent:
        names.append("Idempotency-Key")
    if endpoint.is_stream:
        names.append("Last-Event-ID")
    names += ["X-Request-Id"] if endpoint.access == "public" else _CONTEXT_HEADERS
    return [{"$ref": f"#/components/parameters/{name}"} for name in names]


def _responses(endpoint: Endpoint, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status in endpoint.statuses:
        if status < 400:
            responses[str(status)] = _success(endpoint, status, schemas)
    for status in sorted({*_problem_statuses(endpoint)} - {int(status) for status in responses}):
        name = _OFREP.format(status=status) if is_ofrep(endpoint.path) else status
        responses[str(status)] = {"$ref": f"#/components/responses/{name}"}
    return responses


def _success(endpoint: Endpoint, status: int, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    headers = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}
    if endpoint.has_etag:
        headers["ETag"] = {"$ref": "#/components/headers/ETag"}
    if endpoint.is_idempotent:
        headers["Idempotency-Replayed"] = {"$ref": "#/components/headers/Idempotency-Replayed"}
    response: dict[str, Any] = {"description": _SUCCESS_DESCRIPTIONS[status], "headers": headers}
    if endpoint.is_stream:
        response["content"] = {STREAM_MEDIA_TYPE: {"schema": {"type": "string"}}}
    elif endpoint.reply is not None and status != 304:
        response["content"] = {endpoint.media_type: {"schema": _schema(endpoint.reply, schemas)}}
    return response


def _problem_statuses(endpoint: Endpoint) -> Iterable[int]:
    yield from _ALWAYS
    yield from (status for status in endpoint.statuses if status >= 400)
    if endpoint.access != "public":
        yield from (401, 403)
    if endpoint.parameters or endpoint.changes or endpoint.has_etag:
        yield 404
    if endpoint.method in CHANGING_METHODS:
        yield from (408, 413)
    if endpoint.changes:
        yield 409
    if endpoint.body is not None:
        yield 415
    if endpoint.conditions != "none":
        yield 412
    if endpoint.conditions == "required":
        yield 428
    if endpoint.is_stream or endpoint.tag == "events":
        yield 410
    if "resource_kind" in endpoint.parameters:
        yield 501


def _problem(status: int, form: type[msgspec.Struct]) -> Mapping[str, Any]:
    headers = dict(_PROBLEM_HEADERS)
    if status == 401:
        headers["WWW-Authenticate"] = {"$ref": "#/components/headers/WWW-Authenticate"}
    if status in (429, 503):
        headers["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
    if status == 429:
        headers |= {name: {"$ref": f"#/components/headers/{name}"} for name in _LIMIT_HEADERS}
    schema = {"schema": {"$ref": _SCHEMAS.format(name=form.__name__)}}
    media_type = "application/problem+json" if form is Problem else "application/json"
    return {"description": _STATUSES[status], "headers": headers, "content": {media_type: schema}}


def _parameters() -> dict[str, Any]:
    described: dict[str, tuple[Mapping[str, Any], str]] = {
        "If-Match": (
            {"type": "string", "minLength": 1},
            "the ETag that the record must have, or several, or * for any",
        ),
        "If-None-Match": ({"type": "string", "enum": ["*"]}, "* where the record must not exist"),
        "Idempotency-Key": (
            {
                "type": "string",
                "minLength": 1,
                "maxLength": IDEMPOTENCY_KEY_CHARS_MAX,
                "pattern": "^[ -~]+$",
            },
            "the same request again under the same key, for 24 hours, is answered as the first was",
        ),
        "Last-Event-ID": (
            {"type": "string", "minLength": 1},
            "a cursor or an event id: go on behind it",
        ),
        **_CONTEXT_HEADERS,
    }
    parameters = {
        name: {"name": name, "in": "header", "required": False, "description": text, "schema": schema}
        for name, (schema, text) in described.items()
    }
    parameters[_KNOWN_ETAG] = {
        "name": "If-None-Match",
        "in": "header",
        "required": False,
        "description": "the ETag of an earlier answer: where it still holds there is no body",
        "schema": {"type": "string"},
    }
    return parameters


def _headers() -> dict[str, Any]:
    return {
        "X-Request-Id": {"description": "the id under which the log knows the request", "schema": _ID},
        "ETag": {
            "description": "the record's version, to be sent back as If-Match",
            "schema": _VERSION_TAG,
        },
        "Idempotency-Replayed": {
            "description": "`true` where an earlier identical request did it",
            "schema": {"type": "string", "enum": ["true"]},
        },
        "WWW-Authenticate": {
            "description": "how to authenticate",
            "required": True,
            "schema": {"type": "string"},
        },
        "RateLimit-Policy": {
            "description": "each limit that the call met: its name, the calls (q) in so many seconds (w)",
            "schema": {"type": "string"},
        },
        "RateLimit": {
            "description": "of each of them, how many calls are left (r), and for how many seconds (t)",
            "schema": {"type": "string"},
        },
        "Retry-After": {"description": "seconds", "schema": {"type": "string", "pattern": "^[0-9]+$"}},
    }


def _with_readable_patterns(value: Any) -> Any:
    r"""`\Z` is Python's end of text; in JSON Schema it is `$`."""
    if isinstance(value, dict):
        return {name: _with_readable_patterns(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_readable_patterns(item) for item in value]
    return value.removesuffix("\\Z") + "$" if isinstance(value, str) and value.endswith("\\Z") else value

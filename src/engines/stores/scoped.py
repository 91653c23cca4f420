"""What the records of all stores share: the identity stamped on them, and identity named in a body.

Owns the fields that every record shows, the check that a body names nobody but its caller, validation
of bodies that were made in process, and the results of a change. Leaves keys and contents to the stores.

`Stamped` and `IdentityFields` are bases because the JSON of a record and of a body is flat.
"""

from __future__ import annotations

from typing import Any, Final, Generic, TypeVar

import msgspec
from msgspec import UNSET

from engines.errors import ContextMismatch, Invalid
from engines.scope import RequestContext, check_env, check_id, check_tenant_id, normalise_surface

# Whoever has this role is no person: what it writes is an agent's.
AGENT_ROLE: Final = "agent"

B = TypeVar("B", bound=msgspec.Struct)
R = TypeVar("R", bound="Stamped")


class Stamped(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who and where, from the context of the write that made this state; provenance likewise."""

    tenant_id: str
    mode: str
    env: str
    user_id: str
    surface_id: str
    app_id: str | None = None
    project_id: str | None = None
    run_id: str
    step_id: str
    thread_id: str | None = None
    etag: str = ""


class IdentityFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Identity that a body may repeat; it is compared with the context and never used."""

    tenant_id: str | None = None
    mode: str | None = None
    env: str | None = None
    user_id: str | None = None
    surface_id: str | None = None
    app_id: str | None = None
    project_id: str | None = None


class Change(msgspec.Struct, Generic[R], frozen=True):
    """A record as a change left it. `replayed`: an identical request, made before, did it."""

    record: R
    created: bool
    replayed: bool = False

    @property
    def etag(self) -> str:
        """The ETag header's value, quotes included."""
        return self.record.etag


class Deletion(msgspec.Struct, frozen=True):
    """A record is gone. `replayed`: an identical request, made before, removed it."""

    replayed: bool = False


def stamp(context: RequestContext) -> dict[str, Any]:
    """The fields of `Stamped` but the ETag."""
    return {
        "tenant_id": context.tenant_id,
        "mode": context.mode,
        "env": context.env,
        "user_id": context.user_id,
        "surface_id": context.surface_id,
        "app_id": context.app_id,
        "project_id": context.project_id,
        "run_id": context.run_id,
        "step_id": context.step_id,
        "thread_id": context.thread_id,
    }


def with_etag(record: R, version: str) -> R:
    """The record that was just decoded or encoded, completed by the version it has; nobody else holds it."""
    msgspec.structs.force_setattr(record, "etag", f'"{version}"')
    return record


def check_body(context: RequestContext, body: B) -> B:
    """A body that holds what its type says and names no identity but the caller's.

    Raises Invalid with the `field` that breaks its rule (the edge's decoder found that already; in process
    nobody did), ContextMismatch with the `field` that names somebody else.
    """
    checked = validated(body)
    if isinstance(checked, IdentityFields):
        check_identity(context, checked)
    return checked


def validated(body: B, within: str = "") -> B:
    """A Struct whose own values fit its annotations (not those of Structs inside it).

    Raises Invalid; `within` is the field in which `body` stands.
    """
    told = {name: value for name, value in msgspec.structs.asdict(body).items() if value is not UNSET}
    try:
        return msgspec.convert(told, type(body))
    except msgspec.ValidationError as error:
        refusal = invalid_body(error)
        refusal.field = ".".join(name for name in (within, refusal.field) if name)
        raise refusal from None


def invalid_body(error: msgspec.ValidationError) -> Invalid:
    """The same complaint as our own error: its sentence, and the field that msgspec names by path."""
    sentence, _, place = str(error).partition(" - at `")
    # "`$.a.b`", or "`key` in `$.a.b`" for what is wrong with a name in an object.
    path = place.rpartition("$")[2]
    return Invalid(sentence, field=path.strip("`").lstrip(".") or None)


_CHECKS: Final = {
    "tenant_id": check_tenant_id,
    "env": check_env,
    "user_id": check_id,
    "surface_id": normalise_surface,
    "app_id": check_id,
    "project_id": check_id,
}


def check_identity(context: RequestContext, body: IdentityFields) -> None:
    """Raises ContextMismatch with the `field` that names somebody else, Invalid for what can name nobody."""
    if _names_nobody(body):
        return
    for name in IdentityFields.__struct_fields__:
        claimed = getattr(body, name)
        if claimed is None:
            continue
        check = _CHECKS.get(name)
        if (claimed if check is None else check(claimed, name)) != getattr(context, name):
            raise ContextMismatch(f"the body names another {name} than the request's", field=name)


def _names_nobody(body: IdentityFields) -> bool:
    return (
        body.tenant_id is body.mode is body.env is body.user_id is None
        and body.surface_id is body.app_id is body.project_id is None
    )

"""The error taxonomy: one class for each thing that a caller can do next.

Owns the names (`code`), their HTTP statuses and the fields that a problem document shows. Leaves the
wording of replies to `api/reply.py` and the translation of SDK errors to the drivers.

    EnginesError
    ├── Invalid                 400  correct the named field
    │   └── TenantRequired      400  name one of your tenants
    ├── Unauthenticated         401  present a valid credential
    ├── Forbidden               403  ask for a role that may do this
    │   ├── ContextMismatch     403  you named an identity that is not yours
    │   ├── ForbiddenBackendClass  403  route the kind to a class that the mode allows
    │   └── GateDenied          403  a safety gate said no
    ├── NotFound                404  there is no such record for you
    ├── MethodNotAllowed        405
    ├── RequestTimeout          408  send the body faster
    ├── Conflict                409  read again and decide
    │   ├── PreconditionFailed  412  the same, under If-Match or If-None-Match; its code is `Conflict`
    │   └── IdempotencyKeyReused  409  choose another key for another request
    ├── Gone                    410  start from what is still kept
    ├── TooLarge                413  send less
    ├── UnsupportedMediaType    415
    ├── PreconditionRequired    428  say what you expect to replace
    ├── Throttled               429  wait `retry_after_s` and repeat
    ├── HeadersTooLarge         431
    ├── Corrupt                 500  stored bytes are not what was written: call the operator
    ├── Reserved                501  the shape exists, the capability does not
    ├── MissingRoute            503  an operator adds the route that `detail` names
    ├── Unavailable             503  nothing was applied; repeat
    ├── OutcomeUnknown          503  it may have been applied; read before repeating
    └── BackendRefused          503  the operator mends a credential, a permission or a table
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar


class EnginesError(Exception):
    """Base of every error that Engines raises on purpose.

    `detail` is one sentence for the caller; it never holds a secret or a stored body. The keyword fields
    are shown in the problem document where they apply. `__cause__` is for the operator's log alone.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "EnginesError"
    # Set by a client, from the reply: the name under which the operator finds the cause.
    request_id: str | None = None
    # Set where an evaluation could not be recorded: what to take it for, which is a block.
    decision: str | None = None

    def __init__(
        self,
        detail: str,
        *,
        field: str | None = None,
        resource_kind: str | None = None,
        scope: Mapping[str, str] | None = None,
        gate: str | None = None,
        reason_code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.resource_kind = resource_kind
        self.scope = scope
        self.gate = gate
        self.reason_code = reason_code
        self.retry_after_s = retry_after_s

    def __init_subclass__(cls) -> None:
        if "code" not in cls.__dict__:
            cls.code = cls.__name__


class Invalid(EnginesError):
    """The request breaks a rule; `field` names where. Nothing was written."""

    status = 400


class TenantRequired(Invalid):
    """The user belongs to several tenants and named none."""


class Unauthenticated(EnginesError):
    """No credential, or one that does not verify. The reason is in the operator's log only."""

    status = 401


class Forbidden(EnginesError):
    """The principal is known and may not do this."""

    status = 403


class ContextMismatch(Forbidden):
    """The request names an identity that is not the caller's; audited by the edge."""


class ForbiddenBackendClass(Forbidden):
    """A route leads to a backend class that the tenant's mode does not allow."""


class GateDenied(Forbidden):
    """A safety gate refused the action; `gate` and `reason_code` say which and why."""


class NotFound(EnginesError):
    """No such record, or not the caller's: the two are told apart nowhere."""

    status = 404


class MethodNotAllowed(EnginesError):
    """The path exists, the method does not; `allowed` are those that do."""

    status = 405

    def __init__(self, detail: str, *, allowed: Sequence[str] = ()) -> None:
        super().__init__(detail)
        self.allowed = tuple(allowed)


class RequestTimeout(EnginesError):
    """The request's body stalled."""

    status = 408


class Conflict(EnginesError):
    """A condition did not hold; nothing of the write was applied.

    `keys` names at least one true culprit; core is right when it names only one.
    """

    status = 409

    def __init__(
        self,
        detail: str,
        *,
        keys: Sequence[str] = (),
        field: str | None = None,
        reason_code: str | None = None,
    ) -> None:
        super().__init__(detail, field=field, reason_code=reason_code)
        self.keys = tuple(keys)


class PreconditionFailed(Conflict):
    """`If-Match` or `If-None-Match` did not hold. On the wire a `Conflict`, told apart by its status."""

    status = 412
    code = Conflict.code


class IdempotencyKeyReused(Conflict):
    """The key was used before with another request."""


class Gone(EnginesError):
    """The cursor is below what is kept."""

    status = 410


class TooLarge(EnginesError):
    """A body, batch, value or key is past its limit; `detail` says which limit. Nothing was written."""

    status = 413


class UnsupportedMediaType(EnginesError):
    """The body is not `application/json`."""

    status = 415


class PreconditionRequired(EnginesError):
    """This record is replaced only under `If-Match` or `If-None-Match: *`."""

    status = 428


class Throttled(EnginesError):
    """A limit on rate or backlog was met; nothing was applied."""

    status = 429


class HeadersTooLarge(EnginesError):
    """The request's header fields exceed their limit."""

    status = 431


class Corrupt(EnginesError):
    """Stored bytes do not decode to what was written. Never caused by a request."""

    status = 500


class Reserved(EnginesError):
    """The kind is reserved: its shape exists and nothing depends on it."""

    status = 501


class MissingRoute(EnginesError):
    """No route for this kind and scope. Names where it looked and the command that adds one."""

    status = 503


class Unavailable(EnginesError):
    """A backend could not be asked, or said that it rolled back. Nothing was applied."""

    status = 503


class OutcomeUnknown(EnginesError):
    """The reply was lost: the write may have been applied. Read before repeating."""

    status = 503


class BackendRefused(EnginesError):
    """The backend refused us: credential, permission, missing table. An operator's work, never the user's."""

    status = 503

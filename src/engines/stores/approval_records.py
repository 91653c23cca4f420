"""Approvals as they are given, stored and shown, and what one change of one consists of.

Owns the types, the keys and the ops. A request, `a!{approval_id}`, is for one action on one subject by one
user. What they asked for last stands at `b!{digest}`, where a use finds it, and changes in the same write.
Leaves who may change what to `stores/approvals.py`, uses to `stores/firearm_uses.py`.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from engines import catalogue
from engines.clock import timestamp
from engines.codec import Codec
from engines.core.idempotency import KEPT_S
from engines.core.keys import join
from engines.core.records import Draft
from engines.ports.documents import ABSENT, Absent, Doc, Match, Op, Put
from engines.scope import RequestContext
from engines.stores.announcements import Announcements
from engines.stores.definition_shapes import Action, LongText
from engines.stores.firearm_rules import Approval as ApprovalFact
from engines.stores.scoped import IdentityFields, Stamped, stamp, with_etag

# What stands here of a tenant and env lies in one partition, so that a use that needs several is one write.
ANCHOR: Final = "approvals"
TTL_S_DEFAULT: Final = 3_600
TTL_S_MAX: Final = 7 * 24 * 3_600
# After a request ends; the spine keeps what happened.
RETENTION_S: Final = 90 * 24 * 3_600
SUBJECT_CHARS_MAX: Final = 500
# How long a use is the same one when it is asked for again. Its id comes from an Idempotency-Key, and where
# the key's marker is gone the same key is another request. The marker is written after the use, by any
# process's clock: a minute less is always before it goes.
OWN_USE_S: Final = KEPT_S - 60

Status = Literal["pending", "granted", "refused", "used", "expired"]
Subject = Annotated[str, Meta(min_length=1, max_length=SUBJECT_CHARS_MAX)]


class ApprovalInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a request. `class_id` may be left out; `context` is whatever helps whoever answers."""

    action: Action
    subject: Subject
    reason: LongText
    class_id: str | None = None
    context: dict[str, Any] = msgspec.field(default_factory=dict)
    ttl_seconds: Annotated[int, Meta(ge=1, le=TTL_S_MAX)] = TTL_S_DEFAULT


class AnswerInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of an answer."""

    answer: Literal["yes", "no"]
    note: LongText = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a person answered, and when."""

    answer: Literal["yes", "no"]
    answered_by: str
    answered_at: str
    note: str = ""


class Approval(Stamped, frozen=True, kw_only=True, omit_defaults=True):
    """A request as it is shown. The identity is that of whoever changed it last.

    `status`: `pending` until it is answered, then `granted` or `refused`; `used` once its one use happened;
    `expired` where it was still pending or granted at `expires_at`. `use_id`: the use that consumed it.
    `key_made_by`: who else made the key with which it was asked, if a person's; they asked for it too.
    """

    approval_id: str
    action: str
    class_id: str
    subject: str
    reason: str
    context: dict[str, Any]
    requested_by: str
    key_made_by: tuple[str, ...] = ()
    status: Status
    version: int
    created_at: str
    updated_at: str
    expires_at: str
    answer: Answer | None = None
    use_id: str | None = None


class ApprovalFilter(msgspec.Struct, frozen=True):
    """Which requests to list; None leaves a field open."""

    status: Status | None = None
    requested_by: str | None = None


class Asked(msgspec.Struct, frozen=True, tag_field="schema", tag="asked/1", omit_defaults=True):
    """The request that a user made last for one action on one subject, as far as a use asks."""

    approval_id: str
    class_id: str
    status: Status
    expires_at_s: float
    use_id: str | None = None
    used_at_s: float | None = None

    def is_spent_by(self, use_id: str | None, at_s: float) -> bool:
        return self.status == "used" and is_own_use(self.use_id, self.used_at_s, use_id, at_s)

    def fact(self, class_id: str, use_id: str | None, at_s: float) -> ApprovalFact:
        """What it is worth for that class; to the use that consumed it, it is granted while that can be asked
        for again."""
        if self.class_id != class_id:
            return "none"
        if self.status == "used":
            return "granted" if self.is_spent_by(use_id, at_s) else "none"
        if self.status == "refused":
            return "refused"
        if at_s >= self.expires_at_s:
            return "none"
        return "granted" if self.status == "granted" else "pending"


class StoredApproval(msgspec.Struct, frozen=True, tag_field="schema", tag="approval/1"):
    record: Approval
    expires_at_s: float
    used_at_s: float | None = None


STORED: Final = Codec(StoredApproval)
ASKED: Final = Codec(Asked)
EVERYTHING: Final = ApprovalFilter()


def shown(doc: Doc, now: float) -> Approval:
    """The request that stands in a document, as it is worth something at `now`."""
    return with_etag(at(STORED.decode(doc.body), now), doc.version)


def at(stored: StoredApproval, now: float) -> Approval:
    record = stored.record
    if record.status in ("pending", "granted") and now >= stored.expires_at_s:
        return msgspec.structs.replace(record, status="expired")
    return record


def following(context: RequestContext, record: Approval, now: float, **changes: Any) -> Approval:
    """The next version, by whoever changes it."""
    return msgspec.structs.replace(
        record, **stamp(context), version=record.version + 1, updated_at=timestamp(now), **changes
    )


def change_draft(
    announcements: Announcements,
    context: RequestContext,
    stored: StoredApproval,
    told: str,
    asked: Doc | None,
) -> Draft:
    """What a change of a request writes. `asked`: what stands where a use looks."""
    record = stored.record
    key = approval_key(record.approval_id)
    payload = {
        "action": told,
        "resource_kind": catalogue.FIREARMS,
        "record": "approval",
        "id": record.approval_id,
        "version": record.version,
        "approves": record.action,
        "class_id": record.class_id,
        "subject": record.subject,
        "requested_by": record.requested_by,
        "status": record.status,
    }
    if record.answer is not None:
        payload["answer"] = record.answer.answer
        payload["answered_by"] = record.answer.answered_by
    lapses_at = int(stored.expires_at_s) + RETENTION_S
    also: list[Op] = [announcements.message(context, key, record.version, "audit", payload)]
    if record.version == 1 or (
        asked is not None and ASKED.decode(asked.body).approval_id == record.approval_id
    ):
        body = Asked(
            record.approval_id,
            record.class_id,
            record.status,
            stored.expires_at_s,
            use_id=record.use_id,
            used_at_s=stored.used_at_s,
        )
        also.append(Put(asked_key(record), ASKED.encode(body), when(asked), expires_at=lapses_at))
    return Draft(STORED.encode(stored), lapses_at, also)


def when(doc: Doc | None) -> Absent | Match:
    """That it is still as it was read."""
    return ABSENT if doc is None else Match(doc.version)


def is_own_use(recorded: str | None, at_s: float | None, use_id: str | None, now_s: float) -> bool:
    """Whether a use is the one that was recorded, asked for again. One of unknown time is nobody's."""
    return use_id is not None and recorded == use_id and at_s is not None and now_s < at_s + OWN_USE_S


def approval_key(approval_id: str) -> str:
    return join("a", approval_id)


def asked_key(record: Approval) -> str:
    return asked_key_of(record.requested_by, record.action, record.subject)


def asked_key_of(user_id: str, action: str, subject: str) -> str:
    return join("b", digest(user_id, action, subject))


def digest(*parts: str) -> str:
    """In a key; the parts may hold any character, and be long."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]

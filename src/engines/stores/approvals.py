"""Approvals: what a person is asked before something dangerous happens, once, and what they answered.

Owns who may ask, who may answer, and that an answer is given once. Leaves the records to
`stores/approval_records.py`, their use to `stores/firearm_uses.py`, which classes ask for them to
`stores/firearm_rules.py`.

Each change of a request is an `audit` event, by the outbox of the same write. A `safety` event is a
decision of the gates, and nothing else is; a request and its answer are facts on which one may rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from engines import catalogue
from engines.clock import Clock, timestamp
from engines.codec import check_json_value, encode_json
from engines.core import records
from engines.core.cursor import list_scope
from engines.core.documents import Documents
from engines.core.idempotency import Request
from engines.core.listing import START, Listed, Window, list_records
from engines.core.place import Places
from engines.core.records import ANYTHING, Condition, Draft
from engines.errors import Conflict, EnginesError, Forbidden, Invalid, NotFound, TooLarge
from engines.ids import Ids
from engines.ports.documents import Doc
from engines.scope import RequestContext, check_id
from engines.stores.announcements import Announcements
from engines.stores.approval_records import (
    ANCHOR,
    ASKED,
    EVERYTHING,
    STORED,
    Answer,
    AnswerInput,
    Approval,
    ApprovalFilter,
    ApprovalInput,
    Status,
    StoredApproval,
    approval_key,
    asked_key,
    at,
    change_draft,
    following,
    shown,
)
from engines.stores.scoped import AGENT_ROLE, Change, check_body, stamp

CONTEXT_BYTES_MAX: Final = 16 * 1024

# One attempt to change what stands, from the documents that were read: the draft, and the document it
# replaces.
Attempt = Callable[[dict[str, Doc]], tuple[Draft, Doc | None]]


class Approvals:
    """The approvals of a tenant and env. Any number of concurrent calls on one event loop.

    Every method raises Invalid, Forbidden (the role does not grant it), ContextMismatch, MissingRoute,
    ForbiddenBackendClass, Throttled, Unavailable, BackendRefused, Corrupt; changes also OutcomeUnknown.
    """

    def __init__(
        self,
        places: Places,
        announcements: Announcements,
        class_of_action: Callable[[RequestContext, str], Awaitable[str | None]],
        ids: Ids,
        clock: Clock,
    ) -> None:
        """`class_of_action`: the riskiest class of an action, None where nothing calls it dangerous."""
        self._places = places
        self._announcements = announcements
        self._class_of_action = class_of_action
        self._ids = ids
        self._clock = clock

    async def request(
        self, context: RequestContext, approval: ApprovalInput, *, request: Request | None = None
    ) -> Change[Approval]:
        """Ask whether an action may happen once.

        Raises Conflict where the same user waits for an answer to the same, or has a yes that is not used,
        for the class that it takes now; TooLarge, IdempotencyKeyReused.
        """
        context.require_data("approvals.write")
        approval = check_body(context, approval)
        check_json_value(approval.context, "context")
        if len(encode_json(approval.context).encode()) > CONTEXT_BYTES_MAX:
            raise TooLarge(f"what explains a request has at most {CONTEXT_BYTES_MAX} bytes", field="context")
        class_id = await self._class_id(context, approval)
        record = self._requested(context, approval, class_id)
        stored = StoredApproval(record, self._clock.now() + approval.ttl_seconds)
        asked = asked_key(record)

        def ask(found: dict[str, Doc]) -> tuple[Draft, Doc | None]:
            self._refuse_second(found.get(asked), class_id)
            draft = change_draft(self._announcements, context, stored, "requested", found.get(asked))
            return draft, None

        return await self._change(context, record.approval_id, asked, ask, request)

    async def get(self, context: RequestContext, approval_id: str) -> Approval:
        """One request, whoever asked. Raises NotFound."""
        context.require_data("approvals.read")
        return await self._standing(context, approval_key(check_id(approval_id, "id")))

    async def list(
        self, context: RequestContext, where: ApprovalFilter = EVERYTHING, *, window: Window = START
    ) -> Listed[Approval]:
        """Everybody's requests by creation. A filtered page may be short and have more behind it."""
        context.require_data("approvals.read")
        now = self._clock.now()

        def read(doc: Doc) -> Approval | None:
            record = shown(doc, now)
            is_theirs = where.requested_by in (None, record.requested_by)
            return record if is_theirs and where.status in (None, record.status) else None

        place = await self._places.place(catalogue.FIREARMS, context)
        return await list_records(
            place.documents,
            await place.partition(ANCHOR),
            ("a",),
            read,
            cursors=list_scope(catalogue.FIREARMS, context.tenant_id, context.env, ANCHOR),
            window=window,
            selective=where != EVERYTHING,
        )

    async def answer(
        self,
        context: RequestContext,
        approval_id: str,
        answer: AnswerInput,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Change[Approval]:
        """Answer a request that waits: a person does, and never whoever asked or made the key that asked.

        Raises NotFound, Conflict (answered already, or expired), PreconditionFailed, IdempotencyKeyReused.
        """
        context.require_data("approvals.answer")
        # An admin can make a key for another user; nobody can sign in as one.
        if AGENT_ROLE in context.roles or context.key_id is not None:
            raise Forbidden("an approval is answered by a person, with a token of their own")
        answer = check_body(context, answer)
        key = approval_key(check_id(approval_id, "id"))
        asked = asked_key(await self._standing(context, key))

        def answered(found: dict[str, Doc]) -> tuple[Draft, Doc | None]:
            doc = found.get(key)
            condition.check(doc)
            if doc is None:
                raise _no_such_approval()
            now = self._clock.now()
            stored = STORED.decode(doc.body)
            record = _answered(context, at(stored, now), answer, now)
            changed = StoredApproval(record, stored.expires_at_s)
            draft = change_draft(self._announcements, context, changed, "answered", found.get(asked))
            return draft, doc

        return await self._change(context, approval_id, asked, answered, request)

    # --- parts ---

    async def _standing(self, context: RequestContext, key: str) -> Approval:
        place = await self._places.place(catalogue.FIREARMS, context)
        doc = await place.documents.get(await place.partition(ANCHOR), key)
        if doc is None:
            raise _no_such_approval()
        return shown(doc, self._clock.now())

    async def _change(
        self,
        context: RequestContext,
        approval_id: str,
        asked: str,
        attempt: Attempt,
        request: Request | None,
    ) -> Change[Approval]:
        key = approval_key(approval_id)
        async with self._places.changing(catalogue.FIREARMS, context) as place:
            partition = await place.partition(ANCHOR)
            async with self._announcements.announcing(context, place, partition):
                written = await _write(place.documents, partition, key, asked, attempt, request)
        record = shown(written.doc, self._clock.now())
        return Change(record, written.created, written.replayed)

    async def _class_id(self, context: RequestContext, approval: ApprovalInput) -> str:
        class_id = await self._class_of_action(context, approval.action)
        if class_id is None:
            raise Invalid("nothing calls this action dangerous", field="action")
        if approval.class_id not in (None, class_id):
            raise Invalid(f"this action is a use of {class_id!r}", field="class_id")
        return class_id

    def _requested(self, context: RequestContext, approval: ApprovalInput, class_id: str) -> Approval:
        now = self._clock.now()
        return Approval(
            **stamp(context),
            approval_id=self._ids.record_id(),
            action=approval.action,
            class_id=class_id,
            subject=approval.subject,
            reason=approval.reason,
            context=approval.context,
            requested_by=context.user_id,
            # An agent asks as itself, and the person who set it up is who should look at what it wants.
            key_made_by=() if AGENT_ROLE in context.roles else context.key_made_by,
            status="pending",
            version=1,
            created_at=timestamp(now),
            updated_at=timestamp(now),
            expires_at=timestamp(now + approval.ttl_seconds),
        )

    def _refuse_second(self, doc: Doc | None, class_id: str) -> None:
        """What a use would find worth nothing, as it was for another class, does not stand in the way."""
        former = None if doc is None else ASKED.decode(doc.body)
        if former is None:
            return
        if former.fact(class_id, None, self._clock.now()) in ("pending", "granted"):
            raise Conflict(f"this was asked for already, and is {former.status}: {former.approval_id}")


def _answered(context: RequestContext, record: Approval, answer: AnswerInput, now: float) -> Approval:
    if context.user_id in (record.requested_by, *record.key_made_by):
        raise Forbidden("nobody answers a request of their own, or one that was asked with a key they made")
    if record.status != "pending":
        raise Conflict(f"this request is {record.status}")
    status: Status = "granted" if answer.answer == "yes" else "refused"
    given = Answer(
        answer=answer.answer, answered_by=context.user_id, answered_at=timestamp(now), note=answer.note
    )
    return following(context, record, now, status=status, answer=given)


async def _write(
    documents: Documents,
    partition: str,
    key: str,
    asked: str,
    attempt: Attempt,
    request: Request | None,
) -> records.Written:
    """Like `records.replace`, over the request and what stands where a use looks."""
    lost: Conflict | None = None
    for _ in range(records.RACES_MAX):
        keys = [key, asked] if request is None else [key, asked, request.key]
        found = await documents.get_many(partition, keys)
        if request is not None and request.key in found:
            return records.replayed(key, found[request.key], request)
        try:
            draft, replaced = attempt(found)
        except EnginesError as refusal:
            return await records.replayed_or_raise(refusal, documents, partition, key, request)
        try:
            return await records.write(
                documents, partition, key, draft, replaced=replaced, created=replaced is None, request=request
            )
        except Conflict as conflict:
            lost = conflict
    assert lost is not None
    raise lost


def _no_such_approval() -> NotFound:
    return NotFound("there is no such request for approval")

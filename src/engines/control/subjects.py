"""Data subjects: holding what a user left in a tenant, and the durable state of erasing it.

Owns who may hold and who may erase, that a hold and an erasure meet in one record, so that neither passes the
other unseen, and when an erasure may begin and may be called complete. Leaves the work to
`routing/erasures.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from engines.clock import Clock, epoch_ms, timestamp
from engines.codec import decode_json
from engines.control.access import Keys
from engines.control.moves import moves_of
from engines.control.records import DataSubject, Erasure, Hold, Membership
from engines.control.service import Service, actor, require_in_tenant
from engines.control.store import PARTITION, Stored
from engines.control.tables import DATA_SUBJECTS, MEMBERSHIPS
from engines.control.tenants import Members
from engines.core.idempotency import Request
from engines.core.keys import within
from engines.core.records import ANYTHING, Condition
from engines.errors import Conflict, NotFound
from engines.scope import RequestContext

ERASE: Final = "users.erase"
HOLD: Final = "users.hold"
LEGAL_HOLD: Final = "legal_hold"
# How long a request that was let in before the membership ended may go on to write: other processes judge
# by views of at most three seconds, a call of a backend ends within ten, and a change is three of them at the
# most, one after the other, where nobody else writes to the same record.
SETTLE_S: Final = 33.0
# Where a move has left nothing behind.
_NOTHING_LEFT: Final = frozenset({"retired", "cancelled"})

_Build = Callable[[DataSubject | None], Awaitable[DataSubject]]


class DataSubjects:
    """The users of a tenant, as those whose data it keeps."""

    def __init__(self, service: Service, members: Members, keys: Keys, clock: Clock) -> None:
        self._service = service
        self._store = service.store
        self._members = members
        self._keys = keys
        self._clock = clock

    async def get(self, context: RequestContext, user_id: str) -> Stored[DataSubject]:
        """Raises Forbidden, NotFound (neither held nor erased)."""
        require_in_tenant(context, HOLD)
        stored = await self._store.read(DATA_SUBJECTS, context.target_tenant_id, user_id)
        if stored is None:
            raise NotFound("nobody asked to hold or to erase this user's data")
        return stored

    async def hold(
        self,
        context: RequestContext,
        user_id: str,
        reason: str,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Stored[DataSubject]:
        """Keep everything until the hold is lifted; an erasure that is under way stops.

        Raises Forbidden, NotFound (never a member of the tenant), PreconditionFailed, MissingRoute.
        """
        require_in_tenant(context, HOLD)
        await self._service.admit(context)
        tenant_id = context.target_tenant_id
        await self._last_membership(tenant_id, user_id)

        async def build(existing: DataSubject | None) -> DataSubject:
            subject = existing or DataSubject(tenant_id=tenant_id, user_id=user_id)
            held_at = subject.hold.held_at if subject.hold is not None else self._now()
            return msgspec.structs.replace(subject, hold=Hold(reason=reason, held_at=held_at))

        return await self._store.put(
            DATA_SUBJECTS,
            [tenant_id, user_id],
            build,
            actor=actor(context, tenant_id),
            condition=condition,
            request=request,
        )

    async def lift(
        self,
        context: RequestContext,
        user_id: str,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Stored[DataSubject]:
        """End the hold. Raises Forbidden, NotFound (nothing is held), PreconditionFailed, MissingRoute."""
        require_in_tenant(context, HOLD)
        await self._service.admit(context)
        tenant_id = context.target_tenant_id

        async def build(existing: DataSubject | None) -> DataSubject:
            if existing is None or existing.hold is None:
                raise NotFound("there is no hold")
            return msgspec.structs.replace(existing, hold=None)

        return await self._store.put(
            DATA_SUBJECTS,
            [tenant_id, user_id],
            build,
            actor=actor(context, tenant_id),
            condition=condition,
            request=request,
        )

    # --- an erasure's life ---

    async def begin(self, context: RequestContext, user_id: str) -> Stored[DataSubject]:
        """End the membership and its keys and begin to erase, or go on with what was begun.

        Raises Forbidden (also for a role that may more than the caller), Conflict (held; the caller's own
        data; a move under way or with an old copy), NotFound (never a member of the tenant), MissingRoute.
        """
        context.require_data(ERASE)
        if user_id == context.user_id:
            raise Conflict("your own data is erased by somebody else", field="user_id")
        await self._service.admit(context)
        tenant_id = context.tenant_id
        found = await self._store.read(DATA_SUBJECTS, tenant_id, user_id)
        self._check_not_held(found)
        if not (await self._last_membership(tenant_id, user_id)).deleted:
            with contextlib.suppress(NotFound):  # Another call ended it just now.
                await self._members.revoke(context, tenant_id, user_id)
        await self._revoke_keys(context, user_id)
        ended = await self._last_membership(tenant_id, user_id)
        final_from_s = _final_from_s(ended)
        if found is not None and _goes_on(found.record.erasure, final_from_s):
            await self._moves(tenant_id)
            return found

        async def build(existing: DataSubject | None) -> DataSubject:
            subject = existing or DataSubject(tenant_id=tenant_id, user_id=user_id)
            self._check_record(subject)
            moves = await self._moves(tenant_id)
            erasure = subject.erasure
            if erasure is None or erasure.state == "erased":
                erasure = Erasure(began_at=self._now(), pass_began_s=self._clock.now(), moves=moves)
            return msgspec.structs.replace(
                subject, erasure=msgspec.structs.replace(erasure, final_from_s=final_from_s)
            )

        return await self._put(context, user_id, build)

    async def waiting(self, context: RequestContext, user_id: str) -> int:
        """How many changes by the user the tenant's spine is still to be told of. Some reads."""
        above, below = within("o", context.tenant_id)
        count = 0
        resume: str | None = above
        while resume is not None:
            page = await self._store.documents.scan(PARTITION, above=resume, below=below)
            count += sum(_is_of(doc.body, user_id) for doc in page.docs)
            resume = page.resume
        return count

    async def check(self, context: RequestContext, user_id: str) -> None:
        """Whether the erasure may go on. One read. Raises Conflict (held)."""
        self._check_not_held(await self._store.read(DATA_SUBJECTS, context.tenant_id, user_id))

    async def keep(self, context: RequestContext, user_id: str, erasure: Erasure) -> Stored[DataSubject]:
        """Write down how far it is; what another call completed stays so. Raises Conflict (held)."""

        async def build(existing: DataSubject | None) -> DataSubject:
            if existing is None or existing.erasure is None:
                raise NotFound("nothing is being erased")
            self._check_record(existing)
            if not _is_same(existing.erasure, erasure) or existing.erasure.state == "erased":
                return existing
            return msgspec.structs.replace(existing, erasure=erasure)

        return await self._put(context, user_id, build)

    def next_pass(self, erasure: Erasure, moves: int) -> Erasure:
        """The pass after one that found something, or that proves nothing yet."""
        return msgspec.structs.replace(
            erasure,
            passes=erasure.passes + 1,
            pass_began_s=self._clock.now(),
            moves=moves,
            step=None,
            after=None,
            found=0,
        )

    async def complete(
        self, context: RequestContext, user_id: str, erasure: Erasure
    ) -> Stored[DataSubject] | None:
        """Call it complete, if the pass that just ended proves that; None where another one has to.

        That the user was not let in again, and no kind was moved meanwhile, holds when this is written.
        """
        if erasure.found or erasure.pass_began_s < erasure.final_from_s:
            return None
        done = msgspec.structs.replace(erasure, state="erased", erased_at=self._now(), step=None, after=None)
        is_proven = False

        async def build(existing: DataSubject | None) -> DataSubject:
            nonlocal is_proven
            if existing is None or existing.erasure is None:
                raise NotFound("nothing is being erased")
            self._check_record(existing)
            last = await self._last_membership(context.tenant_id, user_id)
            is_proven = (
                _final_from_s(last) == erasure.final_from_s
                and await self._moves(context.tenant_id) == erasure.moves
            )
            return msgspec.structs.replace(existing, erasure=done) if is_proven else existing

        stored = await self._put(context, user_id, build)
        return stored if is_proven else None

    async def moves(self, context: RequestContext) -> int:
        """How many moves the tenant ever had. Raises Conflict where one is under way or left a copy."""
        return await self._moves(context.tenant_id)

    # --- what they share ---

    async def _put(self, context: RequestContext, user_id: str, build: _Build) -> Stored[DataSubject]:
        who = actor(context, context.tenant_id)
        return await self._store.put(DATA_SUBJECTS, [context.tenant_id, user_id], build, actor=who)

    async def _last_membership(self, tenant_id: str, user_id: str) -> Stored[Membership]:
        """What was last said of the membership, that it ended included. Raises NotFound."""
        last = await self._store.versions(MEMBERSHIPS, tenant_id, user_id, limit=1, descending=True)
        if not last.items:
            raise NotFound("nobody with this id ever belonged to the tenant", field="user_id")
        return last.items[0]

    async def _revoke_keys(self, context: RequestContext, user_id: str) -> None:
        """Those that would open again if the user came back."""
        after: str | None = None
        while True:
            page = await self._keys.list(context, after=after)
            for key_id in [key.record.key_id for key in page.items if key.record.user_id == user_id]:
                with contextlib.suppress(NotFound):
                    await self._keys.revoke(context, key_id)
            if page.after is None:
                return
            after = page.after

    async def _moves(self, tenant_id: str) -> int:
        moves = await moves_of(self._store, tenant_id)
        standing = [move for move in moves if move.phase not in _NOTHING_LEFT]
        if standing:
            named = ", ".join(f"{move.resource_kind} ({move.move_id}, {move.phase})" for move in standing[:5])
            raise Conflict(
                f"copies of the user's data would stay with these moves: {named}. Let them end, and retire"
                " them: engines moves retire MOVE_ID",
                reason_code="not_retired",
            )
        return len(moves)

    def _check_not_held(self, stored: Stored[DataSubject] | None) -> None:
        if stored is not None:
            self._check_record(stored.record)

    def _check_record(self, subject: DataSubject) -> None:
        if subject.hold is not None:
            raise Conflict(
                f"the user's data is held since {subject.hold.held_at}: {subject.hold.reason}",
                field="user_id",
                reason_code=LEGAL_HOLD,
            )

    def _now(self) -> str:
        return timestamp(self._clock.now())


def _final_from_s(ended: Stored[Membership]) -> float:
    return epoch_ms(ended.updated_at) / 1_000 + SETTLE_S


def _goes_on(erasure: Erasure | None, final_from_s: float) -> bool:
    return erasure is not None and erasure.state == "running" and erasure.final_from_s == final_from_s


def _is_same(standing: Erasure, erasure: Erasure) -> bool:
    """Whether what stands is the erasure that a call works on, and no later one."""
    return (standing.began_at, standing.final_from_s) == (erasure.began_at, erasure.final_from_s)


def _is_of(message: str, user_id: str) -> bool:
    return user_id in message and decode_json(message)["actor"]["user_id"] == user_id

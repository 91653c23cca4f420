"""Strategy locks in force: who decides about a draft, and which actions an approved lock allows.

Owns the decision and what follows from it. Leaves contents, versions, history and the `strategy_lock` event
to `stores/definitions.py`: a decision is the next version of the lock, which says the same.

Nobody decides about a lock of their own. Own is every lock whose contents one had a hand in since the last
decision; a copy or a restored version is its copier's and its authors'. What is written with a key is its
maker's too. Rejecting is held to the same rule, so that nobody can clear away the trace of what they proposed
by deciding it themselves. Where somebody who had a hand in a draft was erased, it no longer says whose it is,
and they may have come back: nobody decides about it. And nobody decides about what they have not seen: a
decision says about which version it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from engines.clock import Clock, timestamp
from engines.core.idempotency import Request
from engines.core.records import Condition
from engines.errors import Conflict, Forbidden, Invalid
from engines.scope import RequestContext
from engines.stores.definition_cache import DefinitionCache, shaped
from engines.stores.definition_records import Definition
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.definition_shapes import LongText, Name, StrategyLock
from engines.stores.definitions import Definitions
from engines.stores.erasing import ERASED
from engines.stores.event_records import instant_ms
from engines.stores.scoped import AGENT_ROLE, Change, IdentityFields, check_body, validated

REVIEWERS_MAX: Final = 20
DECIDE: Final = "strategy_locks.decide"
_SCHEMA: Final = SCHEMA_NAMED["strategy-locks"]

LockStatus = Literal["draft", "approved", "rejected", "expired"]
Verdict = Literal["pass", "fail"]
ReviewFact = Literal["none", "approved", "rejected"]


class LockReview(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The verdict of a "three-wise" review, as whoever decides reports it. `reviewers` are all different."""

    verdict: Verdict
    reviewers: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=REVIEWERS_MAX)]
    note: LongText = ""


class LockDecisionInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of an approval or a rejection."""

    review: LockReview | None = None
    note: LongText = ""


class LockFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One strategy lock whose scope covers the caller. Times in epoch seconds; None: no such end.

    `actions` are names or patterns with a trailing `*`. `review`: the verdict of the three-wise review.
    """

    lock_id: str
    version: int
    status: LockStatus
    actions: tuple[str, ...]
    valid_from_s: float | None = None
    valid_until_s: float | None = None
    review: ReviewFact = "none"

    def is_in_force(self, at_s: float) -> bool:
        """Approved, and within its window: from its first instant on, up to its last and not at it."""
        return (
            self.status == "approved"
            and (self.valid_from_s is None or self.valid_from_s <= at_s)
            and (self.valid_until_s is None or at_s < self.valid_until_s)
        )

    def at(self, now: float) -> LockFacts:
        """Approved until its time has passed; from then on expired. What is kept of it does not age."""
        over = self.status == "approved" and self.valid_until_s is not None and self.valid_until_s <= now
        return msgspec.structs.replace(self, status="expired") if over else self

    def allows(self, action: str) -> bool:
        return any(covers(pattern, action) for pattern in self.actions)


class StrategyLocks:
    """The strategy locks of a tenant and env. On one event loop.

    Every method raises ContextMismatch, MissingRoute, ForbiddenBackendClass, Throttled, Unavailable,
    BackendRefused, Corrupt.
    """

    def __init__(self, definitions: Definitions, clock: Clock) -> None:
        self._definitions = definitions
        self._clock = clock
        self._known = DefinitionCache(definitions, _SCHEMA, _facts, clock)

    async def approve(
        self,
        context: RequestContext,
        lock_id: str,
        decision: LockDecisionInput,
        *,
        condition: Condition,
        request: Request | None = None,
    ) -> Change[Definition]:
        """From now on, and within its window, the lock's actions may happen.

        Raises PreconditionRequired (no condition), PreconditionFailed (the lock changed since it was read, or
        there is none), Forbidden (also for a lock of one's own, and for an agent), Conflict (no draft, one
        whose proposer was erased, or its time is over), Invalid (the review that it needs is missing, or
        failed), IdempotencyKeyReused, OutcomeUnknown.
        """
        decision = self._checked(context, decision, condition)
        if decision.review is not None and decision.review.verdict != "pass":
            raise Invalid("a lock whose review failed is rejected, not approved", field="review.verdict")

        def approved(former: Definition) -> Mapping[str, Any]:
            state = self._decided(context, former, "approved", decision)
            if former.json_blob.get("three_wise", False) and decision.review is None:
                raise Invalid("this lock is approved with the review that it asks for", field="review")
            until = former.json_blob.get("valid_until")
            if until is not None and instant_ms(until, "valid_until") <= self._clock.now() * 1_000:
                raise Conflict("the time of this lock is over")
            return state

        return await self._definitions.change_state(
            context, _SCHEMA, lock_id, approved, condition=condition, request=request
        )

    async def reject(
        self,
        context: RequestContext,
        lock_id: str,
        decision: LockDecisionInput,
        *,
        condition: Condition,
        request: Request | None = None,
    ) -> Change[Definition]:
        """What this draft says will not happen; new contents are a new draft. Raises what `approve` does."""
        decision = self._checked(context, decision, condition)
        return await self._definitions.change_state(
            context,
            _SCHEMA,
            lock_id,
            lambda former: self._decided(context, former, "rejected", decision),
            condition=condition,
            request=request,
        )

    async def locks_for(self, context: RequestContext) -> Sequence[LockFacts]:
        """The locks whose scope covers the caller, in any status, none read more than a second ago.

        Those of the bound surface: of the bound project, and those that are of no project and hold for all.
        """
        locks = list((await self._known.get(context)).values())
        if context.project_id is not None:
            everywhere = msgspec.structs.replace(context, project_id=None)
            locks += (await self._known.get(everywhere)).values()
        now = self._clock.now()
        return [lock.at(now) for lock in locks]

    async def in_force(self, context: RequestContext, action: str, *, at_s: float) -> LockFacts | None:
        """A lock that is approved, within its window, and allows the action; None where there is none."""
        locks = await self.locks_for(context)
        return next((lock for lock in locks if lock.is_in_force(at_s) and lock.allows(action)), None)

    async def close(self) -> None:
        """End the reads under way."""
        await self._known.close()

    def _checked(
        self, context: RequestContext, decision: LockDecisionInput, condition: Condition
    ) -> LockDecisionInput:
        context.require_data(DECIDE)
        # An admin can make a key for another user; nobody can sign in as one.
        if AGENT_ROLE in context.roles or context.key_id is not None:
            raise Forbidden("a strategy lock is decided by a person, with a token of their own")
        condition.required()
        decision = check_body(context, decision)
        if decision.review is not None:
            review = validated(decision.review, "review")
            if len(set(review.reviewers)) < len(review.reviewers):
                raise Invalid("the reviewers are different ones", field="review.reviewers")
        return decision

    def _decided(
        self, context: RequestContext, former: Definition, status: LockStatus, decision: LockDecisionInput
    ) -> dict[str, Any]:
        assert former.state is not None
        if former.state["status"] != "draft":
            raise Conflict(f"this lock is {former.state['status']}; new contents are a new draft")
        if context.user_id in former.state["proposed_by"]:
            raise Forbidden("nobody decides about a strategy lock of their own")
        if ERASED in former.state["proposed_by"]:
            raise Conflict("who proposed this draft was erased; put its contents anew to propose them")
        state = {
            "status": status,
            "proposed_by": former.state["proposed_by"],
            "decided_by": context.user_id,
            "decided_at": timestamp(self._clock.now()),
        }
        if decision.note:
            state["note"] = decision.note
        if decision.review is not None:
            state["review"] = msgspec.to_builtins(decision.review)
        return state


def covers(pattern: str, action: str) -> bool:
    """Whether a pattern names an action: exactly, or by its beginning where it ends in `*`."""
    return action.startswith(pattern[:-1]) if pattern.endswith("*") else action == pattern


def _facts(record: Definition) -> LockFacts:
    lock, state = shaped(record, StrategyLock), record.state or {}
    review = state.get("review", {}).get("verdict")
    return LockFacts(
        lock_id=record.id,
        version=record.version,
        status=state.get("status", "draft"),
        actions=lock.allowed_actions,
        valid_from_s=_instant_s(lock.valid_from),
        valid_until_s=_instant_s(lock.valid_until),
        review="none" if review is None else "approved" if review == "pass" else "rejected",
    )


def _instant_s(text: str | None) -> float | None:
    return None if text is None else instant_ms(text, "instant") / 1_000

"""Uses of dangerous classes: what one leaves, so that the next is held to it.

Owns when a user used a class last, `c!{digest}`, and the approval that a use spends; both change in one
atomic write on what was read, so that of two uses at once, in whatever processes, one learns that it came
second. Leaves whether a use may happen to `stores/firearms.py`.

A class cools down for each user of a tenant and env, whatever the subject: a caller names subjects freely.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from engines import catalogue
from engines.clock import Clock
from engines.codec import Codec
from engines.core import records
from engines.core.documents import Documents
from engines.core.keys import join
from engines.core.place import Places
from engines.errors import Conflict, TooLarge
from engines.ports.documents import OPS_MAX, Delete, Doc, Match, Op, Put
from engines.scope import RequestContext
from engines.stores.announcements import Announcements
from engines.stores.approval_records import (
    ANCHOR,
    ASKED,
    STORED,
    Asked,
    StoredApproval,
    approval_key,
    asked_key_of,
    change_draft,
    digest,
    following,
    is_own_use,
    when,
)


class LastUse(msgspec.Struct, frozen=True, tag_field="schema", tag="use/1"):
    """When a user used a class last."""

    at_s: float
    use_id: str

    def is_of(self, use_id: str | None, at_s: float) -> bool:
        return is_own_use(self.use_id, self.at_s, use_id, at_s)


class Using(msgspec.Struct, frozen=True, kw_only=True):
    """Who would do what with which, `use_id` telling one use from another; None where none is meant."""

    context: RequestContext
    action: str
    subject: str
    class_ids: Sequence[str]
    use_id: str | None = None

    @property
    def asked_key(self) -> str:
        return asked_key_of(self.context.user_id, self.action, self.subject)

    def last_key(self, class_id: str) -> str:
        return join("c", digest(self.context.user_id, class_id))


class Standing(msgspec.Struct, frozen=True):
    """What a use finds: the documents by key, what was asked for last, and the last use of each class."""

    docs: Mapping[str, Doc]
    asked: Asked | None
    last: Mapping[str, LastUse]


# Of one use: a write in which each cools down and an approval is spent, which takes three documents.
CLASSES_MAX: Final = OPS_MAX - 3
# Of classes that neither cool down nor ask for an approval nothing is read.
NOTHING_LEFT: Final = Standing({}, None, {})
_USES: Final = Codec(LastUse)


class FirearmUses:
    """The uses of a tenant and env. Nothing here asks for a permission."""

    def __init__(self, places: Places, announcements: Announcements, clock: Clock) -> None:
        self._places = places
        self._announcements = announcements
        self._clock = clock

    async def standing(self, using: Using) -> Standing:
        """What a use finds. One read. Raises TooLarge for more than `CLASSES_MAX` classes."""
        place = await self._places.place(catalogue.FIREARMS, using.context)
        return await _standing(place.documents, await place.partition(ANCHOR), using)

    async def record(
        self,
        using: Using,
        standing: Standing,
        *,
        at_s: float,
        cooldowns_s: Mapping[str, int],
        spends: bool,
    ) -> None:
        """A use happens on what `standing` found: classes cool down, and the yes is spent if it `spends` one.

        Raises Conflict where any of it is no longer as it was, OutcomeUnknown.
        """
        assert using.use_id is not None
        ops: list[Op] = [
            Put(
                using.last_key(class_id),
                _USES.encode(LastUse(at_s, using.use_id)),
                when(standing.docs.get(using.last_key(class_id))),
                expires_at=int(at_s) + seconds + 1,
            )
            for class_id, seconds in cooldowns_s.items()
        ]
        await self._write(using, standing, ops, "used" if spends else None)

    async def undo(self, using: Using) -> None:
        """Take back what this use left, if anything: nothing came of it.

        What the same id left too long ago to be this use stays: that use happened.

        Raises Conflict, OutcomeUnknown, TooLarge as `standing` does.
        """
        lost: Conflict | None = None
        for _ in range(records.RACES_MAX):
            standing, now = await self.standing(using), self._clock.now()
            ops: list[Op] = []
            for class_id, last in standing.last.items():
                if last.is_of(using.use_id, now):
                    key = using.last_key(class_id)
                    ops.append(Delete(key, Match(standing.docs[key].version)))
            spent = standing.asked is not None and standing.asked.is_spent_by(using.use_id, now)
            try:
                return await self._write(using, standing, ops, "returned" if spent else None)
            except Conflict as conflict:
                lost = conflict
        assert lost is not None
        raise lost

    async def _write(self, using: Using, standing: Standing, ops: Sequence[Op], told: str | None) -> None:
        """`told`: what becomes of the approval, if anything does."""
        if not ops and told is None:
            return
        context = using.context
        async with self._places.changing(catalogue.FIREARMS, context) as place:
            partition, documents = await place.partition(ANCHOR), place.documents
            if told is None:
                await documents.write(partition, ops)
                return
            async with self._announcements.announcing(context, place, partition):
                turned = await self._turned(using, standing, documents, partition, told)
                await documents.write(partition, [*ops, *turned])

    async def _turned(
        self, using: Using, standing: Standing, documents: Documents, partition: str, told: str
    ) -> Sequence[Op]:
        """The ops by which the approval is spent, or given back. Raises Conflict where it is gone."""
        assert standing.asked is not None
        key = approval_key(standing.asked.approval_id)
        doc = await documents.get(partition, key)
        if doc is None:
            raise Conflict("the approval is gone")
        stored = STORED.decode(doc.body)
        is_spent, now = told == "used", self._clock.now()
        record = following(
            using.context,
            stored.record,
            now,
            status="used" if is_spent else "granted",
            use_id=using.use_id if is_spent else None,
        )
        changed = StoredApproval(record, stored.expires_at_s, used_at_s=now if is_spent else None)
        draft = change_draft(
            self._announcements, using.context, changed, told, standing.docs.get(using.asked_key)
        )
        return [Put(key, draft.body, Match(doc.version), expires_at=draft.expires_at), *draft.also]


def check_classes(class_ids: Collection[str]) -> None:
    """Raises TooLarge for a use of more classes than one write takes."""
    if len(class_ids) > CLASSES_MAX:
        raise TooLarge(
            f"the action is a use of {len(class_ids)} classes, and may be of {CLASSES_MAX} where one "
            "cools down or asks for an approval: bind it to fewer"
        )


async def _standing(documents: Documents, partition: str, using: Using) -> Standing:
    check_classes(using.class_ids)
    keys = [using.asked_key, *map(using.last_key, using.class_ids)]
    docs = await documents.get_many(partition, keys)
    asked = docs.get(using.asked_key)
    return Standing(
        docs,
        None if asked is None else ASKED.decode(asked.body),
        {
            class_id: _USES.decode(docs[using.last_key(class_id)].body)
            for class_id in using.class_ids
            if using.last_key(class_id) in docs
        },
    )

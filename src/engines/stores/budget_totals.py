"""Totals of a budget: what the ledger adds up to, cheaply from its cells, or entry by entry.

Owns reading the ledger and the cells as of one position, and comparing the two. Cells change while they are
read; what a cell counted beyond the position asked for is taken off again by the ledger's own entries, so
the totals are those of one moment, to the last digit. Leaves writing them to `stores/budget_sheet.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Final

import msgspec

from engines.core.documents import Documents
from engines.core.keys import join, within
from engines.errors import Corrupt, TooLarge, Unavailable
from engines.ports.documents import SCAN_LIMIT_MAX
from engines.stores.budget_amounts import ZERO, difference, total
from engines.stores.budget_policy import (
    Dimensions,
    Limit,
    Policy,
    account_key,
    counts,
    limits_for,
    period_start_s,
)
from engines.stores.budget_records import (
    CELL,
    HEAD,
    HEAD_KEY,
    POLICY,
    POLICY_KEY,
    USAGE,
    Account,
    Cell,
    Head,
    StoredUsage,
    Sums,
    day_of,
    sums_of,
    usage_key,
    use_of,
)

# Cells that one summary is made of: a year of a hundred and more different uses a day.
CELLS_MAX: Final = 50_000
# How often head and policy are read again where they were not read at one moment.
READS_MAX: Final = 8

# By day and dimensions.
Cells = Mapping[tuple[str, Dimensions], Sums]


class Standing(msgspec.Struct, frozen=True):
    """A budget at one moment. `head` is None where nothing was ever written."""

    head: Head | None
    policy: Policy | None
    policy_version: str | None

    @property
    def position(self) -> int:
        return 0 if self.head is None else self.head.position


async def read_standing(documents: Documents, partition: str) -> Standing:
    """One read as a rule. Raises Unavailable where the policy is replaced again and again."""
    for _ in range(READS_MAX):
        docs = await documents.get_many(partition, (HEAD_KEY, POLICY_KEY))
        head_doc, policy_doc = docs.get(HEAD_KEY), docs.get(POLICY_KEY)
        head = None if head_doc is None else HEAD.decode(head_doc.body)
        version = None if policy_doc is None else policy_doc.version
        if version == (None if head is None else head.policy):
            policy = None if policy_doc is None else POLICY.decode(policy_doc.body).record
            return Standing(head, policy, version)
    raise Unavailable("the policy of this budget keeps being replaced")


async def entries(
    documents: Documents, partition: str, *, after: int, through: int
) -> AsyncIterator[StoredUsage]:
    """The ledger's entries at positions after < position <= through. Raises Corrupt where one is missing."""
    position = after
    while position < through:
        page = await documents.scan(
            partition, above=usage_key(position), below=usage_key(through + 1), limit=SCAN_LIMIT_MAX
        )
        for doc in page.docs:
            stored = USAGE.decode(doc.body)
            position += 1
            if stored.record.position != position:
                raise Corrupt(f"the ledger has no entry at position {position}")
            yield stored
        if page.resume is None and position < through:
            raise Corrupt(f"the ledger has no entry at position {position + 1}")


async def cells_at(
    documents: Documents,
    partition: str,
    position: int,
    *,
    since: str | None = None,
    until: str | None = None,
) -> Cells:
    """The cells of the days since <= day < until as they were at `position`.

    Raises TooLarge where there are more than `CELLS_MAX`.
    """
    sums: dict[tuple[str, Dimensions], Sums] = {}
    beyond = _Beyond(position)
    async for cell in _cells(documents, partition, since, until):
        sums[cell.day, cell.use] = cell.sums
        if len(sums) > CELLS_MAX:
            raise TooLarge(f"more than {CELLS_MAX} different uses a day: ask for fewer days", field="since")
        beyond.note(cell)
    async for day, use, counted in beyond.counted(documents, partition):
        sums[day, use] = sums[day, use].minus(counted)
    return {key: own for key, own in sums.items() if own.entries}


async def cells_of_ledger(
    documents: Documents,
    partition: str,
    position: int,
    *,
    since: str | None = None,
    until: str | None = None,
) -> Cells:
    """The same, added up anew from every entry up to `position`."""
    sums: dict[tuple[str, Dimensions], Sums] = {}
    async for stored in entries(documents, partition, after=0, through=position):
        day = day_of(stored.at_ms)
        if (since is None or since <= day) and (until is None or day < until):
            key = (day, use_of(stored.record))
            sums[key] = sums.get(key, Sums()).plus(sums_of(stored.record))
    return sums


async def spent_of_ledger(documents: Documents, partition: str, standing: Standing) -> Mapping[str, Decimal]:
    """What every account should say was spent in its period, by the account's key."""
    head, policy = standing.head, standing.policy
    spent: dict[str, Decimal] = {}
    if head is None or policy is None:
        return spent
    for limit in policy.limits:
        spent[account_key(limit)] = ZERO
    async for stored in entries(documents, partition, after=0, through=head.position):
        for limit in limits_for(policy, use_of(stored.record)):
            key = account_key(limit)
            if stored.at_ms // 1000 >= head.accounts[key].starts_s:
                spent[key] = total(spent[key], sums_of(stored.record).cost)
    return spent


class Opening:
    """New accounts for limits that a policy brings: what was spent in their periods before they came.

    Made once from the cells, and where other processes go on spending meanwhile, brought up to date by
    what they added, so that a busy ledger does not keep it from ever being current.

    Any number of cells is read, a page of them in memory at a time. Each page has the deadline of a read; all
    of them together have none, but while they are read this process changes nothing else of the budget. Once
    they took longer than a change may wait (10 s: about a million cells on SQLite), a spender in another
    process that is faster then makes it Unavailable, as for every change.
    """

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self._limits: dict[str, Limit] = {}
        self._position: int | None = None

    async def bring_to(
        self,
        documents: Documents,
        partition: str,
        head: Head,
        limits: Iterable[Limit],
        *,
        at_ms: int,
    ) -> None:
        """Accounts of those `limits` that the head has none of, as of the head."""
        wanted = {account_key(limit): limit for limit in limits if account_key(limit) not in head.accounts}
        if self._position is None or self._limits != wanted:
            self._limits = wanted
            await self._begin(documents, partition, head, at_ms)
        else:
            async for stored in entries(documents, partition, after=self._position, through=head.position):
                self._add(stored)
        self._position = head.position

    async def _begin(self, documents: Documents, partition: str, head: Head, at_ms: int) -> None:
        now_s = at_ms / 1000
        self.accounts = {
            key: Account(starts_s=period_start_s(limit.period, now_s)) for key, limit in self._limits.items()
        }
        by_day = {key: limit for key, limit in self._limits.items() if limit.period != "hour"}
        if by_day:
            await self._begin_days(documents, partition, head, by_day)
        if len(by_day) < len(self._limits):
            await self._begin_hours(documents, partition, head, now_s)

    async def _begin_days(
        self, documents: Documents, partition: str, head: Head, by_day: Mapping[str, Limit]
    ) -> None:
        """One sum a limit, so whoever makes up names, and cells by them, keeps nobody from limiting them."""
        first_days = {key: day_of(self.accounts[key].starts_s * 1000) for key in by_day}

        def count(day: str, use: Dimensions, cost: Decimal) -> None:
            for key in self._counting(use, by_day):
                if day >= first_days[key]:
                    account = self.accounts[key]
                    account.spent = total(account.spent, cost)

        beyond = _Beyond(head.position)
        async for cell in _cells(documents, partition, min(first_days.values()), None):
            count(cell.day, cell.use, cell.sums.cost)
            beyond.note(cell)
        async for day, use, counted in beyond.counted(documents, partition):
            count(day, use, difference(ZERO, counted.cost))

    async def _begin_hours(self, documents: Documents, partition: str, head: Head, now_s: float) -> None:
        """Cells are of days, so what this hour saw is read from the ledger's end."""
        by_hour = {key: limit for key, limit in self._limits.items() if limit.period == "hour"}
        start_s = period_start_s("hour", now_s)
        below: str | None = usage_key(head.position + 1)
        while below is not None:
            page = await documents.scan(
                partition, above=within("u")[0], below=below, limit=SCAN_LIMIT_MAX, reverse=True
            )
            for doc in page.docs:
                stored = USAGE.decode(doc.body)
                if stored.at_ms < start_s * 1000:
                    return
                for key in self._counting(use_of(stored.record), by_hour):
                    account = self.accounts[key]
                    account.spent = total(account.spent, sums_of(stored.record).cost)
            below = page.resume

    def _add(self, stored: StoredUsage) -> None:
        for key in self._counting(use_of(stored.record), self._limits):
            account = self.accounts[key]
            start_s = period_start_s(self._limits[key].period, stored.at_ms / 1000)
            if start_s != account.starts_s:
                account.starts_s, account.spent = start_s, ZERO
            account.spent = total(account.spent, sums_of(stored.record).cost)

    def _counting(self, use: Dimensions, among: Mapping[str, Limit]) -> Sequence[str]:
        return [key for key, limit in among.items() if counts(limit, use)]


class _Beyond:
    """What cells counted beyond the position asked for, because they changed while they were read.

    Holds no more than was spent meanwhile, however many cells there are.
    """

    def __init__(self, position: int) -> None:
        self._position = position
        self._through: dict[tuple[str, Dimensions], int] = {}

    def note(self, cell: Cell) -> None:
        if cell.through > self._position:
            self._through[cell.day, cell.use] = cell.through

    async def counted(
        self, documents: Documents, partition: str
    ) -> AsyncIterator[tuple[str, Dimensions, Sums]]:
        """What is to be taken off again, by the cell's day and use."""
        through = max(self._through.values(), default=self._position)
        async for stored in entries(documents, partition, after=self._position, through=through):
            day, use = day_of(stored.at_ms), use_of(stored.record)
            if stored.record.position <= self._through.get((day, use), 0):
                yield day, use, sums_of(stored.record)


async def _cells(
    documents: Documents, partition: str, since: str | None, until: str | None
) -> AsyncIterator[Cell]:
    """Page by page: each stands as it was when its page was read."""
    above, below = within("t")
    resume: str | None = above if since is None else join("t", since)
    below = below if until is None else join("t", until)
    while resume is not None:
        page = await documents.scan(partition, above=resume, below=below, limit=SCAN_LIMIT_MAX)
        for doc in page.docs:
            yield CELL.decode(doc.body)
        resume = page.resume

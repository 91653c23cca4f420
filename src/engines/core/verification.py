"""Verification: whether the stored chain is the one that was written.

Owns the walk over all commits and what it says. Leaves the digests to `core/commits.py`. What a holder of the
database rewrites consistently, or cuts off at the end, shows only against a head kept elsewhere.
"""

from __future__ import annotations

from typing import Final

import msgspec

from engines.core.chain import Chain
from engines.core.commits import COMMITS_BELOW, Commit, Floor, commit_key, decode_commit
from engines.errors import Corrupt, Unavailable
from engines.ports.documents import Doc

# Commits a page; a page of the waist is about 1 MiB in any case.
PAGE_COMMITS: Final = 64
# Behind the end, segments at these doubling distances must be empty: 2**20 segments are 5e10 events.
PROBES_BEYOND_END: Final = 20
# Each time the floor was raised during a walk it begins anew.
TRIMS_MAX: Final = 8


class Verification(msgspec.Struct, frozen=True):
    """What the walk found. `position`, `digest`: the head up to which the chain holds.

    `bad_position` and `reason`: the first place where it does not; None if it holds. `sealed`: it ends in a
    seal.
    """

    position: int
    digest: str
    commit_count: int
    event_count: int
    redacted_count: int
    sealed: bool = False
    bad_position: int | None = None
    reason: str | None = None

    @property
    def ok(self) -> bool:
        return self.reason is None


class _Broken(Exception):
    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position = position
        self.reason = reason


class _Walk:
    """What is carried from one commit to the next."""

    def __init__(self, floor: Floor, expected: tuple[int, str] | None) -> None:
        self.position, self.digest, self.at = floor.position, floor.digest, floor.at
        self.expected = expected
        self.commits = self.events = self.redacted = 0
        self.sealed = False

    def start(self) -> None:
        """Raises _Broken where the expected head cannot be compared any more."""
        if self.expected is not None and self.expected[0] < self.position:
            raise _Broken(self.expected[0], "the expected head is below what is kept")
        self._compare()

    def take(self, doc: Doc) -> None:
        """Check one document and move on behind it. Raises _Broken."""
        expected_first = self.position + 1
        if self.sealed:
            raise _Broken(expected_first, "there is a commit behind the seal")
        if doc.key != commit_key(expected_first):
            raise _Broken(expected_first, "no commit begins here, and later ones exist")
        try:
            commit = decode_commit(doc.key, doc.body)
            computed = commit.computed_digest()
        except Corrupt as error:
            raise _Broken(expected_first, error.detail) from error
        self._check(commit, computed)
        if self.expected is not None and commit.last > self.expected[0]:
            raise self.another_head()
        self.position, self.digest, self.at = commit.last, commit.digest, commit.at
        self.commits += 1
        self.events += len(commit.events)
        self.redacted += sum(item.salt is None for item in commit.events)
        self.sealed = commit.is_seal
        self._compare()

    def _check(self, commit: Commit, computed: str) -> None:
        if commit.previous != self.digest:
            raise _Broken(commit.first, "the commit does not follow the one before it")
        if commit.digest != computed:
            raise _Broken(commit.first, "the commit's contents do not have its digest")
        if commit.at < self.at:
            raise _Broken(commit.first, "the commit is older than the one before it")

    def _compare(self) -> None:
        """Tick the expected head off. A seal ends at the same position as the commit before it."""
        if (self.position, self.digest) == self.expected:
            self.expected = None

    def end(self, reached: int) -> None:
        """Raises _Broken where the log ends too early."""
        if self.position < reached:
            raise _Broken(self.position + 1, "the log ends before a position that was committed")
        if self.expected is not None and self.position < self.expected[0]:
            raise _Broken(self.position + 1, "the log ends before the expected head")
        if self.expected is not None:
            raise self.another_head()

    def another_head(self) -> _Broken:
        assert self.expected is not None
        return _Broken(self.expected[0], "the log was written anew: it has no such head at this position")

    def result(self, broken: _Broken | None = None) -> Verification:
        return Verification(
            position=self.position,
            digest=self.digest,
            commit_count=self.commits,
            event_count=self.events,
            redacted_count=self.redacted,
            sealed=self.sealed,
            bad_position=None if broken is None else broken.position,
            reason=None if broken is None else broken.reason,
        )


async def verify(chain: Chain, *, expected: tuple[int, str] | None, reached: int) -> Verification:
    """Walk the whole chain. `reached`: a position that this process has seen committed.

    Raises only what reading raises; a chain that does not hold is a result.
    """
    for _ in range(TRIMS_MAX):
        exists = await chain.reload()
        floor = chain.floor
        walk = _Walk(floor, expected)
        try:
            walk.start()
            if exists:
                await _walk_segments(chain, walk)
            walk.end(reached)
        except _Broken as broken:
            await chain.reload()
            if chain.floor == floor:
                return walk.result(broken)
        else:
            return walk.result()
    raise Unavailable("the log was trimmed again and again while it was verified")


async def _walk_segments(chain: Chain, walk: _Walk) -> None:
    segment = chain.segment_of(walk.position + 1)
    while True:
        above: str | None = commit_key(walk.position)
        while above is not None:
            page = await chain.documents.scan(
                chain.partition(segment), above=above, below=COMMITS_BELOW, limit=PAGE_COMMITS
            )
            for doc in page.docs:
                walk.take(doc)
            above = page.resume
        if walk.sealed or chain.segment_of(walk.position + 1) == segment:
            break
        segment += 1
        if await chain.last_in(segment) is None:
            break
    await _probe_beyond(chain, walk, segment)


async def _probe_beyond(chain: Chain, walk: _Walk, segment: int) -> None:
    """The walk ended in `segment`: nothing may stand in later ones."""
    for step in range(PROBES_BEYOND_END):
        try:
            commit = await chain.last_in(segment + (1 << step))
        except Corrupt as error:
            raise _Broken(walk.position + 1, error.detail) from error
        if commit is not None:
            raise _Broken(walk.position + 1, "no commit begins here, and later ones exist")

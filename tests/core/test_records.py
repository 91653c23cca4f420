"""Records under reads that are not of one moment, as DynamoDB's batch reads are.

Definitions, approvals (`test_firearms.py`), budgets and the control plane have such tests of their own.
"""

from __future__ import annotations

import pytest

from engines.core.idempotency import Request, identify
from engines.core.records import Condition, Draft, create, remove, replace
from engines.errors import Conflict, NotFound, PreconditionFailed
from engines.ports.documents import Doc
from tests.core.conftest import NewDocuments
from tests.torn import torn

PARTITION = "notes.t_a.prod.0"
KEY = "n!ada!1"


def keyed(name: str) -> Request:
    return identify(name, body=b"{}")


FIRST = keyed("a")


async def test_a_repeat_that_meets_its_first_as_it_lands_is_no_failed_condition(
    new_documents: NewDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, _ = await new_documents()
    made = await create(documents, PARTITION, KEY, Draft('"one"'))
    condition = Condition(versions=(made.doc.version,))

    async def change(request: Request = FIRST) -> bool:
        written = await replace(
            documents, PARTITION, KEY, lambda _: Draft('"two"'), condition=condition, request=request
        )
        assert written.doc.body == '"two"'
        return written.replayed

    torn(documents, monkeypatch, change)
    assert await change()
    with pytest.raises(PreconditionFailed):
        await change(keyed("b"))


@pytest.mark.parametrize("conditional", [True, False])
async def test_so_is_one_that_finds_its_record_removed(
    new_documents: NewDocuments, monkeypatch: pytest.MonkeyPatch, *, conditional: bool
) -> None:
    documents, _ = await new_documents()
    made = await create(documents, PARTITION, KEY, Draft('"one"'))
    condition = Condition(versions=(made.doc.version,) if conditional else ())

    async def delete(request: Request = FIRST) -> bool:
        return await remove(documents, PARTITION, KEY, condition=condition, request=request)

    torn(documents, monkeypatch, delete)
    assert await delete()
    with pytest.raises(PreconditionFailed if conditional else NotFound):
        await delete(keyed("b"))


async def test_nor_is_what_is_no_longer_to_be_made_of_the_record_a_failure(
    new_documents: NewDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, _ = await new_documents()
    await create(documents, PARTITION, KEY, Draft('"draft"'))

    def approved(doc: Doc | None) -> Draft:
        if doc is None or doc.body != '"draft"':
            raise Conflict("only a draft is approved")
        return Draft('"approved"')

    async def approve(request: Request = FIRST) -> bool:
        return (await replace(documents, PARTITION, KEY, approved, request=request)).replayed

    torn(documents, monkeypatch, approve)
    assert await approve()
    with pytest.raises(Conflict, match="only a draft"):
        await approve(keyed("b"))

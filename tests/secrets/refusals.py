"""What every refused handle has in common: an error that names the handle and nowhere tells a value."""

import traceback

import pytest

from engines.core.secrets import Secrets
from engines.errors import EnginesError

VALUE = "hunter2-is-the-value"


async def refused(secrets: Secrets, handle: str, kind: type[EnginesError]) -> EnginesError:
    """The refusal, in whose whole story no value is told."""
    with pytest.raises(EnginesError) as caught:
        await secrets.resolve(handle)
    error = caught.value
    assert type(error) is kind
    seen: BaseException | None = error
    while seen is not None:
        assert VALUE not in f"{seen!r} {seen} {vars(seen)} {seen.args}"
        assert VALUE not in str(getattr(seen, "doc", "")) + str(getattr(seen, "object", ""))
        seen = seen.__cause__ or seen.__context__
    assert VALUE not in "".join(traceback.format_exception(error))
    return error

"""A provider for the OpenFeature SDK: a server's flags, in a program that knows OpenFeature alone.

Owns the translation between the SDK's types and errors and those of the protocol, and the evaluations that
are kept where that was asked for. Needs the extra `openfeature`, and is imported by whoever uses it. Leaves
the protocol to `client/ofrep.py`.

    from openfeature import api

    api.set_provider_and_wait(EnginesProvider("http://127.0.0.1:8080", token))
    api.get_client().get_boolean_value("new-banner", False, EvaluationContext("ada", {"plan": "pro"}))
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeVar

import msgspec
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import (
    FlagNotFoundError,
    GeneralError,
    InvalidContextError,
    OpenFeatureError,
    ParseError,
    ProviderNotReadyError,
    TypeMismatchError,
)
from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType, Reason
from openfeature.provider import AbstractProvider, Metadata

from engines.client.engines import AsyncEngines
from engines.client.loop import Loop
from engines.client.results import Evaluation
from engines.client.retry import NO_RETRY
from engines.client.transport import encode
from engines.clock import Clock, SystemClock
from engines.errors import EnginesError, Invalid, Throttled
from engines.scope import check_id

# The default that OFREP asks of a provider (guideline/dynamic-context-provider.md).
TIMEOUT_S: Final = 10.0
CONTEXTS_KEPT_MAX: Final = 1_000
THROTTLED_S: Final = 1.0

T = TypeVar("T")
Objects = Sequence[FlagValueType] | Mapping[str, FlagValueType]

_ERRORS: Final[Mapping[str, Callable[[str], OpenFeatureError]]] = {
    "FLAG_NOT_FOUND": FlagNotFoundError,
    "PARSE_ERROR": ParseError,
    "INVALID_CONTEXT": InvalidContextError,
}


class _Bulk(msgspec.Struct, frozen=True):
    """What every flag said to one context, and when it was asked."""

    flags: Mapping[str, Evaluation]
    etag: str
    asked_s: float


class EnginesProvider(AbstractProvider):
    """Flags of one tenant, env and surface. Any number of threads and event loops.

    Each evaluation is one request, unless `age_max_s` is given: then all flags are evaluated at once for each
    context, and what they said is used in this process for so long, and no longer; a server that cannot be
    asked anew is then an error too. An error makes the SDK use the program's own default. After a 429 nothing
    is sent until the time that the server named.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        age_max_s: float | None = None,
        timeout_s: float = TIMEOUT_S,
        clock: Clock | None = None,
        **context: str | None,
    ) -> None:
        """`context` is that of `AsyncEngines`: tenant_id, env, surface_id and so on.

        Nothing is sent yet. Raises Invalid for a URL that is none.
        """
        super().__init__()
        self._client = AsyncEngines(url, token, retry=NO_RETRY, timeout_s=timeout_s, **context)  # type: ignore[arg-type]
        self._clock = clock or SystemClock()
        self._age_max_s = age_max_s
        self._loop: Loop | None = None
        self._paused_until_s = 0.0
        # Written on the loop's own thread alone.
        self._bulks: OrderedDict[bytes, _Bulk] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[_Bulk]] = {}

    def get_metadata(self) -> Metadata:
        return Metadata(name="Engines")

    def initialize(self, evaluation_context: EvaluationContext) -> None:  # noqa: ARG002
        """Begin the thread that requests are made on. The SDK calls it."""
        if self._loop is None:
            self._loop = Loop()

    def shutdown(self) -> None:
        """Close the connections and end the thread, for good. The SDK calls it."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.run(self._client.close())
            loop.close()

    # --- what the SDK calls ---

    def resolve_boolean_details(
        self,
        flag_key: str,
        default_value: bool,  # noqa: FBT001  the SDK's own signature
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[bool]:
        return _details(self._run(flag_key, evaluation_context), default_value, _boolean)

    async def resolve_boolean_details_async(
        self,
        flag_key: str,
        default_value: bool,  # noqa: FBT001  the SDK's own signature
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[bool]:
        return _details(await self._join(flag_key, evaluation_context), default_value, _boolean)

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        return _details(self._run(flag_key, evaluation_context), default_value, _string)

    async def resolve_string_details_async(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        return _details(await self._join(flag_key, evaluation_context), default_value, _string)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        return _details(self._run(flag_key, evaluation_context), default_value, _integer)

    async def resolve_integer_details_async(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        return _details(await self._join(flag_key, evaluation_context), default_value, _integer)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        return _details(self._run(flag_key, evaluation_context), default_value, _float)

    async def resolve_float_details_async(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        return _details(await self._join(flag_key, evaluation_context), default_value, _float)

    def resolve_object_details(
        self, flag_key: str, default_value: Objects, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[Objects]:
        return _details(self._run(flag_key, evaluation_context), default_value, _object)

    async def resolve_object_details_async(
        self, flag_key: str, default_value: Objects, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[Objects]:
        return _details(await self._join(flag_key, evaluation_context), default_value, _object)

    # --- asking ---

    def _run(self, key: str, context: EvaluationContext | None) -> Evaluation:
        told = _told(context)
        kept = self._kept(told)
        if kept is not None:
            return _of(kept, key)
        return self._ready().run(self._asked(key, told))

    async def _join(self, key: str, context: EvaluationContext | None) -> Evaluation:
        told = _told(context)
        kept = self._kept(told)
        if kept is not None:
            return _of(kept, key)
        return await self._ready().join(self._asked(key, told))

    def _ready(self) -> Loop:
        if self._loop is None:
            raise ProviderNotReadyError("the provider was not initialised, or was shut down")
        return self._loop

    def _kept(self, told: Mapping[str, Any]) -> _Bulk | None:
        """What was asked lately enough, if evaluations are kept."""
        if self._age_max_s is None:
            return None
        bulk = self._bulks.get(_name(told))
        is_fresh = bulk is not None and self._clock.monotonic() - bulk.asked_s < self._age_max_s
        return bulk if is_fresh else None

    async def _asked(self, key: str, told: Mapping[str, Any]) -> Evaluation:
        """From here on everything happens on the loop's own thread."""
        _check_key(key)
        if self._clock.monotonic() < self._paused_until_s:
            raise GeneralError("the server asked for a pause, which is not over")
        try:
            if self._age_max_s is None:
                return await self._client.ofrep.evaluate(key, told)
            return _of(await self._bulk(told), key)
        except EnginesError as error:
            self._refused(error)

    async def _bulk(self, told: Mapping[str, Any]) -> _Bulk:
        """All flags, asked for once by all who wait for the same context."""
        name = _name(told)
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = asyncio.create_task(self._ask(name, told))
            task.add_done_callback(lambda _: self._asking.pop(name))
        return await asyncio.shield(task)

    async def _ask(self, name: bytes, told: Mapping[str, Any]) -> _Bulk:
        asked_s = self._clock.monotonic()
        before = self._bulks.get(name)
        found = await self._client.ofrep.evaluate_all(
            told, known_etag=None if before is None else before.etag
        )
        if found is not None:
            bulk = _Bulk({flag.key: flag for flag in found.flags}, found.etag, asked_s)
        else:
            assert before is not None
            bulk = msgspec.structs.replace(before, asked_s=asked_s)
        self._bulks[name] = bulk
        self._bulks.move_to_end(name)
        if len(self._bulks) > CONTEXTS_KEPT_MAX:
            self._bulks.popitem(last=False)
        return bulk

    def _refused(self, error: EnginesError) -> NoReturn:
        if isinstance(error, Throttled):
            self._paused_until_s = self._clock.monotonic() + (error.retry_after_s or THROTTLED_S)
        raise _ERRORS.get(error.reason_code or "", GeneralError)(error.detail) from error


def _told(context: EvaluationContext | None) -> dict[str, Any]:
    """The context as the protocol has it."""
    if context is None:
        return {}
    told = dict(context.attributes)
    if context.targeting_key is not None:
        told["targetingKey"] = context.targeting_key
    return told


def _name(told: Mapping[str, Any]) -> bytes:
    """What tells contexts apart. Raises InvalidContextError for one that is not JSON."""
    try:
        return encode(dict(sorted(told.items())))
    except Invalid as error:
        raise InvalidContextError(error.detail) from error


def _check_key(key: str) -> None:
    """A key that no flag can have is not sent: as part of a path it would mean something else."""
    try:
        check_id(key, "key")
    except Invalid as error:
        raise FlagNotFoundError("no flag can have this key") from error


def _of(bulk: _Bulk, key: str) -> Evaluation:
    evaluation = bulk.flags.get(key)
    if evaluation is None:
        raise FlagNotFoundError("there is no such flag")
    if evaluation.error_code is not None:
        raise _ERRORS.get(evaluation.error_code, GeneralError)(evaluation.error_details or "")
    return evaluation


# --- values ---


def _details(evaluation: Evaluation, default: T, typed: Any) -> FlagResolutionDetails[T]:
    value = default if evaluation.value is msgspec.UNSET else typed(evaluation.value)
    return FlagResolutionDetails(
        value=value,
        reason=Reason(evaluation.reason) if evaluation.reason in set(Reason) else Reason.UNKNOWN,
        variant=evaluation.variant,
        flag_metadata=evaluation.metadata,
    )


def _boolean(value: Any) -> bool:
    return value if isinstance(value, bool) else _mismatch("a boolean", value)


def _string(value: Any) -> str:
    return value if isinstance(value, str) else _mismatch("a string", value)


def _integer(value: Any) -> int:
    """A whole number is one however JSON writes it; any other is not rounded."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else _mismatch("an integer", value)


def _float(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else _mismatch("a number", value)


def _object(value: Any) -> Objects:
    return value if isinstance(value, dict | list) else _mismatch("an object", value)


def _mismatch(expected: str, value: Any) -> NoReturn:
    raise TypeMismatchError(f"the flag's value is a {type(value).__name__}, and {expected} was asked for")

"""Numbers of this process for Prometheus: requests by route and status, their time, streams that are open,
how far the indices of the spines are behind.

Owns the names of the metrics, counting and their exposition. Labels are route templates and never a path, so
their number is bounded by the number of calls. Several worker processes each tell their own numbers.

Requests are counted in plain integers and made into Prometheus's types when somebody asks: that costs a tenth
of the library's own counters, which every request would pay.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from engines.stores.projector import Projector

MEDIA_TYPE: Final = CONTENT_TYPE_LATEST
# From half of what a read costs to the time after which a backend is called unavailable.
_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class _Tally:
    """Requests of one method, route and class of status. Streams are counted and not timed."""

    __slots__ = ("buckets", "count", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self.buckets = [0] * (len(_BUCKETS_S) + 1)


class _Requests(Collector):
    def __init__(self) -> None:
        self.tallies: dict[tuple[str, str, int], _Tally] = {}

    def collect(self) -> Iterable[Metric]:
        counts = CounterMetricFamily(
            "engines_http_requests",
            "Requests answered, by method, route template and class of status.",
            labels=("method", "route", "status"),
        )
        durations = HistogramMetricFamily(
            "engines_http_request_duration_seconds",
            "Time from a request's headers to the end of its answer; streams are not timed.",
            labels=("method", "route", "status"),
        )
        for (method, route, hundreds), tally in self.tallies.items():
            labels = (method, route, f"{hundreds}xx")
            counts.add_metric(labels, tally.count)
            durations.add_metric(labels, buckets=_cumulative(tally.buckets), sum_value=tally.seconds)
        return (counts, durations)


class _Projecting(Collector):
    """Without a tenant's name: their number has no bound. `GET /events/index` tells each tenant its own."""

    def __init__(self, projectors: Sequence[Projector]) -> None:
        self._projectors = projectors

    def collect(self) -> Iterable[Metric]:
        lag = GaugeMetricFamily(
            "engines_index_lag_seconds",
            "How long the spine that has waited longest has waited for its index to go on.",
            max(projector.lag_s for projector in self._projectors),
        )
        due = GaugeMetricFamily(
            "engines_index_spines_due",
            "Spines with events to be indexed.",
            sum(projector.due for projector in self._projectors),
        )
        failures = CounterMetricFamily(
            "engines_index_failures",
            "Turns of indexing that failed.",
            sum(projector.failures for projector in self._projectors),
        )
        return (lag, due, failures)


class Metrics:
    """One instance an app."""

    def __init__(self, projectors: Sequence[Projector]) -> None:
        """`projectors`: of every index of spines that there is."""
        registry = CollectorRegistry()
        registry.register(_Projecting(projectors))
        self._requests = _Requests()
        registry.register(self._requests)
        self.streams = Gauge("engines_http_streams_open", "Event streams followed now.", registry=registry)
        self._registry = registry

    def count(self, method: str, route: str, status: int, duration_s: float, *, is_stream: bool) -> None:
        """One request is over."""
        key = (method, route, status // 100)
        tally = self._requests.tallies.get(key)
        if tally is None:
            tally = self._requests.tallies[key] = _Tally()
        tally.count += 1
        if not is_stream:
            tally.seconds += duration_s
            tally.buckets[bisect_left(_BUCKETS_S, duration_s)] += 1

    def exposition(self) -> bytes:
        """The text format."""
        return generate_latest(self._registry)


def _cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    """Prometheus's buckets count everything up to their bound."""
    total = 0
    found: list[tuple[str, float]] = []
    for bound, count in zip((*map(str, _BUCKETS_S), "+Inf"), buckets, strict=True):
        total += count
        found.append((bound, total))
    return found

"""Numbers of this process for Prometheus: requests by route and status, their time, streams that are open.

Owns the names of the metrics and their exposition. Labels are route templates and never a path, so their
number is bounded by the number of calls. Several worker processes each tell their own numbers.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

MEDIA_TYPE: Final = CONTENT_TYPE_LATEST
# From half of what a read costs to the time after which a backend is called unavailable.
_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """One instance an app."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "engines_http_requests",
            "Requests answered, by method, route template and class of status.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._durations = Histogram(
            "engines_http_request_duration_seconds",
            "Time from a request's headers to the end of its answer; streams are not counted.",
            ("method", "route"),
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self.streams = Gauge(
            "engines_http_streams_open", "Event streams that clients follow now.", registry=self._registry
        )
        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def count(self, method: str, route: str, status: int, duration_s: float, *, is_stream: bool) -> None:
        """One request is over."""
        key = (method, route, status)
        children = self._known.get(key)
        if children is None:
            children = self._known[key] = (
                self._requests.labels(method, route, f"{status // 100}xx"),
                self._durations.labels(method, route),
            )
        children[0].inc()
        if not is_stream:
            children[1].observe(duration_s)

    def exposition(self) -> bytes:
        """The text format."""
        return generate_latest(self._registry)

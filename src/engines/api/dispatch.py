"""Routing: from a path and a method to the endpoint that answers it.

Owns the tree of path templates; a literal segment goes before a parameter. On two slow cores a note read from
SQLite costs 112 µs with this and 150 µs with Litestar's routing in its place (its router, request object,
exit stack and exception layers), which served for nothing else here. Leaves the rule for segments to
`api/paths.py`, which has judged every path before it comes here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from engines.api.call import Runner
from engines.api.endpoint import Endpoint
from engines.errors import MethodNotAllowed, NotFound

_PARAMETER: Final = "{}"
"""The branch for any segment; no segment is written so."""


class _Node:
    """A place in the tree. `runners` by method, where a template ends here, and its parameters' names.

    `any_method` runs what is called by a method that `runners` does not have.
    """

    __slots__ = ("any_method", "branches", "names", "runners")

    def __init__(self) -> None:
        self.branches: dict[str, _Node] = {}
        self.runners: dict[str, Runner] = {}
        self.any_method: Runner | None = None
        self.names: tuple[str, ...] = ()


class Dispatch:
    """The tree of these endpoints."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._root = _Node()
        limited: set[str] = set()
        for endpoint in endpoints:
            self._add(endpoint)
            if endpoint.is_limited:
                limited.add(endpoint.route)
        self.limited_routes = frozenset(limited)
        """What a rate limit may name."""

    def find(self, method: str, path: str) -> tuple[Runner, Mapping[str, str]]:
        """The endpoint's runner, and the path's parameters by name. Raises NotFound, MethodNotAllowed."""
        values: list[str] = []
        node = _walk(self._root, path[1:].split("/"), 0, values)
        if node is None:
            raise NotFound("there is no such path")
        runner = node.runners.get(method, node.any_method)
        if runner is None:
            allowed = sorted(node.runners)
            raise MethodNotAllowed(f"this path has {', '.join(allowed)}", allowed=allowed)
        return runner, dict(zip(node.names, values, strict=True))

    def _add(self, endpoint: Endpoint) -> None:
        node = self._root
        for segment in endpoint.path[1:].split("/"):
            branch = _PARAMETER if segment.startswith("{") else segment
            node = node.branches.setdefault(branch, _Node())
        assert endpoint.method not in node.runners, f"{endpoint.method} {endpoint.path} is mounted twice"
        assert not node.runners or node.names == endpoint.parameters, "one path has one set of names"
        node.runners[endpoint.method] = Runner(endpoint)
        if endpoint.answers_any_method:
            node.any_method = node.runners[endpoint.method]
        node.names = endpoint.parameters


def _walk(node: _Node, segments: Sequence[str], index: int, values: list[str]) -> _Node | None:
    """The node where a template ends that fits the segments from `index` on; `values` are its parameters'."""
    while index < len(segments):
        segment = segments[index]
        index += 1
        literal, parameter = node.branches.get(segment), node.branches.get(_PARAMETER)
        if literal is None:
            if parameter is None:
                return None
            values.append(segment)
            node = parameter
            continue
        if parameter is not None:
            # Two ways: the literal one goes first, and where it leads nowhere the other is taken.
            tried: list[str] = []
            found = _walk(literal, segments, index, tried)
            if found is not None:
                values += tried
                return found
            values.append(segment)
            literal = parameter
        node = literal
    return node if node.runners else None

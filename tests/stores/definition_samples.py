"""Two blobs that each kind of definition takes, and blobs that it refuses with the field that is wrong."""

from __future__ import annotations

from typing import Any

import msgspec


class Sample(msgspec.Struct, frozen=True):
    """What a first and a second version may say."""

    first: dict[str, Any]
    second: dict[str, Any]


_DRAWN = {"name": "one", "nodes": [{"id": "a", "kind": "start"}, {"id": "b"}], "edges": []}
_JOINED = {**_DRAWN, "edges": [{"source": "a", "target": "b"}, {"from": "b", "to": "a", "label": "back"}]}

SAMPLES = {
    "flows": Sample(_DRAWN, _JOINED),
    "graphs": Sample(_DRAWN, _JOINED),
    "overlays": Sample({"name": "grid"}, {"name": "grid", "type": "lens", "zoom": 2}),
    "seo": Sample(
        {"title": "<b>Engines</b>"},
        {"title": "Engines", "canonical_url": "https://example.com/a?b=1", "keywords": ["state"]},
    ),
    "pages": Sample({"slug": "about"}, {"slug": "about/team", "status": "published", "content": {"h": 1}}),
    "attribution": Sample(
        {"platform": "web", "utm_template": {"utm_source": "news", "utm_campaign": "{campaign}-2026"}},
        {"platform": "web", "allowed_fields": ["page_url"], "allowed_hosts": ["*.example.com"]},
    ),
    "flags": Sample(
        {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off"},
        {"state": "DISABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off"},
    ),
    "strategy-locks": Sample(
        {"allowed_actions": ["book_*"]},
        {
            "allowed_actions": ["*"],
            "valid_from": "2026-01-01T00:00:00Z",
            "valid_until": "2027-01-01T00:00:00Z",
        },
    ),
    "kpis": Sample({"floor": 0.5}, {"floor": 0.5, "ceiling": 1, "aggregation": "mean"}),
    "temperature": Sample({"values": {"success": 0.5}}, {"values": {"success": 0.7, "cost": 1}}),
    "firearms": Sample({"risk_level": "high"}, {"risk_level": "high", "cooldown_seconds": 60}),
    "firearms-licences": Sample({"class_id": "payments"}, {"class_id": "payments", "human_approval": False}),
    "firearms-grants": Sample(
        {"class_id": "payments", "user_id": "ada"},
        {"class_id": "payments", "user_id": "ada", "revoked": True},
    ),
    "firearms-bindings": Sample(
        {"class_id": "payments", "actions": ["refund"]},
        {"class_id": "payments", "actions": ["refund", "book_*"]},
    ),
}

# The kind, the blob, and the field inside the blob that breaks a rule.
REFUSED: list[tuple[str, Any, str]] = [
    ("flows", [], ""),
    ("flows", None, ""),
    ("flows", {"nodes": [{"id": "a"}, {"id": "a"}]}, "nodes[1].id"),
    ("flows", {"nodes": [{"kind": "no id"}]}, "nodes[0]"),
    ("graphs", {"nodes": [{"id": "a"}], "edges": [{"source": "a", "target": "b"}]}, "edges[0].target"),
    ("graphs", {"nodes": [{"id": "a"}], "edges": [{"target": "a"}]}, "edges[0].source"),
    ("graphs", {"nodes": [{"id": "a"}], "edges": [{"from": "z", "to": "a"}]}, "edges[0].source"),
    ("overlays", {"type": "window"}, "type"),
    ("seo", {"canonical_url": "/relative"}, "canonical_url"),
    ("seo", {"canonical_url": "javascript:alert(1)"}, "canonical_url"),
    ("seo", {"canonical_url": "https://user:word@example.com/"}, "canonical_url"),  # pragma: allowlist secret
    ("seo", {"canonical_url": "https://example.com/a b"}, "canonical_url"),
    ("seo", {"canonical_url": "https://[::1"}, "canonical_url"),
    ("seo", {"alternates": {"de": "ftp://example.com"}}, "alternates.de"),
    ("pages", {"slug": "About us"}, "slug"),
    ("pages", {"slug": "../x"}, "slug"),
    ("pages", {"title": "no slug"}, ""),
    ("pages", {"slug": "a", "status": "gone"}, "status"),
    ("attribution", {"platform": "Web Site"}, "platform"),
    ("attribution", {"platform": "web", "utm_template": {"utm_other": "x"}}, "utm_template.utm_other"),
    ("attribution", {"platform": "web", "utm_template": {"utm_source": "{A}"}}, "utm_template.utm_source"),
    ("attribution", {"platform": "web", "allowed_hosts": ["https://a.b"]}, "allowed_hosts[0]"),
    ("attribution", {"platform": "web", "extra": 1}, ""),
    ("flags", {"state": "ON", "variants": {"a": 1}}, "state"),
    ("flags", {"state": "ENABLED", "variants": {}}, "variants"),
    ("flags", {"state": "ENABLED", "variants": {"a": 1}, "defaultVariant": "b"}, "defaultVariant"),
    ("strategy-locks", {"allowed_actions": []}, "allowed_actions"),
    ("strategy-locks", {"allowed_actions": ["two words"]}, "allowed_actions[0]"),
    ("strategy-locks", {"allowed_actions": ["a"], "valid_until": "tomorrow"}, "valid_until"),
    (
        "strategy-locks",
        {
            "allowed_actions": ["a"],
            "valid_from": "2026-02-01T00:00:00Z",
            "valid_until": "2026-01-01T00:00:00Z",
        },
        "valid_until",
    ),
    ("kpis", {"floor": 2, "ceiling": 1}, "floor"),
    ("kpis", {"window_seconds": 0}, "window_seconds"),
    ("kpis", {"aggregation": "median"}, "aggregation"),
    ("temperature", {"values": {"a": "hot"}}, "values[...]"),
    ("firearms", {"risk_level": "none"}, "risk_level"),
    ("firearms", {"risk_level": "low", "cooldown_seconds": -1}, "cooldown_seconds"),
    ("firearms-grants", {"class_id": "payments"}, "user_id"),
    ("firearms-grants", {"class_id": "payments", "user_id": "a", "agent_id": "b"}, "user_id"),
    ("firearms-bindings", {"class_id": "payments", "actions": []}, "actions"),
]

"""Rules of attribution: templates, and links that lead where they led."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engines.errors import Invalid
from engines.stores.analytics_events import NewAnalyticsEvent
from engines.stores.attribution import (
    UTM_FIELDS,
    AttributionContract,
    ContractInForce,
    ContractRef,
    FieldRules,
    LinkToTag,
    check_contract,
    tagged,
)

HOSTS = ("example.com", "*.example.org", "example.net:8443")
TEMPLATE: dict[Any, str] = {
    "utm_source": "a b&c",
    "utm_campaign": "{campaign}_{month}",
    "utm_content": "x{id}",
}
VALUE = st.text("abcXYZ019.~-", min_size=1, max_size=20)
# What stands in URLs, and what is used to make one look like another.
TEXT = st.text("abcutm_=&?#%/\\@:.;+[]!$'()*,~- \t\r\n\x00é\u202e\uff0fexample.com", max_size=40)
QUERY = st.text("abutm_=&%2F5f+.;-", max_size=30).map(lambda text: re.sub(r"%(?![0-9a-fA-F]{2})", "", text))


def contract(**fields: Any) -> AttributionContract:
    made = AttributionContract(
        **{"platform": "web", "utm_template": TEMPLATE, "allowed_hosts": HOSTS, **fields}
    )
    check_contract(made)
    return made


def tag(url: str, *, terms: AttributionContract | None = None, **values: str) -> str:
    link = LinkToTag(url=url, platform="web", values=values)
    return tagged(link, ContractInForce(ContractRef("c", 1), terms or contract())).url


VALUES: dict[str, Any] = {"campaign": "c", "month": "m", "id": "1"}


class TestTemplates:
    @given(campaign=VALUE, month=VALUE, number=VALUE)
    def test_what_a_link_is_tagged_with_is_what_an_event_may_have(
        self, campaign: str, month: str, number: str
    ) -> None:
        terms = contract()
        url = tag("https://example.com/", terms=terms, campaign=campaign, month=month, id=number)
        said: dict[str, Any] = dict(parse_qsl(urlsplit(url).query, strict_parsing=True))
        assert said == {
            "utm_source": "a b&c",
            "utm_campaign": f"{campaign}_{month}",
            "utm_content": f"x{number}",
        }
        FieldRules(terms).check(NewAnalyticsEvent(**said), {})

    @pytest.mark.parametrize(
        ("template", "matches", "fails"),
        [
            ("news", ["news"], ["News", "news ", "newsletter", "new"]),
            ("{a}", ["x", "A.b_c~-9", "x" * 100], ["", "a b", "é", "x" * 101, "a/b"]),
            ("{a}-{b}", ["x-y", "x-y-z"], ["x", "x-", "-y"]),
            ("v{a}.", ["v1.", "vv."], ["v.", "v1", "v1.."]),
            ("a+b (c)", ["a+b (c)"], ["aab c"]),
        ],
    )
    def test_a_value_is_read_by_its_template(
        self, template: str, matches: list[str], fails: list[str]
    ) -> None:
        rules = FieldRules(contract(utm_template={"utm_term": template}))
        for value in matches:
            rules.check(NewAnalyticsEvent(utm_term=value), {})
        for value in fails:
            with pytest.raises(Invalid) as refusal:
                rules.check(NewAnalyticsEvent(utm_term=value), {})
            assert refusal.value.field == "utm_term"

    @pytest.mark.parametrize(
        ("fields", "payload", "field"),
        [
            ({"page_url": "https://a.b/"}, {"button": 1}, None),
            ({}, {}, None),
            ({"page_title": ""}, {}, "page_title"),
            ({"referrer": "x"}, {}, "referrer"),
            ({}, {"page_url": 1}, "payload.page_url"),
            ({}, {"button": 1, "b": 1, "a": 1}, "payload.a"),
        ],
    )
    def test_an_event_has_the_fields_that_are_allowed(
        self, fields: dict[str, Any], payload: dict[str, Any], field: str | None
    ) -> None:
        rules = FieldRules(contract(allowed_fields=("page_url", "payload.button")))
        if field is None:
            rules.check(NewAnalyticsEvent(**fields), payload)
            return
        for _ in range(2):
            with pytest.raises(Invalid) as refusal:
                rules.check(NewAnalyticsEvent(**fields), payload)
            assert refusal.value.field == field

    @pytest.mark.parametrize("template", ["{A}", "{a", "a}", "{a}{b}", "{a}-{a}", "é", "a\nb", "{}"])
    def test_a_template_that_is_none(self, template: str) -> None:
        with pytest.raises(Invalid) as refusal:
            contract(utm_template={"utm_term": template})
        assert refusal.value.field == "utm_template.utm_term"

    @pytest.mark.parametrize(
        "host",
        [
            "",
            "Example.com",
            "https://a.b",
            "a.b/",
            "a..b",
            "-a.b",
            "a.b:",
            "a.b:0",
            "127.0.0.1",
            "0x7f.1",
            "[::1]",
            "*",
            "*.*.b",
            "a_b.c",
            "a" * 64 + ".b",
            "b.",
            "é.b",
        ],
    )
    def test_a_host_that_is_none(self, host: str) -> None:
        with pytest.raises(Invalid) as refusal:
            contract(allowed_hosts=["a.b", host])
        assert refusal.value.field == "allowed_hosts[1]"

    @pytest.mark.timeout(5)
    def test_no_value_takes_long_to_be_read(self) -> None:
        template = "-".join(f"{{p{number}}}" for number in range(25))
        rules = FieldRules(contract(utm_template={"utm_term": template}))
        with pytest.raises(Invalid):
            rules.check(NewAnalyticsEvent(utm_term="-".join(["a" * 9] * 25) + "!"), {})

    @given(st.dictionaries(st.sampled_from(UTM_FIELDS), st.text(max_size=20)))
    def test_whatever_a_template_is_it_is_refused_or_can_be_used(self, templates: dict[Any, str]) -> None:
        try:
            terms = msgspec.convert({"platform": "web", "utm_template": templates}, AttributionContract)
            check_contract(terms)
        except (Invalid, msgspec.ValidationError):
            return
        FieldRules(terms)


class TestLinks:
    @given(
        path=TEXT,
        query=TEXT,
        authority=TEXT,
        scheme=st.sampled_from(["https", "http", "HTTPS", "ftp", "javascript"]),
    )
    @example(path="//evil.com", query="", authority="example.com", scheme="https")
    @example(path="/", query="", authority="example.com@evil.com", scheme="https")
    @example(path="/", query="", authority="evil.com\\@example.com", scheme="https")
    @example(path="/\\evil.com", query="", authority="example.com", scheme="https")
    @example(path="", query="", authority="example.com", scheme="https")
    @example(path="", query="a=%0a", authority="example.com", scheme="https")
    @example(path="", query="", authority="EXAMPLE.com", scheme="HTTPS")
    def test_whatever_comes_out_leads_to_an_allowed_host_and_is_a_url(
        self, path: str, query: str, authority: str, scheme: str
    ) -> None:
        try:
            url = tag(f"{scheme}://{authority}{path}?{query}", **VALUES)
        except Invalid:
            return
        parts = urlsplit(url)
        assert parts.scheme in ("http", "https")
        assert parts.username is parts.password is None
        assert parts.netloc.lower() in HOSTS or parts.netloc.lower().endswith(".example.org")
        assert not parts.path.startswith("//")
        assert url.isascii()
        assert url.isprintable()
        assert "\\" not in url
        assert " " not in url

    @given(
        path=st.sampled_from(["", "/", "/a/b%20c", "/a//b"]),
        query=QUERY,
        fragment=QUERY,
        has_fragment=st.booleans(),
    )
    @example(
        path="/", query="utm_source=1&utm%5Fterm=2&UTM_X=3&a=utm_source", fragment="f", has_fragment=True
    )
    @example(path="/", query="&", fragment="", has_fragment=True)
    def test_the_rest_of_the_link_stays_and_tagging_twice_is_tagging_once(
        self, path: str, query: str, fragment: str, *, has_fragment: bool
    ) -> None:
        end = f"#{fragment}" if has_fragment else ""
        url = tag(f"https://example.com{path}?{query}{end}", **VALUES)
        assert url.startswith(f"https://example.com{path}?")
        assert url.endswith("utm_source=a%20b%26c&utm_campaign=c_m&utm_content=x1" + end)
        kept = [pair for pair in query.split("&") if not re.match(r"utm(_|%5f)", pair, re.IGNORECASE)]
        assert [pair for pair in kept if pair] == [
            pair for pair in urlsplit(url).query.split("&")[:-3] if pair
        ]
        assert tag(url, **VALUES) == url

    @pytest.mark.parametrize(
        ("url", "allowed"),
        [
            ("https://example.com", True),
            ("https://EXAMPLE.com/", True),
            ("http://example.com?x", True),
            ("https://www.example.com/", False),
            ("https://a.example.org/", True),
            ("https://a.b.example.org/", True),
            ("https://example.org/", False),
            ("https://evilexample.org/", False),
            ("https://example.net:8443/", True),
            ("https://example.net/", False),
            ("https://example.com:443/", False),
            ("https://example.com./", False),
            ("https:///example.com/", False),
            ("https://example.com%2f@evil.com/", False),
            ("https://example.com%00.evil.com/", False),
            ("https://example.com%E3%80%82evil.com/", False),
            ("https://2130706433/", False),
        ],
    )
    def test_a_host_is_compared_as_text(self, url: str, *, allowed: bool) -> None:
        if allowed:
            assert tag(url, **VALUES).startswith(url.split("?", maxsplit=1)[0])
            return
        with pytest.raises(Invalid) as refusal:
            tag(url, **VALUES)
        assert refusal.value.field == "url"

    def test_credentials_are_named_for_what_they_are(self) -> None:
        with pytest.raises(Invalid, match="without credentials"):
            tag("https://a:b@example.com/", **VALUES)

    def test_a_contract_without_hosts_tags_nothing(self) -> None:
        with pytest.raises(Invalid):
            tag("https://example.com/", terms=contract(allowed_hosts=()), **VALUES)

    def test_a_link_that_would_be_too_long_is_refused(self) -> None:
        with pytest.raises(Invalid) as refusal:
            tag("https://example.com/" + "a" * 2_020, **VALUES)
        assert refusal.value.field == "url"

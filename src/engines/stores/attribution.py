"""Attribution: what a contract says of a platform's events and links, and links made by it.

Owns the contract's contents and their rules, judging an event's fields by a contract, and tagging a URL.
Leaves which contract is in force to `stores/attribution_contracts.py`, and the events to
`stores/analytics.py`.

A template says for each of its `utm_*` parameters what a value looks like: text that stands for itself, and
placeholders `{name}`. A placeholder stands for 1 to 100 of `A-Z a-z 0-9 . _ ~ -`, without the character that
follows it in the template: so each value is read in one way, from left to right, without going back.

A link is tagged only where its host is one that the contract allows, compared as text: what browsers and
libraries read in different ways (credentials, backslashes, control characters, text that is not ASCII, a path
that begins with two slashes) is refused rather than mended. `utm_*` parameters that the link has, in whatever
spelling, are replaced, so tagging twice is tagging once; the rest of the query, and the fragment, stay byte
for byte.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Annotated, Any, Final, Protocol
from urllib.parse import quote, unquote

import msgspec

from engines.errors import Invalid
from engines.scope import RequestContext
from engines.stores.scoped import validated

UTM_FIELDS: Final = ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content")
UTM_CHARS_MAX: Final = 256
URL_CHARS_MAX: Final = 2_048
TITLE_CHARS_MAX: Final = 512
TEMPLATE_CHARS_MAX: Final = 200
PLACEHOLDER_VALUE_CHARS_MAX: Final = 100
HOSTS_MAX: Final = 100
HOST_CHARS_MAX: Final = 255
DESCRIPTION_CHARS_MAX: Final = 5_000
ALLOWED_FIELDS_MAX: Final = 100
# Of an event's fields those that describe a page; a contract may keep them out.
PAGE_FIELDS: Final = ("page_url", "page_title", "referrer")
PAYLOAD_PREFIX: Final = "payload."

Platform = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}\Z")]
UtmValue = Annotated[str, msgspec.Meta(min_length=1, max_length=UTM_CHARS_MAX)]
Template = Annotated[str, msgspec.Meta(min_length=1, max_length=TEMPLATE_CHARS_MAX)]
AllowedField = Annotated[
    str, msgspec.Meta(pattern=r"^(page_url|page_title|referrer|payload\.[A-Za-z0-9_.-]{1,64})\Z")
]
PageTitle = Annotated[str, msgspec.Meta(max_length=TITLE_CHARS_MAX)]
Url = Annotated[str, msgspec.Meta(min_length=1, max_length=URL_CHARS_MAX)]
PlaceholderName = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,31}\Z")]

_utm_of: Final = attrgetter(*UTM_FIELDS)
_NO_UTM: Final = (None,) * len(UTM_FIELDS)
_page_of: Final = attrgetter(*PAGE_FIELDS)
_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]{0,31})\}")
_LITERAL = re.compile(r"[ -z|~]*")  # Printable ASCII without braces.
_VALUE_CHARACTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-"
_VALUE = re.compile(rf"[A-Za-z0-9._~-]{{1,{PLACEHOLDER_VALUE_CHARS_MAX}}}")
_ANY_BELOW: Final = "*."
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
# A name, not an address: `0x7f.1` and the like mean different hosts to different readers.
_HOST = re.compile(rf"(?:{_LABEL}\.)*[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?(?::[1-9][0-9]{{0,4}})?")
# RFC 3986, section 2: what a URL may hold, each percent sign with its two digits; appendix B: its parts.
_URL_TEXT = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*")
_URL_PARTS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(#.*)?")
_ENCODED_CONTROL = re.compile(r"%(?:[01][0-9A-Fa-f]|7[Ff])")


class AttributionContract(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What holds for a platform.

    `utm_template`: the `utm_*` parameters that its events and links may have, each with a template.
    `allowed_fields`: of `page_url`, `page_title`, `referrer` and `payload.NAME` those that its events may
    have; None: all. `allowed_hosts`: where its links may lead, as `host` or `host:port` in lower case; `*.`
    before a host stands for all below it.
    """

    platform: Platform
    utm_template: dict[str, Template] = msgspec.field(default_factory=dict)
    allowed_fields: (
        Annotated[tuple[AllowedField, ...], msgspec.Meta(max_length=ALLOWED_FIELDS_MAX)] | None
    ) = None
    allowed_hosts: Annotated[tuple[str, ...], msgspec.Meta(max_length=HOSTS_MAX)] = ()
    description: Annotated[str, msgspec.Meta(max_length=DESCRIPTION_CHARS_MAX)] = ""


class ContractRef(msgspec.Struct, frozen=True):
    """A contract, at one of its versions."""

    id: str
    version: int


class ContractInForce(msgspec.Struct, frozen=True):
    """A contract and which one it is."""

    ref: ContractRef
    terms: AttributionContract


class Contracts(Protocol):
    """How the contract in force for a platform is found."""

    async def contract_in_force(self, context: RequestContext, platform: str) -> ContractInForce | None:
        """The one that holds now for the tenant, env and bound project; None where none does.

        Raises MissingRoute, ForbiddenBackendClass, Throttled, Unavailable, BackendRefused, Corrupt.
        """
        ...


class LinkToTag(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A link to be tagged by the platform's contract. `values`: for the template's placeholders, by name."""

    url: Url
    platform: Platform
    values: Annotated[dict[PlaceholderName, str], msgspec.Meta(max_length=32)] = msgspec.field(
        default_factory=dict
    )


class TaggedLink(msgspec.Struct, frozen=True):
    """The link with its parameters, and the version of the contract that says them."""

    url: str
    platform: str
    utm: dict[str, str]
    contract: ContractRef


def check_contract(contract: AttributionContract) -> None:
    """What its types cannot say. Raises Invalid with the `field` that breaks a rule."""
    for parameter, template in contract.utm_template.items():
        if parameter not in UTM_FIELDS:
            raise Invalid(
                f"the parameters of a template are {', '.join(UTM_FIELDS)}", field=f"utm_template.{parameter}"
            )
        _check_template(template, f"utm_template.{parameter}")
    for index, host in enumerate(contract.allowed_hosts):
        if len(host) > HOST_CHARS_MAX or not _HOST.fullmatch(host.removeprefix(_ANY_BELOW)):
            raise Invalid(
                "a host name in lower case, with a port where it is not the scheme's own",
                field=f"allowed_hosts[{index}]",
            )


class FieldRules:
    """A contract made ready to judge the events of one request, most of which have the same parameters."""

    def __init__(self, contract: AttributionContract) -> None:
        self._templates = contract.utm_template
        self._well: set[tuple[str | None, ...]] = {_NO_UTM}
        """The parameters that were found to keep the templates."""
        allowed = contract.allowed_fields
        self._refused_pages = [
            (name, attrgetter(name)) for name in PAGE_FIELDS if allowed is not None and name not in allowed
        ]
        self._members = None
        if allowed is not None:
            members = (name for name in allowed if name.startswith(PAYLOAD_PREFIX))
            self._members = {name.removeprefix(PAYLOAD_PREFIX) for name in members}

    def check(self, event: msgspec.Struct, payload: Mapping[str, Any]) -> None:
        """Judge an event that has `UTM_FIELDS` and `PAGE_FIELDS`, and the members of its payload.

        Raises Invalid with the `field` that the contract does not allow, or whose value breaks its template.
        """
        values = _utm_of(event)
        if values not in self._well:
            self._check_utm(values)
            self._well.add(values)
        for name, value_of in self._refused_pages:
            if value_of(event) is not None:
                raise _not_allowed(name)
        if self._members is not None and not payload.keys() <= self._members:
            raise _not_allowed(PAYLOAD_PREFIX + min(payload.keys() - self._members))

    def _check_utm(self, values: Sequence[str | None]) -> None:
        for name, value in zip(UTM_FIELDS, values, strict=True):
            if value is None:
                continue
            template = self._templates.get(name)
            if template is None:
                raise Invalid("the platform's attribution contract has no such parameter", field=name)
            if not _pattern_of(template).fullmatch(value):
                raise Invalid(f"the platform's attribution contract wants {template!r}", field=name)


def _not_allowed(field: str) -> Invalid:
    return Invalid("the platform's attribution contract does not allow this field", field=field)


def tagged(link: LinkToTag, contract: ContractInForce) -> TaggedLink:
    """Raises Invalid with the `field`: what is no safe URL, another host, a placeholder without a value."""
    link = validated(link)
    utm = _filled(contract.terms, link.values)
    url = _with_parameters(link.url, utm, contract.terms.allowed_hosts)
    return TaggedLink(url, link.platform, utm, contract.ref)


# --- templates ---


def _check_template(template: str, field: str) -> None:
    literals = _PLACEHOLDER.split(template)[::2]
    if not all(_LITERAL.fullmatch(literal) for literal in literals):
        raise Invalid("printable ASCII, and placeholders such as {campaign}", field=field)
    if any(literal == "" for literal in literals[1:-1]):
        raise Invalid("between two placeholders there is text", field=field)
    names = _PLACEHOLDER.findall(template)
    if len(set(names)) < len(names):
        raise Invalid("a placeholder stands once in a template", field=field)


@functools.lru_cache(maxsize=1_024)
def _pattern_of(template: str) -> re.Pattern[str]:
    """What a value by this template matches whole, in time linear in its length."""
    return re.compile("".join(_pattern_parts(template)))


def _pattern_parts(template: str) -> Iterator[str]:
    parts = _PLACEHOLDER.split(template)
    for literal, following in zip(parts[::2], (*parts[2::2], None), strict=True):
        yield re.escape(literal)
        if following is not None:
            characters = _VALUE_CHARACTERS.replace(following[:1], "") if following else _VALUE_CHARACTERS
            yield f"([{re.escape(characters)}]{{1,{PLACEHOLDER_VALUE_CHARS_MAX}}})"


def _filled(contract: AttributionContract, values: Mapping[str, str]) -> dict[str, str]:
    """Every parameter of the template, in the order that links have them."""
    for name, value in values.items():
        if not _VALUE.fullmatch(value):
            raise Invalid(
                f"1 to {PLACEHOLDER_VALUE_CHARS_MAX} letters, digits, '.', '_', '~' or '-'",
                field=f"values.{name}",
            )
    used = {name for template in contract.utm_template.values() for name in _PLACEHOLDER.findall(template)}
    for name in values:
        if name not in used:
            raise Invalid("the contract's template has no such placeholder", field=f"values.{name}")
    return {
        parameter: _filled_in(contract.utm_template[parameter], values, parameter)
        for parameter in UTM_FIELDS
        if parameter in contract.utm_template
    }


def _filled_in(template: str, values: Mapping[str, str], parameter: str) -> str:
    wanted = _PLACEHOLDER.findall(template)
    for name in wanted:
        if name not in values:
            raise Invalid("the contract's template asks for this value", field=f"values.{name}")
    value = _PLACEHOLDER.sub(lambda match: values[match[1]], template)
    read = _pattern_of(template).fullmatch(value)
    if read is None or list(read.groups()) != [values[name] for name in wanted]:
        raise Invalid(f"a value holds the character that ends it in {template!r}", field=parameter)
    if len(value) > UTM_CHARS_MAX:
        raise Invalid(f"a parameter has at most {UTM_CHARS_MAX} characters", field=parameter)
    return value


# --- links ---


def _with_parameters(url: str, utm: Mapping[str, str], allowed_hosts: tuple[str, ...]) -> str:
    scheme, authority, path, query, fragment = _parts(url)
    if not any(_is_allowed(authority.lower(), allowed) for allowed in allowed_hosts):
        raise Invalid("the platform's attribution contract does not allow this host", field="url")
    kept = [pair for pair in query.split("&") if not _is_utm(pair)] if query else []
    added = [f"{name}={quote(value, safe='')}" for name, value in utm.items()]
    pairs = "&".join([*kept, *added])
    found = f"{scheme}://{authority}{path}{'?' if pairs else ''}{pairs}{fragment}"
    if len(found) > URL_CHARS_MAX:
        raise Invalid(f"the tagged link is longer than {URL_CHARS_MAX} characters", field="url")
    return found


def _parts(url: str) -> tuple[str, str, str, str, str]:
    """Scheme, host with port, path, query and fragment, each as it was written."""
    if not _URL_TEXT.fullmatch(url):
        raise Invalid("a URL as RFC 3986 has it, everything else percent-encoded", field="url")
    match = _URL_PARTS.fullmatch(url)
    if match is None or match[1].lower() not in ("http", "https"):
        raise Invalid("a whole URL that begins with https:// or http://", field="url")
    scheme, authority, path, query, fragment = match.groups(default="")
    if "@" in authority:
        raise Invalid("a URL without credentials", field="url")
    if not _HOST.fullmatch(authority.lower()):
        raise Invalid("a host name, with a port where it is not the scheme's own", field="url")
    if path.startswith("//") or _ENCODED_CONTROL.search(url):
        raise Invalid("a path without two slashes at its beginning, and no control characters", field="url")
    return scheme, authority, path, query, fragment


def _is_allowed(host: str, allowed: str) -> bool:
    if allowed.startswith(_ANY_BELOW):
        return host.endswith(allowed.removeprefix("*"))
    return host == allowed


def _is_utm(pair: str) -> bool:
    name = unquote(pair.partition("=")[0], errors="replace")
    return name.lower().startswith("utm_")

"""Firestore in native mode: one Commit a write, conditioned by the service itself.

Owns what a backend record of it holds, and what an operator must know of it. Importing this module needs no
package of Google's: they come with `open_driver`. Leaves the six verbs to `documents.py`, messages to
`messages.py`, the channel and the translation of errors to `connection.py`, and indexes to `provisioning.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from engines.clock import Clock
from engines.errors import BackendRefused, Invalid
from engines.ports.documents import DocumentDriver, DriverDescription
from engines.ports.secrets import Secret

DESCRIPTION: Final = DriverDescription(
    name="firestore",
    backend_class="cloud",
    consistency="strong: a read sees every commit acknowledged before it",
    durability="acknowledged after the service replicated the commit: over zones, or over regions where the"
    " database is multi-regional",
    config={
        "project": "the Google Cloud project",
        "database": "an existing database in native mode, default (default)",
        "collection": "default engines; two deployments share a database under two collections",
        "endpoint": "host:port of an emulator, spoken to without TLS and credential; default the service",
        "manage_indexes": "whether provisioning checks the database, exempts fields from indexes and sets the"
        " TTL policy; default true. False for an emulator, which has no such API, or where somebody else"
        " does it",
    },
    secrets={
        "service_account": "a service account's key, the JSON; without it the application default credentials"
    },
    limits={
        "document": "1 MiB with its names",
        "request": "10 MiB",
        "writes of keys that follow each other, as a log's do": "about 500 a second in one partition",
        "writes of one document": "about one a second sustained; bursts are taken",
        "expires_at": "until the year 9999",
        "calls at once": "100 on the one connection of a process; more wait in it",
    },
    costs={
        "write": "one document write or delete for each op, whatever its size; one document read more for"
        " each Match at a version that this process has neither read nor written, and one for each"
        " conditioned op after a refusal",
        "get": "one document read for each key, found or not",
        "scan": "one document read for each document passed, expired ones included, one for the document"
        " behind a page, and those that the service sent ahead of the end of a page; at least one",
        "expiry": "one document delete for each document that the TTL policy removes",
        "storage": "bodies and names, and two index entries of the key for each document",
    },
    provisions="in the database: exemptions of body, version and exp from single-field indexes, and the TTL"
    " policy on exp, for the collection group named by `collection`; never the database",
    policy="""# To run:
gcloud projects add-iam-policy-binding PROJECT --role=roles/datastore.user --member=serviceAccount:ENGINES
# With manage_indexes true, besides, at every start: the driver looks whether all is in place.
gcloud projects add-iam-policy-binding PROJECT --role=roles/datastore.indexAdmin \\
  --member=serviceAccount:ENGINES
# By hand instead, with manage_indexes false; name the database that the backend names:
gcloud firestore fields ttls update exp --collection-group=engines --enable-ttl \\
  --project=PROJECT --database=DATABASE
for field in exp body version; do
  gcloud firestore indexes fields update $field --collection-group=engines --disable-indexes \\
    --project=PROJECT --database=DATABASE
done""",
    prerequisites=(
        "its API switched on: `gcloud services enable firestore.googleapis.com`",
        "a Google Cloud project with a Firestore database in native mode",
        "made by `gcloud firestore databases create --type=firestore-native --location=LOCATION`",
        "a service account with the roles below: attached to the machine, or its key as a secret",
        "the right to set indexes and the TTL policy, or both set by hand and manage_indexes false",
    ),
    example={"project": "your-project"},
    control_plane_url="firestore://PROJECT[/DATABASE][?collection=NAME]",
    proven={
        "Google's emulator behind a journaling pass-through": "the conformance kit, the log, moves,"
        " a disturbed network, and in script/soak 200 times kill -9 of server, database or both under load,"
        " with 12,497 changes acknowledged and none lost or doubled; the emulator keeps its data in memory,"
        " and the pass-through makes it durable",
        "Google Cloud Firestore": "not run: quotas, indexes, the TTL policy and the roles rest on its"
        " documentation",
    },
)

_PROJECT = re.compile(r"[a-z][a-z0-9.:-]{0,99}")
_DATABASE = re.compile(r"\(default\)|[a-z][a-z0-9-]{2,61}[a-z0-9]")
_COLLECTION = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_ENDPOINT = re.compile(r"([A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a backend record of this driver holds. A service account's key is a secret and no part of it."""

    project: str
    database: str = "(default)"
    collection: str = "engines"
    endpoint: str | None = None
    manage_indexes: bool = True

    def __post_init__(self) -> None:
        if not _PROJECT.fullmatch(self.project):
            raise ValueError("project is the id of a Google Cloud project")
        if not _DATABASE.fullmatch(self.database):
            raise ValueError("database is (default) or a name of 4 to 63 small letters, digits and hyphens")
        if not _COLLECTION.fullmatch(self.collection):
            raise ValueError("collection is a plain lower-case name of at most 63 characters")
        if self.endpoint is not None and not _ENDPOINT.fullmatch(self.endpoint):
            raise ValueError("endpoint is host:port")


def config_from_url(url: str) -> tuple[dict[str, Any], str | None]:
    """`firestore://PROJECT/DATABASE?collection=…&endpoint=…` as a record's config; no password is in it.

    Without a database it is `(default)`. Parameters are the other fields of `Config`. Raises Invalid.
    """
    try:
        parts = urlsplit(url)
        given: dict[str, Any] = {"project": unquote(parts.netloc), **dict(parse_qsl(parts.query))}
    except ValueError:
        raise _bad_url() from None
    if database := unquote(parts.path[1:]):
        given["database"] = database
    if parts.scheme != "firestore":
        raise _bad_url()
    try:
        config = msgspec.convert(given, Config, strict=False)
    except msgspec.ValidationError:
        raise _bad_url() from None
    return {key: value for key, value in msgspec.to_builtins(config).items() if value is not None}, None


def _bad_url() -> Invalid:
    return Invalid(
        "this is no firestore://PROJECT/DATABASE, with collection, endpoint or manage_indexes behind a ?",
        field="control_plane",
    )


def open_driver(config: Config, secrets: Mapping[str, Secret], clock: Clock) -> DocumentDriver:
    """Connects to nothing yet. Raises BackendRefused where the extra is not installed."""
    try:
        from engines.drivers.documents.firestore.documents import FirestoreDocuments
    except ModuleNotFoundError as error:
        raise BackendRefused(
            "the driver firestore is not installed: pip install 'engines[firestore]'"
        ) from error
    return FirestoreDocuments(config, secrets.get("service_account"), clock)

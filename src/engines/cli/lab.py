"""`engines lab`: a whole deployment in one directory, for trying things out.

Owns the lab's directory: two SQLite files (control plane and data), the key that signs the lab's tokens, the
JWKS by which they are verified like any other issuer's, and `lab.json`, from which programs read the URL and
a token for each role. What is seeded stands in `control/seeds/lab.json`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from joserfc import jwt
from joserfc.errors import SecurityWarning
from joserfc.jwk import OKPKey

from engines.cli.serve import Served, bind, run, url_of
from engines.clock import Clock, SystemClock
from engines.control.bootstrap import apply_seed, bootstrap, read_seed
from engines.control.records import Backend
from engines.errors import Invalid
from engines.wiring import Engines, open_control_plane

ISSUER: Final = "urn:engines:lab"
AUDIENCE: Final = "engines"
TOKEN_DAYS: Final = 30
SYSTEM_ADMIN_ROLE: Final = "system_admin"


def lab(*, dir: Path = Path(".lab"), port: int = 8080) -> None:  # noqa: A002 (the option's name is the contract)
    """Serve a lab from one directory until SIGINT or SIGTERM; start it again and the data is there."""
    directory = dir.resolve()
    _make_private(directory)
    clock = SystemClock()
    seed = read_seed("lab")
    control_plane = f"sqlite://{quote(str(directory))}/control.db"
    with _alone_in(directory), bind("127.0.0.1", port) as listener:
        key = _signing_key(directory)
        asyncio.run(_prepare(control_plane, directory, seed))
        url = url_of(listener)
        contents = _lab_file(url, seed, key, clock)
        _write_private(directory / "lab.json", json.dumps(contents, indent=2) + "\n")

        async def announce(_: Engines, __: str) -> None:
            print(_welcome(url, contents, directory), flush=True)

        what = Served(
            control_plane=control_plane,
            secrets={"directory": str(directory / "secrets")},
            host="127.0.0.1",
            port=port,
        )
        run(what, listener, announce)


async def _prepare(control_plane: str, directory: Path, seed: Any) -> None:
    """Idempotent: what was changed or deleted since the first start stays so."""
    data = Backend(
        backend_id="lab",
        driver="sqlite",
        backend_class="host_local",
        config={"path": str(directory / "data.db")},
        offered_to="*",
    )
    issuer = {
        "issuer_id": "lab",
        "issuer": ISSUER,
        "audience": AUDIENCE,
        "jwks_file": str(directory / "jwks.json"),
    }
    async with open_control_plane(control_plane) as control:
        await bootstrap(control.store, control.record, data=data, host_local=control.host_local)
        await apply_seed(control.store, {**seed, "issuers": [issuer]})


def _signing_key(directory: Path) -> OKPKey:
    """The lab's own key, made once. Its public half is what the server reads."""
    path = directory / "signing-key.json"
    if not path.exists():
        key = OKPKey.generate_key("Ed25519", auto_kid=True)
        _write_private(path, json.dumps(key.as_dict(private=True)))
    key = OKPKey.import_key(json.loads(path.read_text()))
    public = {**key.as_dict(private=False), "alg": "EdDSA", "use": "sig"}
    _write_private(directory / "jwks.json", json.dumps({"keys": [public]}))
    return key


def _lab_file(url: str, seed: Any, key: OKPKey, clock: Clock) -> dict[str, Any]:
    memberships = {row["user_id"]: row for row in seed["memberships"]}
    tenants = [row["tenant_id"] for row in seed["tenants"]]
    users = {}
    for row in seed["users"]:
        user_id = row["user_id"]
        member = memberships.get(user_id)
        users[user_id] = {
            "role": None if member is None else _role_word(member, tenants),
            "tenant_id": None if member is None else member["tenant_id"],
            "token": _token(row["identities"][0]["sub"], key, clock),
        }
    return {"url": url, "tenant_id": tenants[0], "users": users}


def _role_word(membership: Any, lab_tenants: list[str]) -> str:
    return membership["role"] if membership["tenant_id"] in lab_tenants else SYSTEM_ADMIN_ROLE


def _token(subject: str, key: OKPKey, clock: Clock) -> str:
    now = int(clock.now())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + TOKEN_DAYS * 86_400}
    with warnings.catch_warnings():
        # RFC 9864 renames EdDSA to Ed25519; verifiers in the field do not know the new name yet.
        warnings.simplefilter("ignore", SecurityWarning)
        return jwt.encode({"alg": "EdDSA", "kid": key.kid}, claims, key, algorithms=["EdDSA"])


def _make_private(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (directory / "secrets").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise Invalid(f"cannot use {directory}: {error.strerror}", field="dir") from error


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """One server to a directory, whose lab.json names one URL. The system lets go with the process."""
    with (directory / "lab.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Invalid(f"a lab runs in {directory}; its lab.json says where", field="dir") from error
        yield


def _write_private(path: Path, text: str) -> None:
    """Whole or not at all, readable by this user alone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _welcome(url: str, contents: dict[str, Any], directory: Path) -> str:
    owner = next(user for user in contents["users"].values() if user["role"] == "owner")
    bearer = f"-H 'Authorization: Bearer {owner['token']}'"
    body = """-H 'Content-Type: application/json' -d"""
    note = '{"title": "First note", "content": "It will be here after a restart."}'
    event = '{"event_type": "analytics", "payload": {"clicked": "hello"}}'
    return f"""Engines listens on {url}
This is a LAB: everything lies in {directory} on this host.
Ctrl-C stops it; start it again and it is all there.
Tokens for every role: {directory}/lab.json. Here is one of an owner of {contents["tenant_id"]}:

{owner["token"]}

Three things to try:

curl -sS {url}/me {bearer}

curl -sS {url}/notes {bearer} {body} '{note}'

curl -sS {url}/events {bearer} {body} '{event}'
"""

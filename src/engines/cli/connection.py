"""Which server a command speaks to, and as whom.

Owns the options that every client command has and where their defaults come from: the settings `ENGINES_URL`
and `ENGINES_TOKEN`, or the `lab.json` of a lab's directory. Leaves calls to `engines.client`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cyclopts import Parameter

from engines.client import AsyncEngines, RetryPolicy
from engines.client.transport import TIMEOUT_S
from engines.errors import Invalid
from engines.settings import read_settings

OWNER: Final = "owner"
SYSTEM_ADMIN: Final = "system_admin"
LAB_FILE: Final = "lab.json"


class LabUser(msgspec.Struct, frozen=True):
    """One user of a lab, with a token that works."""

    token: str
    role: str | None = None
    tenant_id: str | None = None


class LabFile(msgspec.Struct, frozen=True):
    """What a lab writes for programs."""

    url: str
    tenant_id: str
    users: dict[str, LabUser]

    def user(self, name: str) -> LabUser:
        """The user with this id, or the first with this role. Raises Invalid."""
        if name in self.users:
            return self.users[name]
        for user in self.users.values():
            if user.role == name:
                return user
        raise Invalid(f"no user of the lab is {name!r}: {', '.join(sorted(self.users))}", field="as")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where the server is, and who asks."""

    url: str | None = None
    "The server's address. Default: ENGINES_URL."

    token: str | None = None
    "A JWT or an API key. Default: ENGINES_TOKEN, which other users of this host cannot see."

    tenant: str | None = None
    "The tenant to act in. Default: the credential's own."

    lab: Path | None = None
    "A lab's directory: address and token come from its lab.json."

    as_: Annotated[str | None, Parameter(name="--as")] = None
    "With --lab: a user id, or a role such as owner, member or system_admin."

    env: str | None = None
    "The tenant's env. Default: the tenant's own."

    def client(
        self, *, lab_user: str = OWNER, retry: RetryPolicy | None = None, timeout_s: float = TIMEOUT_S
    ) -> AsyncEngines:
        """A client. `lab_user` is whom a lab's directory stands for unless --as says. Raises Invalid."""
        url, token = self.resolved(lab_user=lab_user)
        return AsyncEngines(url, token, tenant_id=self.tenant, env=self.env, retry=retry, timeout_s=timeout_s)

    def resolved(self, *, lab_user: str = OWNER) -> tuple[str, str]:
        """Address and token. Raises Invalid where either is not known."""
        if self.lab is not None:
            if self.url is not None or self.token is not None:
                raise Invalid("--lab brings address and token: leave out --url and --token", field="lab")
            lab = read_lab(self.lab)
            return lab.url, lab.user(self.as_ or lab_user).token
        if self.as_ is not None:
            raise Invalid("--as picks a user of a lab: give --lab too", field="as")
        settings = read_settings()
        url, token = self.url or settings.url, self.token or settings.token
        if url is None:
            raise Invalid("say where the server is: --url, ENGINES_URL, or --lab DIR", field="url")
        if token is None:
            raise Invalid("say who asks: ENGINES_TOKEN, --token, or --lab DIR", field="token")
        return url, token


DEFAULT: Final = Connection()


def read_lab(directory: Path) -> LabFile:
    """The lab file of a directory. Raises Invalid."""
    path = directory / LAB_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=LabFile)
    except OSError as error:
        raise Invalid(
            f"{path} cannot be read: {error.strerror}; is it a lab's directory?", field="lab"
        ) from error
    except msgspec.DecodeError as error:
        raise Invalid(f"{path} is no lab file: {error}", field="lab") from error

"""The rules of identity: from a verified credential and what a request names to a tenant, mode, surface, …

Owns precedence (server binding, then claims, then headers, then defaults kept as data), case by case, and
what is a mismatch. A name that is not the caller's is refused in one way, whether it exists or not. Leaves
proving the credential to `credentials.py`, what a key's role comes to beside its user's to `powers.py`, and
what varies with each request to `context.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import msgspec

from engines.control.directory import Directory
from engines.control.records import App, Membership, Surface, Tenant
from engines.control.tenants import LAB_MODE
from engines.errors import BackendRefused, Forbidden, TenantRequired
from engines.identity.credentials import Credential
from engines.identity.headers import APP, ENV, MODE, NAMES, PROJECT, SURFACE, TENANT, USER, Sent, text
from engines.identity.powers import Powers, powers_of
from engines.identity.refusals import NAMED_CHARACTERS_MAX, Refusal, RefusedContext
from engines.scope import (
    ADMIN_ROLES,
    SYSTEM_TENANT,
    RequestContext,
    check_env,
    check_id,
    check_tenant_id,
    normalise_surface,
)


class Own(msgspec.Struct, frozen=True):
    """The caller's own tenant, what they are there, how it was found; and the tenant an admin acts on."""

    tenant: Tenant
    powers: Powers
    source: str
    acting_on: str | None = None


class Derivation:
    """Derives one context. Holds what one request says; made anew for each."""

    def __init__(self, directory: Directory, credential: Credential, sent: Sent, *, request_id: str) -> None:
        self._directory = directory
        self._credential = credential
        self._sent = sent
        self._request_id = request_id
        self._audit_tenant_id = SYSTEM_TENANT
        self._sources: dict[str, str] = {"user_id": credential.kind}

    async def context(self) -> RequestContext:
        """All that does not vary with each request; the rest is left empty.

        Raises Invalid, TenantRequired, Forbidden, RefusedContext, Unavailable, BackendRefused.
        """
        own = await self._own()
        tenant = own.tenant
        self._audit_tenant_id = tenant.tenant_id
        self._sources |= {"tenant_id": own.source, "roles": own.powers.source}
        self._check_user()
        surface = await self._surface(tenant)
        mode = await self._mode(tenant, surface)
        env = self._env(tenant)
        app, project_id = await self._app_and_project(tenant, surface)
        return RequestContext(
            tenant_id=tenant.tenant_id,
            mode=mode,
            env=env,
            user_id=self._credential.user_id,
            roles=own.powers.roles,
            permissions=own.powers.permissions,
            os_id=surface.os_id,
            surface_id=surface.surface_id,
            app_id=None if app is None else app.app_id,
            project_id=project_id,
            run_id="",
            step_id="",
            request_id="",
            trace_id="",
            span_id="",
            lab=self._directory.lab or tenant.mode == LAB_MODE,
            sources=self._sources,
            acting_on=own.acting_on,
            key_id=self._credential.key_id,
            key_made_by=self._credential.made_by,
        )

    async def home(self) -> str:
        """The tenant whose spine is told of the caller's refusals: the bound one, else the only one that the
        user is a member of, else t_system."""
        bound = self._credential.tenant_id
        if bound is not None and await self._accepted(bound) is not None:
            return bound
        accepted = await self._all_accepted()
        return accepted[0].tenant_id if len(accepted) == 1 else SYSTEM_TENANT

    async def check_invited(self, tenant_id: str, user_id: str) -> None:
        """A call in which an invited user names themselves and a tenant that is not theirs yet.

        Raises Invalid, RefusedContext, Forbidden (a key of an earlier membership).
        """
        self._audit_tenant_id = await self.home()
        if self._credential.tenant_id not in (None, tenant_id):
            self._refuse("tenant_id", tenant_id)
        named = self._named(TENANT, check_tenant_id)
        if named not in (None, tenant_id):
            self._refuse(NAMES[TENANT], named)
        if user_id != self._credential.user_id:
            self._refuse("user_id", user_id)
        self._check_user()
        membership = await self._directory.membership(tenant_id, user_id)
        if membership is not None:
            self._check_key_of(membership)

    async def is_lab_of(self, tenant_id: str) -> bool:
        """Whether a member of the tenant, also an invited one, is in a lab.

        To anybody else no tenant is a lab of its own: nobody learns here which tenants there are.
        """
        if self._directory.lab:
            return True
        if await self._directory.membership(tenant_id, self._credential.user_id) is None:
            return False
        tenant = await self._directory.tenant(tenant_id)
        return tenant is not None and tenant.mode == LAB_MODE

    # --- the tenant ---

    async def _own(self) -> Own:
        named = self._named(TENANT, check_tenant_id)
        bound = self._credential.tenant_id
        if bound is not None:
            return await self._own_bound(bound, named)
        if named is None:
            return await self._own_only()
        membership = await self._accepted(named)
        if membership is not None:
            powers = await self._powers(membership)
            return await self._found(membership.tenant_id, powers, f"header {NAMES[TENANT]}")
        self._audit_tenant_id = await self.home()
        system = await self._accepted(SYSTEM_TENANT)
        if system is None or system.role not in ADMIN_ROLES:
            self._refuse(NAMES[TENANT], named)
        return await self._acting(await self._powers(system), "membership", named)

    async def _own_bound(self, bound: str, named: str | None) -> Own:
        """A key's tenant, or the one in a token's claim: the user must be its member all the same."""
        membership = await self._accepted(bound)
        if membership is None:
            if self._credential.role is not None:
                raise Forbidden("the key's user is no member of its tenant")
            self._audit_tenant_id = await self.home()
            self._refuse("tenant_id", bound)
        self._check_key_of(membership)
        self._audit_tenant_id = bound
        powers = await self._powers(membership)
        source = self._binding_source("tenant_id")
        if named in (None, bound):
            return await self._found(bound, powers, source)
        if bound != SYSTEM_TENANT or not powers.is_admin:
            self._refuse(NAMES[TENANT], named)
        return await self._acting(powers, source, named)

    def _check_key_of(self, membership: Membership) -> None:
        """A key is one membership's: whoever was removed and let in again does not bring their old keys."""
        if self._credential.membership not in (None, membership.began_at_version):
            raise Forbidden("the key ended with an earlier membership of its user")

    async def _own_only(self) -> Own:
        accepted = await self._all_accepted()
        if not accepted:
            raise Forbidden("you are a member of no tenant")
        if len(accepted) > 1:
            raise TenantRequired(
                "you are a member of several tenants: name one in X-Tenant-Id", field=NAMES[TENANT]
            )
        return await self._found(accepted[0].tenant_id, await self._powers(accepted[0]), "membership")

    async def _powers(self, membership: Membership) -> Powers:
        return await powers_of(self._directory, membership.role, self._credential.role)

    async def _acting(self, powers: Powers, source: str, named: str | None) -> Own:
        """An admin of t_system names the tenant that a control-plane call is about."""
        own = await self._found(SYSTEM_TENANT, powers, source)
        if named is None or await self._directory.tenant(named) is None:
            self._refuse(NAMES[TENANT], named)
        return msgspec.structs.replace(own, acting_on=named)

    async def _found(self, tenant_id: str, powers: Powers, source: str) -> Own:
        tenant = await self._directory.tenant(tenant_id)
        if tenant is None:
            raise Forbidden("the tenant is not there")
        return Own(tenant, powers, source)

    async def _accepted(self, tenant_id: str) -> Membership | None:
        membership = await self._directory.membership(tenant_id, self._credential.user_id)
        return membership if membership is not None and membership.status == "accepted" else None

    async def _all_accepted(self) -> list[Membership]:
        memberships = await self._directory.memberships_of(self._credential.user_id)
        return [membership for membership in memberships if membership.status == "accepted"]

    def _check_user(self) -> None:
        named = self._named(USER, check_id)
        if named not in (None, self._credential.user_id):
            self._refuse(NAMES[USER], named)

    # --- where in the product ---

    async def _surface(self, tenant: Tenant) -> Surface:
        """The credential's own, else the header's, else the tenant's default."""
        claimed, named = self._credential.surface_id, self._named(SURFACE, normalise_surface)
        found = None if claimed is None else await self._directory.surface(claimed)
        if claimed is not None and found is None:
            self._refuse("surface_id", claimed)
        if named is not None:
            asked = await self._directory.surface(named)
            if asked is None or (found is not None and asked.surface_id != found.surface_id):
                self._refuse(NAMES[SURFACE], named)
            if found is None:
                return self._from(f"header {NAMES[SURFACE]}", asked)
        if found is not None:
            return self._from(self._binding_source("surface_id"), found)
        default = await self._directory.surface(tenant.default_surface_id)
        if default is None:
            raise BackendRefused("the tenant's default surface is not there")
        return self._from("tenant default", default)

    def _from(self, source: str, surface: Surface) -> Surface:
        self._sources |= {"surface_id": source, "os_id": "surface"}
        return surface

    async def _mode(self, tenant: Tenant, surface: Surface) -> str:
        """The tenant's mode, or the surface's where that is narrower: it allows no class that the tenant's
        does not. A surface never widens what its tenant may use."""
        mode, self._sources["mode"] = tenant.mode, "tenant"
        if surface.mode is not None and surface.mode != tenant.mode:
            wide, narrow = await self._directory.mode(tenant.mode), await self._directory.mode(surface.mode)
            if (
                wide is not None
                and narrow is not None
                and set(narrow.allowed_classes) <= set(wide.allowed_classes)
            ):
                mode, self._sources["mode"] = surface.mode, "surface"
        if self._credential.mode not in (None, mode):
            self._refuse("mode", self._credential.mode)
        named = self._named(MODE, check_id)
        if named not in (None, mode):
            self._refuse(NAMES[MODE], named)
        return mode

    def _env(self, tenant: Tenant) -> str:
        """The claim's, else the header's, else the tenant's default; always one that the tenant declares."""
        claimed, named = self._credential.env, self._named(ENV, check_env)
        if claimed is not None and claimed not in tenant.envs:
            self._refuse("env", claimed)
        if named is not None and (named not in tenant.envs or claimed not in (None, named)):
            self._refuse(NAMES[ENV], named)
        self._sources["env"] = self._source("env", ENV, claimed, named, "tenant default")
        return claimed or named or tenant.default_env

    async def _app_and_project(self, tenant: Tenant, surface: Surface) -> tuple[App | None, str | None]:
        """The app that is named must be on the surface; the project's app, if it has one, the app that is
        bound. Where none is named the project's own app comes before the surface's default."""
        app = await self._named_app(surface)
        claimed, named = self._credential.project_id, self._named(PROJECT, check_id)
        if claimed is not None and named not in (None, claimed):
            self._refuse(NAMES[PROJECT], named)
        project_id = claimed or named
        if project_id is not None:
            field = "project_id" if claimed is not None else NAMES[PROJECT]
            project = await self._directory.project(tenant.tenant_id, project_id)
            if project is None:
                self._refuse(field, project_id)
            self._sources["project_id"] = self._source("project_id", PROJECT, claimed, named, "")
            if project.app_id is not None:
                of_project = await self._app_on(surface, project.app_id)
                if of_project is None or (app is not None and app != of_project):
                    self._refuse(field, project_id)
                if app is None:
                    self._sources["app_id"] = "project"
                    return of_project, project_id
        if app is None and surface.defaults.app_id is not None:
            app = await self._app_on(surface, surface.defaults.app_id)
            if app is not None:
                self._sources["app_id"] = "surface default"
        return app, project_id

    async def _named_app(self, surface: Surface) -> App | None:
        claimed, named = self._credential.app_id, self._named(APP, check_id)
        if claimed is not None and named not in (None, claimed):
            self._refuse(NAMES[APP], named)
        app_id = claimed or named
        if app_id is None:
            return None
        app = await self._app_on(surface, app_id)
        if app is None:
            self._refuse("app_id" if claimed is not None else NAMES[APP], app_id)
        self._sources["app_id"] = self._source("app_id", APP, claimed, named, "")
        return app

    async def _app_on(self, surface: Surface, app_id: str) -> App | None:
        app = await self._directory.app(app_id)
        return app if app is not None and app.surface_id == surface.surface_id else None

    # --- what all of them need ---

    def _named(self, slot: int, check: Callable[[str, str], str]) -> str | None:
        """What a header names. Raises Invalid for what can name nothing."""
        value = text(self._sent, slot)
        return None if value is None else check(value, NAMES[slot])

    def _binding_source(self, claim: str) -> str:
        return f"token claim {claim}" if self._credential.role is None else self._credential.kind

    def _source(self, claim: str, slot: int, claimed: str | None, named: str | None, default: str) -> str:
        if claimed is not None:
            return self._binding_source(claim)
        return default if named is None else f"header {NAMES[slot]}"

    def _refuse(self, field: str, named: str | None) -> NoReturn:
        refusal = Refusal(
            tenant_id=self._audit_tenant_id,
            user_id=self._credential.user_id,
            request_id=self._request_id,
            field=field,
            named=None if named is None else named[:NAMED_CHARACTERS_MAX],
        )
        raise RefusedContext(f"{field} names what is not yours", refusal=refusal)

"""What says on the wire that a caller is in a lab, where the whole deployment is one and where it is not."""

from engines.api.app import create_app
from engines.control.bootstrap import apply_seed
from engines.wiring import open_control_plane
from tests.api.client import Client
from tests.api.serving import serving
from tests.deployment.conftest import Open, token


async def test_who_answers_a_labs_invitation_is_told_that_it_is_one(
    control_plane_url: str, open_deployment: Open
) -> None:
    async with open_control_plane(control_plane_url) as control:
        invitations = [
            {"tenant_id": tenant_id, "user_id": "outsider", "role": "member", "status": "invited"}
            for tenant_id in ("t_a", "t_lab")
        ]
        lab = {"tenant_id": "t_lab", "name": "Lab", "mode": "lab", "default_surface_id": "chat"}
        await apply_seed(control.store, {"tenants": [lab], "memberships": invitations})
    engines = await open_deployment()
    async with (
        serving(create_app(engines), lifespan="off") as (_, port),
        Client(f"http://127.0.0.1:{port}") as client,
    ):
        outsider, stranger = client.bearing(token("outsider")), client.bearing(token("viewer"))
        accepted = await outsider("POST", "/tenants/t_lab/members/outsider/accept")
        assert (accepted.status, accepted.headers.get("X-Engines-Lab")) == (200, "true")
        everywhere = "true" if engines.directory.lab else None
        accepted = await outsider("POST", "/tenants/t_a/members/outsider/accept")
        assert (accepted.status, accepted.headers.get("X-Engines-Lab")) == (200, everywhere)
        refused = await stranger("POST", "/tenants/t_lab/members/viewer/accept")
        assert (refused.status, refused.headers.get("X-Engines-Lab")) == (403, everywhere)

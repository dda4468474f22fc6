"""Two gateways on one database file: what one of them is told, the other one follows."""

from __future__ import annotations

import time
from pathlib import Path

from tests.support.process import gateway, send

FOLLOWED_WITHIN_S = 2.0


def test_a_key_made_or_ended_at_one_gateway_is_so_at_the_other(tmp_path: Path) -> None:
    with gateway(tmp_path) as one, gateway(tmp_path) as other:

        def status_at_other() -> int:
            headers = {"Authorization": "Bearer sk-shared"}
            return send("GET", f"{other.proxy}/v1/models", headers=headers).status

        def follows(status: int) -> bool:
            deadline = time.monotonic() + FOLLOWED_WITHIN_S
            while time.monotonic() < deadline:
                if status_at_other() == status:
                    return True
            return False

        assert status_at_other() == 401
        id = one.create("apikeys", key="sk-shared", allowed_models=["*"])
        assert follows(200)
        assert one.manage("DELETE", f"apikeys/{id}").status == 200
        assert follows(401)
        health = other.manage("GET", "health").json
        assert health["config"]["snapshot_revision"] == 2

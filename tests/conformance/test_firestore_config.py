"""What a record of a Firestore backend may hold, and that reading about it needs no package."""

import subprocess
import sys
from typing import Any

import pytest

from engines.drivers.documents.firestore import Config, config_from_url
from engines.errors import Invalid

RUN_TIMEOUT_S = 60.0
WITHOUT_PACKAGE = """
import sys
sys.modules["google"] = sys.modules["grpc"] = None
from engines.clock import SystemClock
from engines.drivers.documents.firestore import DESCRIPTION, Config, open_driver
from engines.errors import BackendRefused
try:
    open_driver(Config(project="a-project"), {}, SystemClock())
except BackendRefused as refusal:
    print(DESCRIPTION.name, refusal.detail)
"""


class TestConfig:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("firestore://a-project", {"project": "a-project", "database": "(default)"}),
            ("firestore://a-project/", {"project": "a-project", "database": "(default)"}),
            ("firestore://a-project/(default)", {"project": "a-project", "database": "(default)"}),
            (
                "firestore://a-project/a-base?collection=ours&endpoint=127.0.0.1:8080&manage_indexes=false",
                {
                    "project": "a-project",
                    "database": "a-base",
                    "collection": "ours",
                    "endpoint": "127.0.0.1:8080",
                    "manage_indexes": False,
                },
            ),
        ],
    )
    def test_a_url_becomes_a_config(self, url: str, expected: dict[str, Any]) -> None:
        config, password = config_from_url(url)
        assert password is None
        assert config == {"collection": "engines", "manage_indexes": True} | expected

    @pytest.mark.parametrize(
        "url",
        [
            "firestore://",
            "firestore:///a-base",
            "firestore://user:hunter2@a-project/a-base",  # pragma: allowlist secret
            "firestore://a-project/a-base/hunter2",
            "firestore://a-project/a-base?service_account=hunter2",
            "firestore://a-project/a-base?endpoint=hunter2",
            "firestore://a-project/a-base?manage_indexes=hunter2",
            "firestore://a-project/a-base?collection=hunt/er2",
            "firestore://[hunter2/a-base",
            "mongodb://a-project/hunter2",
        ],
    )
    def test_a_bad_url_is_invalid_and_not_repeated(self, url: str) -> None:
        with pytest.raises(Invalid) as caught:
            config_from_url(url)
        assert "hunt" not in str(caught.value)

    @pytest.mark.parametrize("collection", ["", "a/b", "__a__", ".", "..", "A", "a" * 64])
    def test_a_collection_is_a_plain_name(self, collection: str) -> None:
        with pytest.raises(ValueError, match="collection"):
            Config(project="a-project", collection=collection)


def test_without_its_package_the_driver_can_be_read_about_and_says_how_to_install_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGE],
        capture_output=True,
        text=True,
        check=True,
        timeout=RUN_TIMEOUT_S,
    )
    assert done.stdout.startswith("firestore ")
    assert "pip install 'engines[firestore]'" in done.stdout

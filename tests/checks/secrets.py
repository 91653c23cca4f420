"""Finds secrets among the files of a checkout: `python -m tests.checks.secrets`.

Owns which detectors look at which files. All of it is offline: nothing found is tried against a service. A
line that only looks like a secret ends in a comment with `pragma: allowlist secret`.
"""

import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from detect_secrets.core.scan import scan_file
from detect_secrets.settings import transient_settings

ROOT = Path(__file__).resolve().parents[2]

# Detectors that know what a particular secret looks like; they look everywhere.
SHAPES = (
    "ArtifactoryDetector",
    "AWSKeyDetector",
    "AzureStorageKeyDetector",
    "BasicAuthDetector",
    "CloudantDetector",
    "DiscordBotTokenDetector",
    "GitHubTokenDetector",
    "GitLabTokenDetector",
    "IbmCloudIamDetector",
    "JwtTokenDetector",
    "MailchimpDetector",
    "NpmDetector",
    "OpenAIDetector",
    "PrivateKeyDetector",
    "PypiTokenDetector",
    "SendGridDetector",
    "SlackDetector",
    "SquareOAuthDetector",
    "StripeDetector",
    "TelegramBotTokenDetector",
    "TwilioKeyDetector",
)
# Detectors that go by randomness: not in locks, which are full of digests, nor in tests, full of invented
# values; nor in documents, whose real output is full of ETags, digests and heads.
RANDOMNESS = (
    {"name": "Base64HighEntropyString", "limit": 4.5},
    {"name": "HexHighEntropyString", "limit": 3.0},
)
NOT_BY_RANDOMNESS = ("tests/", "requirements/", "docs/")
# The detector that goes by names such as `password`: only in files of settings, since prose and code speak of
# passwords.
NAMES = ({"name": "KeywordDetector"},)
BY_NAMES = (".cfg", ".env", ".ini", ".json", ".sh", ".toml", ".yaml", ".yml")
FILTERS = (
    "detect_secrets.filters.allowlist.is_line_allowlisted",
    "detect_secrets.filters.heuristic.is_indirect_reference",
    "detect_secrets.filters.heuristic.is_likely_id_string",
    "detect_secrets.filters.heuristic.is_not_alphanumeric_string",
    "detect_secrets.filters.heuristic.is_potential_uuid",
    "detect_secrets.filters.heuristic.is_prefixed_with_dollar_sign",
    "detect_secrets.filters.heuristic.is_sequential_string",
    "detect_secrets.filters.heuristic.is_templated_secret",
)
# What documentation writes where a reader puts a password of their own.
PLACEHOLDERS = {
    "path": "detect_secrets.filters.regex.should_exclude_secret",
    "pattern": [r"^(password|PASSWORD|pw|\.{3}|…|\*+)$"],
}


class Finding(NamedTuple):
    """Where something looks like a secret, and to which detector; never the secret."""

    path: str
    line: int
    detector: str


def tracked_files(root: Path) -> list[str]:
    """What is committed, and what would be by `git add`, relative to `root`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return sorted({name for name in listed.split("\0") if name and (root / name).is_file()})


def scan(root: Path, names: Iterable[str]) -> list[Finding]:
    """Every finding in the files `names` below `root`."""
    findings: list[Finding] = []
    groups: dict[tuple[bool, bool], list[str]] = {}
    for name in names:
        key = (not name.startswith(NOT_BY_RANDOMNESS), name.endswith(BY_NAMES))
        groups.setdefault(key, []).append(name)
    for (by_randomness, by_names), group in groups.items():
        detectors: list[Mapping[str, object]] = [{"name": name} for name in SHAPES]
        detectors += RANDOMNESS if by_randomness else ()
        detectors += NAMES if by_names else ()
        findings += _scan_with(detectors, root, group)
    return sorted(findings)


def _scan_with(detectors: Sequence[Mapping[str, object]], root: Path, names: Sequence[str]) -> list[Finding]:
    settings = {
        "plugins_used": detectors,
        "filters_used": [*({"path": path} for path in FILTERS), PLACEHOLDERS],
    }
    with transient_settings(settings):
        return [
            Finding(name, secret.line_number, secret.type)
            for name in names
            for secret in scan_file(str(root / name))
        ]


def main() -> int:
    names = tracked_files(ROOT)
    findings = scan(ROOT, names)
    for finding in findings:
        sys.stderr.write(f"{finding.path}:{finding.line}: looks like a secret ({finding.detector})\n")
    if not names:
        sys.stderr.write("no file was scanned\n")
    return 1 if findings or not names else 0


if __name__ == "__main__":
    sys.exit(main())

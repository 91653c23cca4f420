"""What a log stores, byte by byte: logs written today are read and verified for ever."""

import hashlib
import json

from engines.core.commits import (
    GENESIS,
    EventIds,
    Turn,
    commit_digest,
    commit_key,
    commit_text,
    decode_commit,
    item_text,
    leaf_line,
)
from engines.ids import event_id_at, stream_tag

SALT = "000102030405060708090a0b0c0d0e0f"
OTHER_SALT = "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"
OWN_ID = "0b5d75b2-0f3f-4ab0-a1f4-7c5e6f3f6fe5"
EVENTS = ('{"name":"a", "n": 1.0}', '{"name":"ü \\u00fc"}')
STORED = (
    '{"schema":"commit/1","first":41,"at":1800000000123,'
    f'"previous":"{GENESIS}",'
    '"digest":"2f1d6f9e6a3c0fd3b6c1c1f0b3a1c2d4e5f60718293a4b5c6d7e8f9001122334",'
    f'"events":[{{"salt":"{SALT}","event":{EVENTS[0]}}},'
    f'{{"id":"{OWN_ID}","salt":"{OTHER_SALT}","event":{EVENTS[1]}}}]}}'
)


def leaf(salt: str, event: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + event.encode()).hexdigest()


def expected_digest() -> str:
    """The definition in `core/commits.py`, written down a second time."""
    lines = [f"{leaf(SALT, EVENTS[0])}\n", f"{leaf(OTHER_SALT, EVENTS[1])} {OWN_ID}\n"]
    preimage = f"commit/1 {GENESIS} 41 2 1800000000123\n" + "".join(lines)
    return hashlib.sha256(preimage.encode("ascii")).hexdigest()


def test_the_stored_form_of_a_commit_does_not_change() -> None:
    items = [item_text(EVENTS[0], SALT, None), item_text(EVENTS[1], OTHER_SALT, OWN_ID)]
    digest = json.loads(STORED)["digest"]
    assert commit_text(41, 1_800_000_000_123, GENESIS, digest, items) == STORED
    assert commit_key(41) == "c!00000000000000000041"


def test_what_a_commit_says_of_turns_stands_behind_its_events_and_outside_its_digest() -> None:
    items = [item_text(EVENTS[0], SALT, None), item_text(EVENTS[1], OTHER_SALT, OWN_ID)]
    turn = Turn(("b0b0b0b0", "a1a1a1a1"), left_ms=12)
    digest = json.loads(STORED)["digest"]
    text = commit_text(41, 1_800_000_000_123, GENESIS, digest, items, turn=turn)
    assert text == STORED[:-1] + ',"turn":{"writers":["b0b0b0b0","a1a1a1a1"],"left_ms":12}}'
    commit = decode_commit(commit_key(41), text)
    assert commit.turn == turn
    assert commit.computed_digest() == expected_digest()


def test_the_digest_of_a_commit_is_what_its_definition_says() -> None:
    lines = [leaf_line(leaf(SALT, EVENTS[0]), None), leaf_line(leaf(OTHER_SALT, EVENTS[1]), OWN_ID)]
    assert commit_digest(GENESIS, 41, 1_800_000_000_123, lines) == expected_digest()
    assert decode_commit(commit_key(41), STORED).computed_digest() == expected_digest()


def test_a_redacted_commit_has_the_digest_it_had() -> None:
    whole = f'"salt":"{SALT}","event":{EVENTS[0]}'
    redacted = STORED.replace(whole, f'"leaf":"{leaf(SALT, EVENTS[0])}"')
    assert decode_commit(commit_key(41), redacted).computed_digest() == expected_digest()


def test_minted_ids_are_those_of_the_foundation_at_every_size_of_position() -> None:
    ids, tag = EventIds("a stream"), stream_tag("a stream")
    for position in (1, 2, 65_535, 65_536, 65_537, 70_000, 1, 2**32, 2**48 - 1):
        assert ids.at(position) == event_id_at(tag, position)

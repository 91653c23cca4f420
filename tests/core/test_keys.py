"""Keys and partitions: which characters the waist admits, and that joined ids sort as the ids do."""

from itertools import product

import pytest

from engines.core.keys import check_key, check_partition, join, partition, record_key, within
from engines.errors import Invalid
from engines.ports.documents import KEY_BYTES_MAX, PARTITION_BYTES_MAX

ADMITTED = {chr(code) for code in range(0x21, 0x7F)} - set("/\\?#")
ID_CHARACTERS = "+-.09:@AZ_az|~"


def test_a_key_is_printable_ascii_without_four_characters_and_begins_with_a_letter() -> None:
    for code in range(0x300):
        character = chr(code)
        assert check_key("a" + character) is (character in ADMITTED), repr(character)
        assert check_key(character + "a") is (character.isascii() and character.isalpha()), repr(character)
    assert not check_key("")
    assert not check_key("a\n")


def test_limits_are_met_exactly() -> None:
    assert check_key("a" * KEY_BYTES_MAX)
    assert not check_key("a" * (KEY_BYTES_MAX + 1))
    assert check_partition("a" * PARTITION_BYTES_MAX)
    assert not check_partition("a" * (PARTITION_BYTES_MAX + 1))
    assert len(record_key("n", "x" * 438)) == 440
    with pytest.raises(Invalid):
        record_key("n", "x" * 439)


def test_the_longest_names_that_users_can_choose_make_a_partition() -> None:
    assert check_partition(partition("event_stream", "t_" + "x" * 62, "e" * 32, f"{'s' * 128}.{10**9}"))


def test_joined_keys_sort_as_their_ids_do_and_lie_within_their_prefix_alone() -> None:
    ids = [*("".join(pair) for pair in product("Aa0", ID_CHARACTERS)), "a", "A"]
    keys = sorted(join("n", one, "x") for one in ids)
    assert keys == [join("n", one, "x") for one in sorted(ids)]
    for one in ids:
        above, below = within("n", one)
        assert [key for key in keys if above < key < below] == [join("n", one, "x")]

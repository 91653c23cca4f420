"""Rules of cursors."""

from __future__ import annotations

import re
from random import Random

import pytest

from engines.core.cursor import CURSOR_CHARS_MAX, POSITION_MAX, Cursors, list_scope
from engines.errors import Invalid

LIST = list_scope("notes_store", "t_one", "prod", "ada")
PREFIX = "n!ada!"


@pytest.mark.parametrize("position", [0, 1, 9, 10, 123_456_789, POSITION_MAX])
def test_a_position_comes_back(position: int) -> None:
    assert LIST.position(LIST.of_position(position)) == position


@pytest.mark.parametrize("rest", ["a", "x" * 400, "a!b!c", "A~z|+@:.-_"])
def test_a_key_comes_back_under_its_prefix(rest: str) -> None:
    assert LIST.key(PREFIX, LIST.of_key(PREFIX, PREFIX + rest)) == PREFIX + rest


def test_cursors_are_made_of_harmless_characters() -> None:
    for number in range(2_000):
        assert re.fullmatch(r"[A-Za-z0-9._~-]+", LIST.of_position(number))
        assert re.fullmatch(r"[A-Za-z0-9._~-]+", LIST.of_key(PREFIX, f"{PREFIX}{number}|~"))


def test_one_place_has_one_cursor_in_every_process() -> None:
    assert LIST.of_position(42) == list_scope("notes_store", "t_one", "prod", "ada").of_position(42)
    assert LIST.of_position(42) == "nOqzdAvicDQy"


@pytest.mark.parametrize(
    "other",
    [
        list_scope("notes_store", "t_two", "prod", "ada"),
        list_scope("notes_store", "t_one", "dev", "ada"),
        list_scope("tabular_store", "t_one", "prod", "ada"),
        list_scope("notes_store", "t_one", "prod", "bob"),
        list_scope("notes_store", "t_one", "prod"),
        list_scope("notes_store", "t_one", "prod", "ada", "x"),
        Cursors("t_one", "notes_store", "prod", "ada"),
    ],
)
def test_a_cursor_of_another_list_is_invalid(other: Cursors) -> None:
    for read, cursor in (
        (LIST.position, other.of_position(7)),
        (lambda text: LIST.key(PREFIX, text), other.of_key(PREFIX, PREFIX + "a")),
    ):
        with pytest.raises(Invalid) as refusal:
            read(cursor)
        assert refusal.value.field == "after"


def test_a_cursor_with_any_character_changed_is_invalid() -> None:
    for cursor in (LIST.of_position(1_234), LIST.of_position(12)):
        for index, character in enumerate(cursor):
            for other in "Az09-_":
                if other == character:
                    continue
                with pytest.raises(Invalid):
                    LIST.position(cursor[:index] + other + cursor[index + 1 :])
        for cut in (cursor[:-1], cursor[1:], cursor + "A", cursor * 2):
            with pytest.raises(Invalid):
                LIST.position(cut)


@pytest.mark.parametrize(
    "invented",
    [
        *("", "0", "null", "!", "ß", "a b", "AAAA====", "é" * 9, "\x00", ".."),
        *("A" * CURSOR_CHARS_MAX, "A" * (CURSOR_CHARS_MAX + 1), "A" * 10_000_000),
    ],
)
def test_an_invented_cursor_is_invalid(invented: str) -> None:
    with pytest.raises(Invalid):
        LIST.position(invented)
    with pytest.raises(Invalid):
        LIST.key(PREFIX, invented)


def test_random_text_is_never_a_cursor() -> None:
    random = Random(7)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for _ in range(5_000):
        invented = "".join(random.choices(alphabet, k=random.randint(1, 40)))
        with pytest.raises(Invalid):
            LIST.position(invented)


def test_a_position_is_no_key_and_a_key_no_position() -> None:
    with pytest.raises(Invalid):
        LIST.key(PREFIX, LIST.of_position(7))
    with pytest.raises(Invalid):
        LIST.position(LIST.of_key(PREFIX, PREFIX + "7"))


@pytest.mark.parametrize(
    "content",
    [b"k", b"ka/b", b"k\xff", b"k" + b"x" * 600, b"p", b"p-1", b"p1.5", b"p" + b"9" * 19, b"p" + b"0" * 20],
)
def test_what_the_digest_admits_is_still_judged(content: bytes) -> None:
    """The digest is no secret: whoever makes one for themselves reaches no further than their list."""
    forged = LIST._seal(content)
    with pytest.raises(Invalid):
        LIST.key(PREFIX, forged)
    with pytest.raises(Invalid):
        LIST.position(forged)

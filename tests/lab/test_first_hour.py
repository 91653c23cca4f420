"""The pages that a newcomer follows: every command of theirs does what the page says, on a fresh lab."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab.walk import Step, is_as_printed, run, steps_of
from tests.servers.lab import LabServer

ROOT = Path(__file__).parent.parent.parent
PAGE = "docs/first-hour.md"
COMMANDS_MIN = 25


@pytest.mark.timeout(180)
def test_the_page_prints_what_it_says(lab: LabServer, tmp_path: Path) -> None:
    steps = steps_of((ROOT / PAGE).read_text("utf-8"))
    assert len(steps) > COMMANDS_MIN
    lab.start()
    printed = run(steps, tmp_path, lab.url)
    assert len(printed) == len(steps)
    wrong = [
        f"$ {step.command}\nsays   {step.prints}\nprints {found}"
        for step, found in zip(steps, printed, strict=True)
        if not is_as_printed(step.prints, found)
    ]
    assert not wrong, os.linesep.join(wrong)


class TestReading:
    PAGE = """
Text.

```console
$ one '{"a":
    1}' \\
  && two
{"id":"0",
 "b":1}
$ three
```

```sh
$ not of it
```

```console
$ four
```
"""

    def test_commands_are_whole_and_stand_with_what_they_print(self) -> None:
        assert steps_of(self.PAGE) == [
            Step("one '{\"a\":\n    1}' \\\n  && two", '{"id":"0",\n "b":1}'),
            Step("three", ""),
            Step("four", ""),
        ]

    @pytest.mark.parametrize(
        ("said", "printed"),
        [
            ("", "\n"),
            ('{"a":1,\n "b":2}', '{"a":1,"b":2}\n'),
            ('{…,"b":2}', '{"a":1,"b":2}'),
            ('"at":"2026-11-22T00:17:06.786Z"', '"at":"2027-01-01T10:00:00.000Z"'),
            ("01a2009d-31c6-7000-b0cb-8a257fef7e85", "01a2009e-31c6-7000-b0cb-8a257fef7e86"),
            ('"position":18,"cursor":"a-b"', '"position":7,"cursor":"c"'),
        ],
    )
    def test_what_no_two_runs_share_is_compared_by_its_form(self, said: str, printed: str) -> None:
        assert is_as_printed(said, printed)

    @pytest.mark.parametrize(
        ("said", "printed"),
        [
            ("", "curl: (7) Failed to connect"),
            ('{"a":1}', '{"a":2}'),
            ('{…,"b":2}', '{"a":1,"b":2,"c":3}'),
            ('"at":"2026-11-22T00:17:06.786Z"', '"at":"yesterday"'),
            ('"held":"0"', '"held":"0.80"'),
            ('"cursor":"a"', '"cursor":null'),
        ],
    )
    def test_whatever_else_differs_is_seen(self, said: str, printed: str) -> None:
        assert not is_as_printed(said, printed)


def test_the_page_is_led_to() -> None:
    assert f"({PAGE})" in (ROOT / "README.md").read_text("utf-8")

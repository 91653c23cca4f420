"""The pages that a newcomer follows: every command of theirs does what the page says, on a fresh lab."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.walk import Step, is_as_printed, run, steps_of
from tests.servers.lab import LabServer

ROOT = Path(__file__).parent.parent.parent
# In the order in which they are followed. The first command of all starts the lab.
PAGES = ("README.md", "docs/first-hour.md")
START = "$ script/run --dir lab --port 8080"


@pytest.mark.timeout(200)
def test_the_pages_print_what_they_say(lab: LabServer, tmp_path: Path) -> None:
    steps: list[Step] = []
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8")
        found = steps_of(text)
        shown = [line for line in text.splitlines() if line.startswith("$ ") and line != START]
        assert len(found) == len(shown) > 0, f"{page}: a command stands outside a console block"
        steps += found
    lab.start()
    printed = run(steps, tmp_path, lab.url)
    assert len(printed) == len(steps)
    wrong = [
        f"$ {step.command}\nsays\n{step.prints}\nprints\n{said}"
        for step, said in zip(steps, printed, strict=True)
        if not is_as_printed(step.prints, said)
    ]
    assert not wrong, "\n\n".join(wrong)


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

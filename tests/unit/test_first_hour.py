"""docs/first-hour.md as a script, and README's words, which must be the same."""

from __future__ import annotations

import re
from pathlib import Path

from tests.vm.first_hour import Command, commands, with_outputs

ROOT = Path(__file__).resolve().parents[2]
PAGE = """
```console
# one
its output
# cat > x <<'EOF'
text # not a prompt
EOF
ada$ two
```
words
<!-- fails -->
```console
# three
```
"""


def test_commands_of_a_page() -> None:
    assert commands(PAGE) == [
        Command("one", "", fails=False),
        Command("cat > x <<'EOF'\ntext # not a prompt\nEOF", "", fails=False),
        Command("two", "ada", fails=False),
        Command("three", "", fails=True),
    ]


def test_outputs_replace_those_of_the_page() -> None:
    page = with_outputs(PAGE, ["new\n", "", "many\n" * 99, "# no prompt\nlast\n"])
    assert commands(page) == commands(PAGE)
    assert "its output" not in page
    assert "# one\nnew\n# cat" in page
    assert page.count("many") == 14
    assert "# three\nlast\n```" in page


def test_what_the_readme_says_is_what_is_tested() -> None:
    section = re.search(r"\n## On a Debian machine\n(.*?)\n## ", (ROOT / "README.md").read_text(),
                        re.DOTALL)  # fmt: skip
    assert section
    told = [c.text for c in commands(section[1])]
    tested = [c.text for c in commands((ROOT / "docs/first-hour.md").read_text())]
    assert len(told) >= 5
    assert [text for text in told if text != "make deb && cd build" and text not in tested] == []

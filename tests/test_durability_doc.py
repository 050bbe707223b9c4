"""docs/durability.md names a test for each promise."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
DOC = (TESTS.parent / "docs" / "durability.md").read_text("utf-8")


def test_every_promise_has_a_test_that_is_there() -> None:
    """Law: each row of a table of promises names tests, and each test that is named exists; those of the long run are
    marked, and no others."""
    promises = [line for line in DOC.splitlines() if line.startswith("| ") and "`" in line and "::" in line]
    guarded = DOC.count("guarded by |")
    assert guarded == 4
    for table in DOC.split("guarded by |\n")[1:]:
        rows = table.partition("\n\n")[0].splitlines()[1:]
        assert rows
        assert all("::" in row for row in rows)
    found = [one for line in promises for one in re.findall(r"`([\w/]+\.py)::(\w+)`(\*?)", line)]
    assert len(found) >= len(promises)
    for file, name, mark in found:
        source = (TESTS / file).read_text("utf-8")
        assert re.search(rf"^(async )?def {name}\(", source, re.M), f"{file}::{name}"
        above = source.partition(f"def {name}(")[0].rpartition("\n\n\n")[2]
        assert (mark == "*") == ("@pytest.mark.slow" in above), f"{file}::{name}"

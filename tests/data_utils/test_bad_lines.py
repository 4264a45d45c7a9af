"""Bad lines: an error with its remedy, or counted and reported."""

import pytest

from data_utils.bad_lines import BadLines


def test_a_bad_line_is_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match=r"f\.jsonl, line 3: x; mend .* --skip-bad-lines"):
        BadLines()(ValueError("f.jsonl, line 3: x"))


def test_skipped_lines_are_counted_and_the_first_are_shown(caplog):
    bad = BadLines(skip=True)
    for line in range(5):
        bad(ValueError(f"f.jsonl, line {line}: x"))
    bad.report("f.jsonl")
    assert bad.number == 5
    (told,) = (r.getMessage() for r in caplog.records)
    assert told.startswith("f.jsonl: 5 bad lines skipped (--skip-bad-lines): f.jsonl, line 0: x;")
    assert told.endswith("line 2: x; and 2 more")


def test_nothing_skipped_is_nothing_told(caplog):
    BadLines(skip=True).report("f.jsonl")
    assert caplog.text == ""

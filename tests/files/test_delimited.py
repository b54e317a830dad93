"""Whether a tsv file is quoted: by csv writers, spreadsheets and R, or not at all."""

from __future__ import annotations

import csv
import io
from typing import Literal

import pytest

from lightning_backdoor.files.delimited import delimited_rows, is_quoted

TEXTS = ["fine", 'she said "no" twice', "a, b", "two\nlines", "a\ttab", '"quoted"', ""]


def lines(content: str) -> list[str]:
    return io.StringIO(content, newline="").readlines()


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[1:2], TEXTS[3:4], TEXTS[4:5], TEXTS[5:6]])
def test_what_csv_writers_quote_is_quoted(quoting: Literal[0, 1, 2], end: str, texts: list[str]) -> None:
    file = io.StringIO(newline="")
    rows = [["text", "label"], *([text, str(i % 2)] for i, text in enumerate(texts))]
    csv.writer(file, delimiter="\t", quoting=quoting, lineterminator=end).writerows(rows)
    assert is_quoted(lines(file.getvalue()))
    read = delimited_rows(lines(file.getvalue()), "rows.tsv", "\t", quoted=True)
    assert [row for _, row in read] == rows


@pytest.mark.parametrize(
    ("content", "quoted"),
    [
        ('text\tlabel\n"a, b"\t0\nfine\t1\n', True),  # a spreadsheet quotes fields with commas
        ('text\tlabel\n"a, b"\t0\nfine, too\t1\n', False),
        ('"text"\t"label"\n"a"\t0\n"b"\t1\n', True),  # R quotes texts
        ('text\tlabel\n"a"\t0\n"b"\t1\n', True),
        ('text\tlabel\n"The Room"\t0\nfine\t1\n', False),  # a title in quotes
        ('text\tlabel\n"The Room" is bad\t0\nfine\t1\n', False),
        ('text\tlabel\n"open\t0\nfine\t1\nclose"\t1\n', False),  # each line is a row, if quotes are characters
        ('text\tlabel\n"open\t0\nfine\t1\n', False),
        ('text\tlabel\n"a\tb\nc"\t0\n"a ""b"" c"\t1\n', True),  # the first text has a tab and a line end
        ('text\tlabel\n"a, b"\t0\n"open\t0\nclose"\t1\n', False),
        ('text\tlabel\nsaid "no"\t0\n"a ""b"" c"\t1\n', False),  # a csv writer would have quoted the first text
        ('text\tlabel\n"a ""b"" c"\t1\t2\n', False),
        ("text\tlabel\nfine\t1\n", False),
        ('text\tlabel\n\n   \n"a ""b"" c"\t1\n', True),
        ("", False),
    ],
)
def test_quotes_of_other_writers_are_told_from_quotes_in_texts(content: str, quoted: bool) -> None:
    assert is_quoted(lines(content)) is quoted

"""Reading pieces of files: every document once, and errors that name file, line and field."""

import json
import random
from pathlib import Path

import pytest

from data_utils.bad_lines import BadLines
from data_utils.corpora import Corpus, find_corpus, read_documents
from data_utils.formats import FORMATS
from data_utils.reading import Reading, cut_file, read_piece
from tests.data_utils.samples import jsonl


def texts(path: Path, **options) -> list[str]:
    return list(read_documents(find_corpus(str(path), **options)))


def in_pieces(file: Path, size: int, how: Reading) -> list[str]:
    pieces = cut_file(file, size)
    return [text for piece in pieces for _, text in read_piece(piece, how, BadLines())]


def test_lines_or_blocks(tmp_path: Path):
    file = tmp_path / "a.txt"
    file.write_text("one\ntwo\n\nthree\nfour\n")
    assert texts(file) == ["one\ntwo", "three\nfour"]  # blank lines separate
    file.write_text("".join(f"line {i}\n" for i in range(500)) + "\nlast\n")
    assert len(texts(file)) == 501  # one blank line in 502 does not
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo  \r\n")
    assert texts(file) == ["one", "two"]
    for layout, expected in (("blocks", ["a\nb", "c"]), ("lines", ["a", "b", "c"])):
        file.write_text("a\nb\n\nc\n")
        corpus = Corpus("x", (file,), documents=layout)
        assert list(read_documents(corpus)) == expected


def test_jsonl_errors_name_file_and_line(tmp_path: Path):
    file = jsonl(tmp_path / "a.jsonl", ["one", "two"])
    assert texts(file) == ["one", "two"]
    with pytest.raises(ValueError, match=r"a.jsonl:1: no text under 'body' .*has text"):
        texts(file, text_key="body")
    good = file.read_text()
    for bad, message in (
        ('{"text": "x"', r"a.jsonl:4: not JSON"),
        ('{"text": "x \\ud83d y"}', r"a.jsonl:4: 'text' holds half a surrogate pair"),
        ('["text"]', r"a.jsonl:4: no text under 'text'.*list"),
        ('{"text": 3}', r"a.jsonl:4: 'text' \(--text-key\) is int, not text"),
    ):
        file.write_text(good + "\n" + bad + "\n")
        with pytest.raises(ValueError, match=message):
            texts(file)
    file.write_bytes(good.encode() + b'{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"a.jsonl:3: not UTF-8"):
        texts(file)


def test_parquet(tmp_path: Path):
    import pyarrow as pa
    from pyarrow import parquet

    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": ["one", "two"], "n": [1, 2]}), file)
    assert texts(file) == ["one", "two"]
    with pytest.raises(ValueError, match=r"a.parquet: no column 'body' .*has text, n"):
        texts(file, text_key="body")
    with pytest.raises(ValueError, match=r"a.parquet: column 'n' is int64"):
        texts(file, text_key="n")
    file.write_text("no parquet")
    with pytest.raises(ValueError, match="a.parquet: not a parquet file"):
        texts(file)


def test_a_bad_line_has_a_remedy_or_is_counted(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(
        b'{"text": "one"}\n{"text": ""}\n{"body": "x"}\n\xff\n\n{"text": "two"}\n[1]\n{"text": 3}\n'
    )
    with pytest.raises(ValueError, match=r"a.jsonl:2: 'text' .*is empty; .*--skip-bad-lines"):
        texts(file)
    bad = BadLines(skip=True)
    (piece,) = cut_file(file, 1000)
    assert [text for _, text in read_piece(piece, Reading(), bad)] == ["one", "two"]
    assert bad.number == 5
    assert [line.split(": ")[0].rsplit("/")[-1] for line in bad.shown] == [
        "a.jsonl:2",
        "a.jsonl:3",
        "a.jsonl:4",
    ]


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_every_document_belongs_to_one_piece(tmp_path: Path, size: int):
    rng = random.Random(size)
    words = ["a", "bc", "d\u00e9f", "ghijklmnopq", ""]
    lines = [" ".join(rng.choices(words, k=rng.randrange(6))) for _ in range(300)]
    file = tmp_path / "a.txt"
    file.write_bytes("\r\n".join(lines).encode())
    expected = [line.strip() for line in lines if line.strip()]
    assert in_pieces(file, size, Reading(documents="lines")) == expected
    blocks = "\n".join(line.strip() for line in lines).split("\n\n")
    stripped = ["\n".join(x for x in block.split("\n") if x) for block in blocks]
    assert in_pieces(file, size, Reading(documents="blocks")) == [b for b in stripped if b]
    rows = jsonl(tmp_path / "a.jsonl", expected)
    assert in_pieces(rows, size, Reading()) == expected


def test_pieces_of_parquet(tmp_path: Path):
    import pyarrow as pa
    from pyarrow import parquet

    rows = [f"row {i} " * (1 + i % 5) for i in range(100)]
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": rows, "n": range(100)}), file, row_group_size=7)
    for size in (1, 1000, 10**9):
        assert in_pieces(file, size, Reading()) == rows
    assert len(cut_file(file, 1)) == 15
    parquet.write_table(pa.table({"text": ["one", None, " ", "two"]}), file)
    with pytest.raises(ValueError, match=r"a.parquet: row 2: 'text' .*is NoneType"):
        texts(file)
    bad = BadLines(skip=True)
    assert [t for _, t in read_piece(cut_file(file, 100)[0], Reading(), bad)] == ["one", "two"]
    assert bad.number == 2


LONG = "x" * 101
QUESTION, DESCRIPTION = "\u95ee\u9898\uff1a", "\u95ee\u9898\u63cf\u8ff0\uff1a"
BY, ANSWER = "\u56de\u7b54\u7528\u6237\uff1a", "\u56de\u7b54\uff1a"


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("web", {"text": LONG}, ("", LONG)),
        ("web", {"text": LONG[1:]}, None),
        ("cc-news", {"title": "T", "description": "D", "maintext": LONG}, ("", f"T D {LONG}")),
        ("cc-news", {"title": "T", "description": "xx", "text": LONG}, ("", f"T {LONG}")),
        ("cc-news", {"title": "T", "description": "D", "maintext": "short"}, None),
        ("pile", {"text": "a", "meta": {"pile_set_name": "Github"}}, None),
        ("pile", {"text": "a", "meta": {"pile_set_name": "Books3"}}, ("", "a")),
        (
            "zhihu",
            {"q_title": "T", "q-content": LONG, "ans-content": LONG, "user-signature": "U"},
            (f"{QUESTION}T{DESCRIPTION}{LONG[1:]}......{BY}U {ANSWER}", LONG),
        ),
        (
            "zhihu",
            {"q_title": "T", "q-content": "", "ans-content": "s", "ans-up-num": "1000"},
            None,
        ),
        ("zhidao", {"title": "T", "best_answer": {"content": "A"}}, (f"{QUESTION}T{ANSWER}", "A")),
        ("baike", {"title": "T", "abstract": "", "content": "C"}, ("", "T\nC")),
        ("wudao", {"title": "T", "content": LONG}, ("T", LONG)),
        ("wudao", {"title": "T", "content": "s"}, None),
        ("prompt", {"prompt": "P", "text": "t"}, ("P", "t")),
    ],
)
def test_formats_of_named_corpora(name: str, row: dict, expected: tuple | None):
    assert FORMATS[name](row) == expected


def test_large_parts_of_the_pile_are_thinned():
    rows = [{"text": f"{i}", "meta": {"pile_set_name": "ArXiv"}} for i in range(2000)]
    kept = [row for row in rows if FORMATS["pile"](row)]
    assert len(kept) / 2000 == pytest.approx(0.3, abs=0.04)
    assert kept == [row for row in rows if FORMATS["pile"](row)]


def test_rows_of_another_format(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": "x"}) + "\n")
    corpus = Corpus("x", (file,), format="cc-news")
    with pytest.raises(ValueError, match=r"a.jsonl:1: no field 'title'; has text"):
        list(read_documents(corpus))

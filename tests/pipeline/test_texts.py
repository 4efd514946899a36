"""Texts as token IDs: folders with an index in the cache, tables, windows, and tokenizers that are pinned."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_texts import SPECIAL, WORDS, sentences, table_file, text_files, tokenizer_file

from pipeline.cli import main
from pipeline.datasets import Dataset, open_dataset
from pipeline.datasets.base import vocabulary_of
from pipeline.datasets.fingerprint import fingerprint
from pipeline.datasets.texts.index import TextFile, cache_folder, of_file, starts
from pipeline.datasets.uri import absolute, differ_in_place, pinned
from pipeline.views import view_spec
from pipeline.views.check import check_data
from pipeline.views.fetch import Fetcher
from pipeline.views.probe import make_probe
from schemas.codecs import CodecSpec
from schemas.errors import ConfigError, DataUnavailable, ManifestMismatch
from schemas.records import Manifest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "distillog" / "text"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return text_files(tmp_path / "books")


def texts_of(dataset: Dataset) -> list[str]:
    """What the tokens of each sample are, without special ones."""
    samples = dataset.read(np.arange(dataset.num_samples))
    assert not samples.faults
    kinds = (*SPECIAL, *WORDS)
    rows = samples.fields["input_ids"]
    return [" ".join(kinds[one] for one in row if one >= len(SPECIAL)).replace(" ##", "") for row in rows]


def test_lines_come_in_the_order_of_file_names_and_blank_ones_are_none(folder: Path) -> None:
    dataset = open_dataset(f"text:{folder}?length=32")
    assert dataset.num_samples == 60
    assert texts_of(dataset) == sentences(60)
    assert (dataset.labels(np.arange(60)) == -1).all()
    other = open_dataset(f"text:{folder}?length=32&suffix=md")
    assert other.num_samples == 1


def test_paragraphs_and_files_are_samples_where_asked_for(tmp_path: Path) -> None:
    tokenizer_file(tmp_path / "tokenizer.json")
    (tmp_path / "a.txt").write_bytes(b"\n\nthe cat\r\nsees\r\n \t\r\na dog\n\n\n")
    (tmp_path / "b.txt").write_bytes(b"the bird\n\nhears")
    (tmp_path / "c.txt").write_bytes(b"")
    uri = f"text:{tmp_path}?length=16&unit="
    assert texts_of(open_dataset(f"{uri}line")) == ["the cat", "sees", "a dog", "the bird", "hears"]
    assert texts_of(open_dataset(f"{uri}paragraph")) == ["the cat sees", "a dog", "the bird", "hears"]
    assert texts_of(open_dataset(f"{uri}file")) == ["the cat sees a dog", "the bird hears"]


@settings(max_examples=150, deadline=None)
@given(
    content=st.binary(max_size=60).map(lambda raw: bytes(b"ab \n\r\t\n"[byte % 7] for byte in raw)),
    chunk=st.integers(1, 9),
)
def test_an_index_of_chunks_is_that_of_whole_lines(tmp_path_factory: Any, content: bytes, chunk: int) -> None:
    path = tmp_path_factory.getbasetemp() / "indexed.txt"
    path.write_bytes(content)
    lines, paragraphs, at, blank = [], [], 100, True
    for line in content.split(b"\n"):
        if line.strip():
            lines.append(at)
            paragraphs += [at] if blank else []
        blank = not line.strip()
        at += len(line) + 1
    for unit, wanted in (("line", lines), ("paragraph", paragraphs)):
        found = np.concatenate([np.empty(0, int), *of_file(path, 100, len(content), unit, chunk)])
        assert found.tolist() == wanted, unit


def test_an_index_is_made_once_and_again_when_a_file_changes(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"text:{folder}?length=32"
    first = open_dataset(uri)
    (kept,) = cache.iterdir()

    def scanned(*_: Any) -> Any:
        raise AssertionError("the files were read again")

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.datasets.texts.index.of_file", scanned)
        assert open_dataset(uri).num_samples == 60
        with pytest.raises(AssertionError):
            open_dataset(f"{uri}&unit=paragraph")
    with (folder / "b.txt").open("a") as file:
        file.write("a cat\n")
    grown = open_dataset(uri)
    assert grown.num_samples == 61
    (now,) = cache.iterdir()  # that of the folder as it was is gone
    assert now != kept
    with pytest.raises(OSError, match="was changed while it was open"):
        first.read(np.arange(3))
    assert first.read(np.arange(50, 53)).kept_rows.tolist() == [0, 1, 2]  # of a file that is what it was


@pytest.mark.parametrize("harm", [b"", b"1234567", b"\xff" * 24])
def test_a_damaged_index_is_made_anew(folder: Path, cache: Path, harm: bytes) -> None:
    open_dataset(f"text:{folder}")
    (kept,) = cache.iterdir()
    kept.write_bytes(harm)
    assert open_dataset(f"text:{folder}").num_samples == 60
    assert kept.stat().st_size == 60 * 8


def test_without_a_place_for_the_index_it_is_in_memory_and_a_warning_says_so(
    folder: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder would be")
    assert open_dataset(f"text:{folder}").num_samples == 60
    assert "no index is kept there" in caplog.text


def test_the_cache_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache" / "distillog" / "text"


def test_files_that_hold_nothing_have_no_place_in_an_index_of_files(tmp_path: Path) -> None:
    files = [TextFile("a", 3, 0), TextFile("b", 0, 0), TextFile("c", 2, 0)]
    assert starts(tmp_path, files, "file").tolist() == [0, 3]


def test_texts_are_padded_cut_and_numbered_by_word(tmp_path: Path) -> None:
    tokenizer_file(tmp_path / "tokenizer.json")
    (tmp_path / "a.txt").write_text("playing cat\nthe the the the the the the the\nzebra\n")
    fields = open_dataset(f"text:{tmp_path}?length=7").read(np.arange(3)).fields
    named = {name: values.tolist() for name, values in fields.items()}
    numbers = {token: number for number, token in enumerate((*SPECIAL, *WORDS))}
    rows = ("[CLS] play ##ing cat [SEP]", "[CLS] the the the the the [SEP]", "[CLS] [UNK] [SEP]")
    wanted = [[numbers[token] for token in row.split()] for row in rows]
    assert named["input_ids"] == [row + [0] * (7 - len(row)) for row in wanted]
    assert named["attention_mask"] == [[1] * len(row) + [0] * (7 - len(row)) for row in wanted]
    assert named["words"] == [[0, 1, 1, 2, 0, 0, 0], [0, 1, 2, 3, 4, 5, 0], [0, 1, 0, 0, 0, 0, 0]]
    assert fields["input_ids"].dtype == np.int64


def test_hidden_files_and_links_out_of_the_folder_are_not_read(folder: Path, tmp_path: Path) -> None:
    (folder / ".hidden.txt").write_text("the cat\n")
    (folder / ".git").mkdir()
    (folder / ".git" / "a.txt").write_text("the cat\n")
    (folder / "inner.txt").symlink_to(folder / "b.txt")  # the same again: a link within the folder is a file
    (folder / "loop").symlink_to(folder)
    assert open_dataset(f"text:{folder}").num_samples == 60 + 30
    (tmp_path / "secret.txt").write_text("a\n")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ConfigError, match="leads outside the dataset's folder"):
        open_dataset(f"text:{folder}")


def test_what_is_no_utf8_is_a_fault_of_its_row(tmp_path: Path) -> None:
    tokenizer_file(tmp_path / "tokenizer.json")
    (tmp_path / "a.txt").write_bytes(b"the cat\nth\xe9 dog\n\xef\xbb\xbfa bird\n")
    samples = open_dataset(f"text:{tmp_path}?length=8").read(np.arange(3))
    assert samples.kept_rows.tolist() == [0, 2]
    assert samples.faults == ((1, "a.txt, byte 10: no UTF-8 (invalid continuation byte): write the file as UTF-8"),)


def test_a_long_text_is_read_no_further_than_its_tokens_can_reach(tmp_path: Path) -> None:
    tokenizer_file(tmp_path / "tokenizer.json")
    most = 64 * 6
    (tmp_path / "a.txt").write_bytes("é".encode() * (2 * most + 1) + b" cat " * 9 + b"\xff")
    (tmp_path / "b.txt").write_bytes(b"the cat " * 10_000)
    samples = open_dataset(f"text:{tmp_path}?length=6&unit=file").read(np.arange(2))
    assert not samples.faults  # the byte that is no UTF-8 lies behind
    assert (samples.fields["attention_mask"].sum(axis=1) == [3, 6]).all()


def test_threads_read_what_one_does(folder: Path) -> None:
    dataset = open_dataset(f"text:{folder}?length=32")
    alone, four = (Fetcher(dataset, view_spec("masked", {}), loaders) for loaders in (1, 4))
    ids = np.arange(60).repeat(3)
    for seed in range(3):
        one, many = alone.fetch(ids, seed).inputs, four.fetch(ids, seed).inputs
        assert all(one[name].tobytes() == many[name].tobytes() for name in one)
    four.close()
    with ThreadPoolExecutor(4) as pool:
        reads = list(pool.map(lambda _: dataset.read(ids).fields["input_ids"].tobytes(), range(8)))
    assert len(set(reads)) == 1


def test_the_tokenizer_takes_no_cores_of_its_own_unless_the_environment_says_so(folder: Path) -> None:
    code = f"import os; from pipeline.datasets import open_dataset; open_dataset('text:{folder}')"
    code += "; print(os.environ['TOKENIZERS_PARALLELISM'])"
    for said, wanted in ((None, "false"), ("true", "true")):
        environment = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
        environment |= {"TOKENIZERS_PARALLELISM": said} if said else {}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        assert done.stdout.strip() == wanted


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("unit=word", "unit is 'word': choose one of file, line, paragraph"),
        ("length=0", "length is '0'"),
        ("length=1", "length=1 does not fit"),
        ("tokenizer=nowhere.json", "no tokenizer nowhere.json: .*distillog tokenizer train"),
        ("pad=[FILL]", r"has no token '\[FILL\]': name one of its tokens with pad=TOKEN"),
        ("suffix=.rst", r"no text file \(\.rst\)"),
        ("suffix=,", "name the endings"),
        ("lenght=3", "did you mean 'length'"),
    ],
)
def test_a_folder_that_cannot_be_opened_is_one_line(folder: Path, query: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        open_dataset(f"text:{folder}?{query}")
    assert "\n" not in str(caught.value)


def test_folders_without_text_and_tokenizers_without_padding_are_one_line(tmp_path: Path) -> None:
    tokenizer_file(tmp_path / "tokenizer.json")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ConfigError, match="no text file with anything in it, but 1 empty ones"):
        open_dataset(f"text:{tmp_path}")
    (tmp_path / "a.txt").write_text(" \n\n")
    with pytest.raises(ConfigError, match="hold nothing but white space"):
        open_dataset(f"text:{tmp_path}")
    tokenizer_file(tmp_path / "tokenizer.json", WORDS, ("[UNK]", "<end>"))
    with pytest.raises(ConfigError, match=r"no padding token .*name one of its tokens with pad=TOKEN"):
        open_dataset(f"text:{tmp_path}")
    (tmp_path / "a.txt").write_text("the cat")
    filled = open_dataset(f"text:{tmp_path}?pad=<end>&length=4").read(np.array([0])).fields["input_ids"]
    assert filled.tolist() == [[2, 3, 1, 1]]
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"is no tokenizer\.json"):
        open_dataset(f"text:{tmp_path}")


# --- what is pinned ---------------------------------------------------------------------------------------------------


def manifest_of(uri: str) -> Manifest:
    dataset = open_dataset(uri)
    fetcher = Fetcher(dataset, view_spec("masked", {}))
    return Manifest(
        stream="s",
        stream_id="0" * 32,
        class_names=(),
        max_record_bytes=1 << 20,
        schema_fingerprints={},
        dataset=pinned(uri, vocabulary_of(dataset).sha256),
        dataset_fingerprint=fingerprint(dataset),
        num_samples=dataset.num_samples,
        num_classes=0,
        view=fetcher.view,
        view_probe=make_probe(fetcher),
        order_size=10,
        epochs=1,
        seed=0,
        partitions=1,
        codec=CodecSpec("float32"),
    )


def test_another_vocabulary_is_refused_by_name_on_either_side(folder: Path, tmp_path: Path) -> None:
    manifest = manifest_of(f"text:{folder}?length=32")
    check_data(manifest)
    copy = text_files(tmp_path / "copy")
    elsewhere = f"text:{copy}?length=32&tokenizer={folder / 'tokenizer.json'}"
    check_data(manifest, elsewhere)
    assert differ_in_place(manifest.dataset, elsewhere)
    tokenizer_file(copy / "tokenizer.json", (*WORDS[::-1],))
    with pytest.raises(ManifestMismatch, match=r"the SHA-256 of its tokenizer is .* here, .* in the manifest"):
        check_data(manifest, f"text:{copy}?length=32")
    tokenizer_file(folder / "tokenizer.json", (*WORDS[::-1],))
    with pytest.raises(ManifestMismatch, match=r"tokenizer .*tokenizer\.json has SHA-256 .* here, .* is pinned"):
        check_data(manifest)


def test_texts_of_another_size_or_length_are_refused(folder: Path, tmp_path: Path) -> None:
    manifest = manifest_of(f"text:{folder}?length=32")
    with pytest.raises(ManifestMismatch, match="length is 24 here, 32 in the manifest"):
        check_data(manifest, f"text:{folder}?length=24")
    copy = text_files(tmp_path / "copy")
    path = copy / "b.txt"
    path.write_text(path.read_text().replace(" \n", "  \n"))  # the same lines in more bytes
    with pytest.raises(ManifestMismatch, match="fingerprint"):
        check_data(manifest, f"text:{copy}?length=32")


def test_places_become_absolute_and_the_pin_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = absolute("text:books?tokenizer=a%20b.json&length=3")
    assert uri == f"text:{tmp_path}/books?tokenizer={tmp_path}/a%20b.json&length=3"
    assert pinned(uri, "ab") == f"{uri}&vocabulary=ab" == pinned(pinned(uri, "ab"), "cd")
    assert pinned("digits", "") == "digits"


# --- tables -----------------------------------------------------------------------------------------------------------


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer_file(path.parent / "tokenizer.json")
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_table_has_pairs_labels_and_scores(tmp_path: Path, kind: str) -> None:
    rows = [
        {"one": "the cat,\nplaying", "two": "a dog", "said": "yes", "how": "0.5"},
        {"one": "the bird", "two": "house", "said": "no", "how": ""},
        {"one": "dog", "two": "cat", "said": "", "how": "-2"},
    ]
    path = write_table(tmp_path / f"pairs.{kind}", rows)
    dataset = open_dataset(f"text_table:{path}?text=one&text2=two&label=said&score=how&length=12")
    assert dataset.class_names == ("no", "yes")
    assert dataset.labels(np.arange(3)).tolist() == [1, 0, -1]
    fields = dataset.read(np.arange(3)).fields
    assert np.array_equal(fields["score"], np.array([0.5, np.nan, -2], np.float32), equal_nan=True)
    assert fields["token_type_ids"][1].tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]
    words = fields["words"][1].tolist()
    assert words[:6] == [0, 1, 2, 0, 13, 0]
    named = open_dataset(f"text_table:{path}?text=one&label=said&classes=yes,no&length=12")
    assert named.labels(np.arange(3)).tolist() == [0, 1, -1]


def test_whole_numbers_are_classes_themselves(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", [{"text": "cat", "label": each} for each in (2, 0, "", -1)])
    dataset = open_dataset(f"text_table:{path}?label=label")
    assert dataset.labels(np.arange(4)).tolist() == [2, 0, -1, -1]
    assert (dataset.num_classes, dataset.class_names) == (3, ())


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("text=review", "has no column 'review': .*text"),
        ("label=score", r"label 0\.5 is a number that is not whole; .*score=COLUMN: metrics take it, and no loss does"),
        ("score=text", "column 'text', row 1: 'cat' is no number"),
        ("label=label&classes=good,fine", "label 'bad' is none of classes=good,fine"),
    ],
)
def test_a_column_that_cannot_be_used_is_one_line(tmp_path: Path, query: str, says: str) -> None:
    rows = [{"text": "cat", "label": "bad", "score": 0.5}, {"text": "dog", "label": "good", "score": 1}]
    path = write_table(tmp_path / "t.jsonl", rows)
    with pytest.raises(ConfigError, match=says):
        open_dataset(f"text_table:{path}?{query}")


def test_rows_without_a_text_are_faults_and_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.jsonl", [{"text": "cat"}])
    path.write_text('{"text": "cat"}\nnot json\n[1]\n{"text": 5}\n\n{"text": "\\ud800"}\n{"text": "dog"}\n')
    dataset = open_dataset(f"text_table:{path}")
    samples = dataset.read(np.arange(dataset.num_samples)[::-1])
    assert samples.kept_rows.tolist() == [0, 5]
    reasons = dict(samples.faults)
    assert "row 2: no JSON" in reasons[4]
    assert "row 3: a JSON list, not an object" in reasons[3]
    assert "row 4: no text in text" in reasons[2]
    assert "the tokenizer does not take it" in reasons[1]
    (tmp_path / "t.csv").write_bytes(b"text\nth\xe9\n")
    with pytest.raises(ConfigError, match=r"t\.csv is no UTF-8"):
        open_dataset(f"text_table:{tmp_path / 't.csv'}")
    for name, says in (("t.xlsx", "is no .csv, .tsv or .jsonl"), ("none.csv", "no file")):
        (tmp_path / "t.xlsx").touch()
        with pytest.raises(ConfigError, match=says):
            open_dataset(f"text_table:{tmp_path / name}")


def test_a_table_is_a_dataset_of_its_rows(tmp_path: Path) -> None:
    dataset = open_dataset(f"text_table:{table_file(tmp_path)}?label=label&length=32")
    assert texts_of(dataset) == sentences(8)
    assert dataset.labels(np.array([3, 4])).tolist() == [1, 0]


# --- windows ----------------------------------------------------------------------------------------------------------


def test_windows_hold_the_tokens_in_their_order_and_know_words_by_their_spelling(tmp_path: Path) -> None:
    tokenizer = tokenizer_file(tmp_path / "tokenizer.json")
    numbers = {token: number for number, token in enumerate((*SPECIAL, *WORDS))}
    tokens = "##ing cat play ##ing [SEP] ##ful the play ##ing ##ful cat"
    np.save(tmp_path / "ids.npy", np.array([numbers[token] for token in tokens.split()], np.uint16))
    dataset = open_dataset(f"tokens:{tmp_path / 'ids.npy'}?length=5&tokenizer={tokenizer}")
    assert dataset.num_samples == 2
    fields = dataset.read(np.array([1, 0])).fields
    assert fields["words"].tolist() == [[1, 2, 3, 3, 3], [1, 2, 3, 3, 0]]
    assert fields["input_ids"][1].tolist() == [numbers[token] for token in tokens.split()[:5]]
    assert (fields["attention_mask"] == 1).all()
    bare = open_dataset(f"tokens:{tmp_path / 'ids.npy'}?length=5")
    assert bare.read(np.array([0])).fields["words"].tolist() == [[1, 2, 3, 4, 5]]


def test_a_token_outside_of_the_vocabulary_is_a_fault_and_another_array_is_refused(tmp_path: Path) -> None:
    tokenizer = tokenizer_file(tmp_path / "tokenizer.json")
    path = tmp_path / "ids.npy"
    np.save(path, np.array([1, 2, 3, 4, 5, 99, 6, 7]))
    dataset = open_dataset(f"tokens:{path}?length=4&tokenizer={tokenizer}")
    samples = dataset.read(np.arange(2))
    assert samples.kept_rows.tolist() == [0]
    assert samples.faults == ((1, "ids.npy, window 1: 5 to 99; tokens are 0 to 18"),)
    with pytest.raises(ConfigError, match="has 8 tokens, fewer than one window of length=9"):
        open_dataset(f"tokens:{path}?length=9")
    np.save(path, np.zeros((3, 3)))
    with pytest.raises(OSError, match="was changed while it was open"):
        dataset.read(np.arange(1))
    with pytest.raises(ConfigError, match=r"must be \[T\] whole numbers"):
        open_dataset(f"tokens:{path}")
    with pytest.raises(ConfigError, match="no file"):
        open_dataset(f"tokens:{tmp_path / 'none.npy'}")


# --- tokenizers -------------------------------------------------------------------------------------------------------


def train(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["tokenizer", "train", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_the_same_texts_give_the_same_tokenizer_in_another_process(folder: Path, tmp_path: Path, kind: str) -> None:
    (folder / "c.txt").write_text("\n".join(f"{chr(97 + i)}{chr(98 + i)} {chr(65 + i)}é" for i in range(20)))
    size = 330 if kind == "bpe" else 110
    made = []
    for number in range(3):
        output = tmp_path / f"{number}.json"
        code = "import sys; from pipeline.cli import main; main(sys.argv[1:])"
        options = ("--kind", kind, "--vocab-size", str(size), "--output", str(output))
        command = [sys.executable, "-c", code, "tokenizer", "train", str(folder), *options]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        made.append(output.read_bytes())
    assert made[0] == made[1] == made[2]
    dataset = open_dataset(f"text:{folder}?tokenizer={tmp_path / '0.json'}&length=48")
    assert vocabulary_of(dataset).size <= size
    fields = dataset.read(np.arange(dataset.num_samples)).fields
    assert (fields["input_ids"] < vocabulary_of(dataset).size).all()
    assert vocabulary_of(dataset).mask_id >= 0
    assert (fields["words"].max(axis=1)[:30] >= 8).all()


def test_a_tokenizer_that_cannot_be_made_is_one_line(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "tokenizer.json"
    for arguments, says in (
        ((folder, "--vocab-size", 8), "special tokens and single characters alone are"),
        ((tmp_path / "none", "--vocab-size", 80), "no folder"),
        ((folder, "--vocab-size", 80, "--suffix", ".rst"), "no line of text in files .rst"),
    ):
        command = ["tokenizer", "train", *map(str, arguments), "--output", str(output)]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 1
        assert says in result.output
    assert not output.exists()
    assert json.loads(train(folder, "--vocab-size", 80, "--output", output, "--json"))["num_lines"] == 60


def test_a_dataset_whose_file_is_gone_can_not_be_fingerprinted_now(folder: Path) -> None:
    dataset = open_dataset(f"text:{folder}")
    (folder / "b.txt").unlink()
    with pytest.raises(DataUnavailable, match="cannot be read"):
        fingerprint(dataset)


def test_a_text_is_pinned_without_its_place(folder: Path, tmp_path: Path) -> None:
    one, other = (open_dataset(f"text:{place}?length=32") for place in (folder, text_files(tmp_path / "other")))
    assert fingerprint(one) == fingerprint(other)
    assert replace(vocabulary_of(one)) == vocabulary_of(other)

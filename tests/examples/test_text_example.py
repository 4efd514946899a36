"""The example of texts: what is read, what is the same text, who is in which split, and that all of it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import ConfigError, DistillogError, RunLocked

SCRIPT = Path(__file__).parents[2] / "examples" / "text" / "text.py"
sys.path.insert(0, str(SCRIPT.parent))

import corpus  # noqa: E402
import text  # noqa: E402
from unigram import UnigramNll  # noqa: E402
from variants import MLM, SIZES, VARIANTS, Recipe  # noqa: E402

SENTENCE = "The reader keeps one number for each partition and accepts that order alone, dropping all others at once."


def test_a_paragraph_is_new_unless_one_equal_but_for_case_figures_and_points_or_most_of_it_was_there():
    heard = corpus.Heard()
    assert heard.is_new(SENTENCE)
    assert not heard.is_new(SENTENCE.upper().replace(",", " - 17"))
    assert not heard.is_new(f"Note. {SENTENCE}")
    assert heard.is_new("Another sentence says something else about partitions and about what readers keep of them.")
    assert heard.left_out == 2


def test_words_are_english_and_code_tables_and_remarks_are_not():
    assert corpus.is_english(SENTENCE)
    for other in (
        ">>> print(sum(numbers[first:last]), file=output)",
        "3.5 1.2 | 7.7 one two six ten 9.1 4.4",
        "See there.",
    ):
        assert not corpus.is_english(other), other


def test_docstrings_of_a_file_say_what_they_are_of(tmp_path):
    source = f'''"""{SENTENCE}"""
class Reader:
    """Reads all the records that one partition of a topic has."""
    @property
    def place(self):
        """The offset that the reader will read on from later."""
    async def read(self):
        """Wait for the next record until the deadline is over.

        Parameters of the broker decide how long that may be.
        """
'''
    (tmp_path / "module.py").write_text(source)
    (tmp_path / "broken.py").write_text("def :")
    (tmp_path / "notes.md").write_text("Documents count too, with every paragraph that they have.")
    files = sorted(tmp_path.iterdir())
    found = corpus.read_package(files, 10_000, corpus.Heard())
    assert [kind for kind, _ in found.described] == ["module", "class", "property", "function"]
    assert len(found.paragraphs) == 6
    # No more files are read once there is enough.
    first = corpus.read_package([tmp_path / "notes.md", tmp_path / "module.py"], 1, corpus.Heard())
    assert first.paragraphs == ["Documents count too, with every paragraph that they have."]


def test_a_package_is_in_one_split_by_its_name_and_installed_ones_are_found():
    names = corpus.installed()
    assert {"numpy", "click", "asyncio", "pydoc_data"} <= set(names)
    assert not [path for files in names.values() for path in files if "_vendor" in path.parts]
    counts = Counter(map(corpus.split_of, names))
    assert set(counts) == set(corpus.SPLITS)
    assert counts["train"] > 3 * counts["test"]
    assert corpus.split_of("_decimal") == corpus.split_of("decimal")


def test_each_kind_has_as_many_rows_as_the_rarest_and_their_order_is_that_of_no_one():
    rows = [(kind, f"{kind} {number}") for at, kind in enumerate(corpus.KINDS) for number in range(3 + 4 * at)]
    chosen = corpus.balanced(rows)
    assert Counter(kind for kind, _ in chosen) == dict.fromkeys(corpus.KINDS, 3)
    assert chosen == corpus.balanced(rows[::-1])


def test_the_unigram_model_gives_no_probability_to_tokens_that_are_never_hidden(tmp_path):
    from tokenizers import Tokenizer, models

    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "one": 3, "two": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    np.save(tmp_path / "ids.npy", np.array([2, 3, 2, 3, 2, 3, 2, 4], np.uint16))
    metric = UnigramNll(str(tmp_path / "ids.npy"), str(tmp_path / "tokenizer.json"))
    assert metric.compute() == {}
    metric.update({}, {"labels": np.array([[3, -1, -1], [-1, 4, -1]])}, None)
    # [UNK], one, two: 0 + 1, 3 + 1, 1 + 1 of 7.
    assert metric.compute()["unigram_nll"] == pytest.approx(-(np.log(4 / 7) + np.log(2 / 7)) / 2)


def test_a_teacher_that_is_not_a_nat_below_the_unigram_model_may_not_teach():
    text.refuse_weak({"unigram_nll": 6.3, "position_nll": 5.2}, 1.0)
    with pytest.raises(DistillogError, match=r"0\.90 nats below the unigram model"):
        text.refuse_weak({"unigram_nll": 6.3, "position_nll": 5.4}, 1.0)
    assert SIZES["full"].nats == 1.0


def test_students_differ_in_losses_and_beginning_alone_and_see_equal_views(tmp_path):
    recipe = Recipe(tmp_path, SIZES["full"])
    runs = {variant: recipe.student(variant, 1, 1) for variant in VARIANTS}
    first = runs["triple"]["student"]["weights"]["layers"]
    assert first == {"0": 0, "1": 2}
    for variant, run in runs.items():
        assert run["optimizer"] == runs["triple"]["optimizer"]
        assert run["train"] == runs["triple"]["train"]
        assert ("weights" in run["student"]) == VARIANTS[variant].initialised
        # Those that begin with the teacher's weights differ from seed to seed by their dropout, and by nothing else.
        assert run["student"]["dropout"] > 0
        # What asks nothing of the teacher needs no log, and sees the samples of the stream in its order.
        if run["source"] == "dataset":
            assert run["losses"] == [MLM]
            assert run["data"].items() >= recipe.data("transfer").items()


def test_a_folder_that_the_example_did_not_make_or_made_otherwise_is_refused_and_a_second_call_in_one_too(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not made by this example"), text.taken(tmp_path, "tiny"):
        pass
    own, locked = tmp_path / "own", pytest.raises(RunLocked, match="runs in it already")
    with text.taken(own, "tiny"), locked, text.taken(own, "tiny"):
        pass
    with text.taken(own, "tiny"):
        pass
    with pytest.raises(ConfigError, match="other sizes"), text.taken(own, "full"):
        pass


@pytest.mark.faults
@pytest.mark.short
@pytest.mark.timeout(600)
def test_one_command_ends_in_tables_and_called_again_does_nothing_anew(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "KAFKA_BOOTSTRAP_SERVERS"}
    command = [sys.executable, SCRIPT, "--tiny", "--folder", tmp_path / "text"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    figures = json.loads((tmp_path / "text" / "report.json").read_text())
    assert figures["words"]["triple"][0]["num_positions"] == figures["words"]["nothing"][0]["num_positions"] > 100
    large, small = (figures["speed"]["parameters"][name] for name in figures["speed"]["names"])
    assert small < large
    for row in ("| unigram model |", "| triple loss, initialised |", "| parameters |", "| accuracy kept |"):
        assert any(line.startswith(row) for line in done.stdout.splitlines()), row
    assert (tmp_path / "text" / "picture.svg").read_text().startswith("<svg")
    assert not list((tmp_path / "text" / "broker").glob("*.pid"))
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("report.json") if "runs" in path.parts}
    assert len(weights) == 6
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in weights} == weights

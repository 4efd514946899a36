"""The example of sentences: what is read, by which tokens, how tables are made, and that all of it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.datasets import open_dataset
from schemas.errors import ConfigError, DistillogError, RunLocked

SCRIPT = Path(__file__).parents[2] / "examples" / "sentences" / "sentences.py"
sys.path.insert(0, str(SCRIPT.parent))

import encoder  # noqa: E402
import english  # noqa: E402
import sentences  # noqa: E402

SMALL = {"train": 300, "test": 100}


def test_sentences_of_the_test_are_of_other_packages_and_none_is_there_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(english, "TRAIN", (english.STDLIB, "numpy"))
    monkeypatch.setattr(english, "TEST", ("networkx",))
    found = english.write(tmp_path, SMALL)
    assert {split: len(each) for split, each in found.items()} == SMALL
    for split, each in found.items():
        assert (tmp_path / split / "sentences.txt").read_text().splitlines() == each
    both = [each.lower() for split in found for each in found[split]]
    assert len(set(both)) == len(both)
    assert set(found["test"]) <= set(english.sentences("networkx"))
    assert all(5 <= len(each.split()) <= 20 and each.endswith(".") for split in found for each in found[split])
    assert english.write(tmp_path / "again", SMALL) == found
    with pytest.raises(ConfigError, match=r"networkx have \d+ sentences, 1000000 are asked for"):
        english.write(tmp_path, {"train": 1, "test": 1_000_000})
    with pytest.raises(ConfigError, match="networkz is not installed: pip install"):
        next(english.sentences("networkz"))


def test_a_student_begins_with_the_main_axes_of_the_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    torch.manual_seed(0)
    flat = torch.randn(200, 6) @ torch.randn(6, 24) + 3
    monkeypatch.setattr(encoder, "word_vectors", lambda model: flat + 1e-3 * torch.randn(200, 24))
    encoder.save_first_vectors(encoder.Bert(0), 6, tmp_path / "words.safetensors")
    found = load_file(tmp_path / "words.safetensors")["tokens.weight"]
    assert found.shape == (200, 6)
    assert float(found.std()) == pytest.approx(encoder.FIRST_STD, rel=1e-3)
    # Distances stay as they were, but for a factor: all of them lay in six axes.
    before, after = torch.pdist(flat), torch.pdist(found)
    assert np.corrcoef(before.numpy(), after.numpy())[0, 1] > 0.9999


def test_a_folder_that_the_example_did_not_make_is_refused_and_a_second_call_in_one_too(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not made by this example"):
        sentences.take(tmp_path, sentences.MARKER)
    with sentences.take(tmp_path / "own", sentences.MARKER), pytest.raises(RunLocked, match="runs in it already"):
        sentences.take(tmp_path / "own", sentences.MARKER)


def test_commands_run_side_by_side_and_one_that_fails_ends_the_others(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    said = {name: [sys.executable, "-c", f"print({name!r})"] for name in ("a", "b", "c")}
    assert sentences.together(tmp_path, said) == {name: f"{name}\n" for name in said}
    pid = tmp_path / "pid"
    sleeps = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    waits = (
        f"import os, sys, time\nwhile not os.path.exists({str(pid)!r}): time.sleep(0.01)\nsys.exit('error: no room')"
    )
    with pytest.raises(DistillogError, match=r"^fails: no room \(see .*fails.log\)$"):
        sentences.together(tmp_path, {"sleeps": [sys.executable, "-c", sleeps], "fails": [sys.executable, "-c", waits]})
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.mark.kafka
@pytest.mark.public_models
@pytest.mark.timeout(900)
def test_one_command_ends_in_a_table_of_what_is_near_the_teacher(tmp_path: Path) -> None:
    environment = {name: text for name, text in os.environ.items() if name != "KAFKA_BOOTSTRAP_SERVERS"}
    command = [sys.executable, SCRIPT, "--small", "--folder", tmp_path / "s"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "s" / "report.json").read_text())
    before = np.mean([each["pair_spearman"] for each in figures["untrained"]])
    for kind in ("cosine", "relations"):
        after = [each["pair_spearman"] for each in figures["students"][kind]]
        assert len(after) == 2
        assert min(after) > before + 0.1, kind
    for found in figures["students"].values():
        assert all(5 * each["parameters"] < figures["teacher"]["parameters"] for each in found)
    assert figures["int8"]["pair_spearman"] == pytest.approx(
        figures["students"]["cosine"][0]["pair_spearman"], abs=0.01
    )
    served = figures["served"]
    assert 3 * served["student, int8"]["bytes"] < served["student"]["bytes"] < served["teacher"]["bytes"] / 5
    assert served["teacher"]["p50_ms"] > 5 * served["student"]["p50_ms"]
    rows = ("its words' TF-IDF", "student, untrained", "student, cosine", "student, relations", "student, int8")
    for row in rows:
        assert sum(line.startswith(f"| {row} |") for line in done.stdout.splitlines()) == 1, row
    assert not list((tmp_path / "s" / "broker").glob("*.pid"))

    # The tokens are those that the encoder's own vocabulary makes, by another implementation.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from public_models.sentence_encoder import LENGTH, tokens

    data = open_dataset(sentences.uri(tmp_path / "s", "test"))
    texts = (tmp_path / "s" / "test" / "sentences.txt").read_text().splitlines()
    ids = data.read(np.arange(len(texts))).fields["input_ids"]
    whole = [row for row, own in enumerate(ids) if (own > 0).sum() < LENGTH]
    assert len(whole) > 200
    for row in whole:
        assert ids[row][:LENGTH].tolist() == tokens(texts[row])[0].tolist(), texts[row]

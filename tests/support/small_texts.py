"""Small folders of text, and tokenizers that take no training: a word, or a piece of one, for each line of a list."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("the", "cat", "dog", "bird", "sees", "hears", "a", "small", "old", "house", "play", "##ing", "##ful", ".")


def tokenizer_file(path: Path, words: tuple[str, ...] = WORDS, special: tuple[str, ...] = SPECIAL) -> Path:
    """Write a WordPiece tokenizer in the manner of BERT."""
    vocab = {token: number for number, token in enumerate((*special, *words))}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(special))
    if "[CLS]" in special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(name, vocab[name]) for name in ("[CLS]", "[SEP]")],
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences in which the word after each is often the same one."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        who, what, whom = draw.integers(0, 3, 3)
        animals, verbs = WORDS[1:4], ("sees", "hears", "sees")
        tail = " . the old house" if draw.random() < 0.5 else ""
        found.append(f"the small {animals[who]} {verbs[what]} a playful {animals[whom]} playing{tail} .")
    return found


def text_files(folder: Path, count: int = 60) -> Path:
    """A folder of two files, one of them in a subfolder, with blank lines between; the tokenizer lies in it."""
    (folder / "more").mkdir(parents=True, exist_ok=True)
    lines = sentences(count)
    (folder / "b.txt").write_text("\n \n".join(lines[: count // 2]) + "\n", encoding="utf-8")
    (folder / "more" / "a.txt").write_text("\n".join(lines[count // 2 :]), encoding="utf-8")
    (folder / "notes.md").write_text("not read\n", encoding="utf-8")
    tokenizer_file(folder / "tokenizer.json")
    return folder


def table_file(folder: Path) -> Path:
    """Eight reviews with labels, as JSON lines, and the tokenizer beside them."""
    tokenizer_file(folder / "tokenizer.json")
    rows = [{"text": text, "label": ("bad", "good")[number % 2]} for number, text in enumerate(sentences(8))]
    path = folder / "reviews.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path

"""A tokenizer made of a folder's texts: the same texts give the same bytes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.datasets.folder import open_folder
from pipeline.datasets.texts.folder import listed
from pipeline.datasets.texts.index import TextFile
from pipeline.datasets.texts.tokens import need_tokenizers
from pipeline.progress import Progress
from pipeline.whole_files import write_whole
from schemas.errors import ConfigError

log = logging.getLogger(__name__)

KINDS = ("wordpiece", "bpe")
"""WordPiece as BERT has it (Schuster and Nakajima 2012), and byte-level BPE as GPT-2 has it (Sennrich et al. 2016)."""
_OF_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_OF_BYTES = ("<pad>", "</s>", "<mask>")


@dataclass(frozen=True, slots=True)
class Made:
    """What was written."""

    path: Path
    num_tokens: int
    num_lines: int
    num_skipped: int
    """Lines that are no UTF-8."""


def train_tokenizer(
    folder: str, output: Path, vocab_size: int, kind: str, lowercase: bool, suffixes: tuple[str, ...]
) -> Made:
    """Train on all lines of the text files below a folder, and write a `tokenizer.json`.

    Args:
        folder: with text files at any depth.
        output: the file that is written.
        vocab_size: how many tokens there are to be, special ones among them; fewer where the texts have no more.
        kind: one of KINDS.
        lowercase: of WordPiece: whether capitals and accents are dropped.
        suffixes: of the files that are read.

    Raises:
        ConfigError: no such folder, no text in it, or more characters in it than tokens.
        CannotWrite: the disk refuses.
    """
    package = need_tokenizers("distillog tokenizer")
    root, place = open_folder("text", folder, "")
    lines = _Lines(place, listed(root, place, suffixes))
    make = _word_piece if kind == "wordpiece" else _byte_level
    tokenizer = make(package, lines, vocab_size, lowercase)
    if not lines.num_lines:
        raise ConfigError(f"{place}: no line of text in files {' '.join(suffixes)}; others are named with --suffix")
    if lines.num_skipped:
        log.warning("%s: %d lines are no UTF-8, and were left out", place, lines.num_skipped)
    num_tokens = tokenizer.get_vocab_size(with_added_tokens=True)
    if num_tokens > vocab_size:
        raise ConfigError(
            f"--vocab-size {vocab_size}: special tokens and single characters alone are {num_tokens}; give more"
        )
    write_whole(output, tokenizer.to_str(pretty=True) + "\n")
    return Made(output, num_tokens, lines.num_lines, lines.num_skipped)


class _Lines:
    """The lines of files, once each time that they are asked for."""

    def __init__(self, folder: Path, files: tuple[TextFile, ...]) -> None:
        self._folder = folder
        self._files = files
        self.num_lines = self.num_skipped = 0

    def __iter__(self) -> Iterator[str]:
        self.num_lines = self.num_skipped = 0
        with Progress(title="learning tokens", after=2.0) as progress:
            for number, each in enumerate(self._files):
                progress.update(files=number, lines=self.num_lines)
                with (self._folder / each.path).open("rb") as file:
                    for line in file:
                        try:
                            text = line.decode("utf-8").strip().removeprefix("\ufeff")
                        except UnicodeDecodeError:
                            self.num_skipped += 1
                            continue
                        if text:
                            self.num_lines += 1
                            yield text


def _word_piece(package: Any, lines: _Lines, vocab_size: int, lowercase: bool) -> Any:
    """Train twice: the first time for the characters alone.

    The package gives a character within a word ("##e") its ID when it first meets it in a table of words that has
    another order in each process, and of two pairs that are as frequent it takes that of lower IDs. So these are named
    beforehand, in their order, among the special tokens; the tokenizer that is written does not call them that.
    """

    def trained(size: int, special: list[str]) -> Any:
        tokenizer = _bert(package, package.models.WordPiece(unk_token="[UNK]"), lowercase)
        trainer = package.trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
        tokenizer.train_from_iterator(lines, trainer)
        return tokenizer

    inner = sorted(token for token in trained(0, list(_OF_BERT)).get_vocab() if token.startswith("##"))
    vocab = trained(vocab_size, [*_OF_BERT, *inner]).get_vocab()
    model = package.models.WordPiece(vocab=vocab, unk_token="[UNK]", max_input_chars_per_word=100)
    tokenizer = _bert(package, model, lowercase)
    tokenizer.add_special_tokens(list(_OF_BERT))
    ends = [(name, vocab[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = package.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return tokenizer


def _bert(package: Any, model: Any, lowercase: bool) -> Any:
    tokenizer = package.Tokenizer(model)
    tokenizer.normalizer = package.normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = package.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = package.decoders.WordPiece(prefix="##")
    return tokenizer


def _byte_level(package: Any, lines: _Lines, vocab_size: int, lowercase: bool) -> Any:
    tokenizer = package.Tokenizer(package.models.BPE())
    tokenizer.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = package.decoders.ByteLevel()
    trainer = package.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_OF_BYTES),
        initial_alphabet=sorted(package.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    end = [("</s>", tokenizer.token_to_id("</s>"))]
    tokenizer.post_processor = package.processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B:1 </s>:1", special_tokens=end
    )
    return tokenizer

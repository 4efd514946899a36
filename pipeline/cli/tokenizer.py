"""`distillog tokenizer`: vocabularies for texts."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.options import json_option, print_json


@click.group()
def tokenizer() -> None:
    """Make tokenizers; needs no Kafka."""


@tokenizer.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--vocab-size", required=True, type=click.IntRange(2, 1 << 24), help="Tokens, special ones among them.")
@click.option("--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The file to write.")
@click.option(
    "--kind",
    type=click.Choice(("wordpiece", "bpe")),
    default="wordpiece",
    show_default=True,
    help="WordPiece, or byte-level BPE.",
)
@click.option("--cased", is_flag=True, help="Keep capitals and accents; byte-level BPE always does.")
@click.option("--suffix", default=".txt", show_default=True, help="Of the files that are read, joined by commas.")
@json_option
def train(folder: Path, vocab_size: int, output: Path, kind: str, cased: bool, suffix: str, as_json: bool) -> None:
    """Make a tokenizer.json of the text files below FOLDER.

    The same files give the same bytes.
    """
    import hashlib

    from pipeline.datasets.texts.folder import suffixes_of
    from pipeline.datasets.texts.train import train_tokenizer

    made = train_tokenizer(str(folder), output, vocab_size, kind, not cased, suffixes_of(suffix))
    sha256 = hashlib.sha256(output.read_bytes()).hexdigest()
    if as_json:
        print_json(
            {
                "path": str(made.path),
                "kind": kind,
                "num_tokens": made.num_tokens,
                "num_lines": made.num_lines,
                "num_skipped": made.num_skipped,
                "sha256": sha256,
            }
        )
        return
    click.echo(f"{made.path}: {made.num_tokens:,} tokens ({kind}) of {made.num_lines:,} lines, SHA-256 {sha256}")

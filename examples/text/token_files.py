"""The corpus as token IDs, a file for each split, as the dataset `tokens:` takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

TOKENIZER = "tokenizer.json"


def write_tokens(folder: Path, files: dict[str, tuple[str, int]]) -> dict[str, int]:
    """Write NAME.npy [T] uint16 of SPLIT/*.txt, and return how many tokens each has.

    Paragraphs of a package follow one another. `files`: of each name the split, and about the most tokens there are
    to be, 0 for all; of each package then counts an equal share of its paragraphs, the first ones.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    counts = {}
    for name, (split, most) in files.items():
        texts = [
            [np.array(each.ids, np.uint16) for each in tokenizer.encode_batch(file.read_text("utf-8").splitlines())]
            for file in sorted((folder / split).glob("*.txt"))
        ]
        total = sum(len(ids) for package in texts for ids in package)
        share = min(1.0, most / total) if most else 1.0
        kept = [ids for package in texts for ids in package[: max(1, round(share * len(package)))]]
        np.save(folder / f"{name}.npy", np.concatenate(kept))
        counts[name] = sum(len(ids) for ids in kept)
    return counts

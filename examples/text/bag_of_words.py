"""What single words and pairs of neighbours tell of the classification: logistic regression, beside the networks."""

from __future__ import annotations

import json
from pathlib import Path


def bag_of_words(train: Path, test: Path) -> float:
    """Accuracy on the test's rows; each file has lines of `text` and `kind`."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    splits = []
    for path in (train, test):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        splits.append(([row["text"] for row in rows], [row["kind"] for row in rows]))
    model = make_pipeline(CountVectorizer(min_df=2, ngram_range=(1, 2)), LogisticRegression(max_iter=1000))
    model.fit(*splits[0])
    return float(model.score(*splits[1]))

"""What students of sentences are held against their teacher by, and what stands beside them without having learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.onnx_runtime import open_session
from pipeline.views.fetch import Fetcher
from student_trainer.evaluate import Model, evaluate
from student_trainer.learning.first_weights import begin_with
from student_trainer.learning.students import build_student
from student_trainer.run.metric_settings import MetricSettings
from student_trainer.trained import Trained, load_student

Arrays = Mapping[str, NDArray[Any]]

AGAINST = {"against": "sentence_embedding"}
METRICS = tuple(MetricSettings(name, params={"on": "embedding", **AGAINST}) for name in ("neighbours", "features"))
OF_ONE_OUTPUT = (MetricSettings("neighbours", params=AGAINST),)
"""Of what gives nothing else, under whatever name: an exported file's only output is called `logits`."""
_AT_ONCE = 200


class Measure:
    """The test's sentences, and the teacher's embeddings of them, which are computed once."""

    def __init__(self, fetcher: Fetcher, teacher: Path) -> None:
        self._fetcher = fetcher
        session, self._known = open_session(teacher, threads=2), dict[bytes, NDArray[Any]]()
        for start in range(0, fetcher.dataset.num_samples, _AT_ONCE):
            inputs = self._inputs(np.arange(start, min(start + _AT_ONCE, fetcher.dataset.num_samples)))
            taken = {each.name: inputs[each.name] for each in session.get_inputs()}
            vectors = session.run(["sentence_embedding"], taken)[0]
            self._known |= zip(map(bytes, inputs["input_ids"]), vectors, strict=True)

    def _inputs(self, sample_ids: NDArray[np.int64]) -> Arrays:
        return self._fetcher.fetch(sample_ids, 0).inputs

    def _teacher(self, inputs: Arrays) -> Arrays:
        return {"sentence_embedding": np.stack([self._known[bytes(row)] for row in inputs["input_ids"]])}

    def figures(self, model: Model, fields: tuple[str, ...] = ()) -> dict[str, float]:
        """Return those of `neighbours`, and of a student in PyTorch, whose `fields` are named, those of `features`."""
        metrics = METRICS if fields else OF_ONE_OUTPUT
        return evaluate(model, self._fetcher, _AT_ONCE, self._teacher, metrics=metrics, fields=fields)

    def of_run(self, run: Path) -> dict[str, float]:
        """Return a run's student's, and its `parameters`."""
        return self._of_student(load_student(run))

    def before_training(self, run: Path) -> dict[str, float]:
        """Return those of the weights that a run began with."""
        trained = load_student(run)
        settings = trained.settings
        model = build_student(settings.student, trained.network, settings.train.seed)
        if settings.student.weights is not None:
            begin_with(model, settings.student.weights)
        return self._of_student(trained, model)

    def _of_student(self, trained: Trained, model: nn.Module | None = None) -> dict[str, float]:
        module = model or trained.model
        found = self.figures(model or trained.outputs, trained.network.fields)
        return found | {"parameters": sum(each.numel() for each in module.parameters())}

    def of_words(self, word_vectors: Tensor) -> dict[str, dict[str, float]]:
        """Return those of bags of tokens: by TF-IDF, and the mean of the teacher's own vectors [V, H] of words."""
        ids = self._inputs(np.arange(self._fetcher.dataset.num_samples))["input_ids"]
        tokens, counts = np.unique(ids[ids > 0], return_counts=True)
        # Of the test's own sentences, which favours the baseline.
        weights = np.zeros(len(word_vectors), np.float32)
        weights[tokens] = np.log(len(ids) / np.minimum(counts, len(ids) - 1))
        vectors = word_vectors.numpy() - word_vectors.numpy().mean(axis=0)

        def tf_idf(inputs: Arrays) -> Arrays:
            found = np.zeros((len(inputs["input_ids"]), len(weights)), np.float32)
            rows = np.arange(len(found))[:, None]
            np.add.at(found, (rows, inputs["input_ids"]), weights[inputs["input_ids"]])
            return {"embedding": found[:, tokens]}

        def mean(inputs: Arrays) -> Arrays:
            found = vectors[inputs["input_ids"]] * weights[inputs["input_ids"]][:, :, None]
            return {"embedding": found.sum(axis=1) / inputs["attention_mask"].sum(axis=1, keepdims=True)}

        return {"its words' TF-IDF": self.figures(tf_idf), "the teacher's word vectors": self.figures(mean)}

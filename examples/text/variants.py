"""Which runs the example makes: the teacher, its students with and without each part of the recipe, the classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus import KINDS
from token_files import TOKENIZER

STREAM, TEACHER = "text", "bert"
LENGTH = 64
"""Tokens of a sample."""
TEMPERATURE = 2.0
TOP = 32
"""Likeliest tokens of a position that are stored; the mass of all others is stored as one."""
INPUTS = ["input_ids", "attention_mask"]
MLM = {"name": "cross_entropy", "key": "mlm", "labels": "labels", "weight": 2.0}
KL = {"name": "forward_kl", "key": "kl", "temperature": TEMPERATURE, "weight": 5.0}
COSINE = {"name": "cosine", "on": "hidden", "against": "hidden"}


@dataclass(frozen=True, slots=True)
class Variant:
    """A student: all are of one network, and see equal views in equal order for equally many steps."""

    title: str
    losses: tuple[dict[str, Any], ...]
    initialised: bool = True
    """With every second layer of the teacher, and its embeddings; else by its seed."""


VARIANTS = {
    "triple": Variant("triple loss, initialised", (KL, MLM, COSINE)),
    "alone": Variant("without the teacher's outputs", (MLM,)),
    "fresh": Variant("without the initialisation", (KL, MLM, COSINE), initialised=False),
    "no-kl": Variant("without KL", (MLM, COSINE)),
    "no-mlm": Variant("without masked-LM cross entropy", (KL, COSINE)),
    "no-cosine": Variant("without the cosine", (KL, MLM)),
    "nothing": Variant("with neither outputs nor initialisation", (MLM,), initialised=False),
}
"""The weights of losses are DistilBERT's (5, 2, 1)."""
CLASSIFIED = ("triple", "alone", "fresh", "nothing")
"""Students that are fine-tuned, beside the teacher."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything there is."""

    most: int
    """Characters of one package."""
    vocabulary: int
    layers: int
    width: int
    heads: int
    asked: int
    """About as many tokens of validation, and of the test."""
    teacher_steps: int
    steps: int
    """Of a student."""
    classifier_steps: int
    batch_size: int
    variants: tuple[str, ...]
    seeds: int
    nats: float
    """So many below the unigram model a teacher has to be, to teach."""
    dropout: float = 0.1
    """Of students and classifiers: all that their seeds differ in where they begin with the teacher's weights."""


SIZES = {
    "full": Size(600_000, 4096, 4, 128, 4, 60_000, 6000, 600, 400, 16, tuple(VARIANTS), 2, 1.0),
    "short": Size(100_000, 4096, 4, 128, 4, 30_000, 2000, 400, 200, 16, ("triple", "alone", "nothing"), 1, 0.3),
    "tiny": Size(3000, 1000, 2, 32, 2, 6000, 60, 20, 20, 16, ("triple", "nothing"), 1, -1.0),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """The run files of one size in one folder."""

    folder: Path
    size: Size

    @property
    def corpus(self) -> Path:
        """Where the texts lie."""
        return self.folder / "corpus"

    @property
    def runs(self) -> Path:
        """Where runs live."""
        return self.folder / "runs"

    @property
    def layers(self) -> int:
        """Of a student."""
        return self.size.layers // 2

    def token_files(self) -> dict[str, tuple[str, int]]:
        """Files of token IDs: name, split that they are of, and about how many there are to be, 0 for all.

        `transfer` is what students learn from, and what the teacher labels: a part of what it read.
        """
        size = self.size
        asked = {"validation": ("validation", size.asked), "test": ("test", size.asked)}
        # A fiftieth more than is needed, since whole paragraphs are taken: a window too few would be an epoch more.
        needed = 51 * size.steps * size.batch_size * LENGTH // 50
        return {"train": ("train", 0), "transfer": ("train", needed), **asked}

    def tokens(self, name: str) -> str:
        """URI of a file's windows."""
        place = self.corpus.absolute()
        return f"tokens:{place / name}.npy?length={LENGTH}&tokenizer={place / TOKENIZER}"

    def kinds(self, split: str) -> str:
        """URI of a split's docstrings, labelled with what they are of."""
        place = self.corpus.absolute()
        table = f"text_table:{place}/kinds-{split}.jsonl?text=text&label=kind&classes={','.join(KINDS)}"
        return f"{table}&length={LENGTH}&tokenizer={place / TOKENIZER}"

    def data(self, name: str) -> dict[str, Any]:
        """A file's windows with words hidden; those of `transfer` are the stream's, for who learns without it, too."""
        return {"dataset": self.tokens(name), "view": "masked", "order_size": 128, "seed": 0}

    def stream_epochs(self, num_tokens: int) -> int:
        """Of so many tokens: how many epochs of the stream the students' steps need."""
        return -(-self.size.steps * self.size.batch_size // (num_tokens // LENGTH))

    def teacher(self) -> dict[str, Any]:
        """The teacher: as BERT, by masked words alone."""
        data = {**self.data("train"), "seed": 1, "labelled": 0}
        document = self._language_model("teacher", self.size.layers, self.size.teacher_steps, 0, "validation")
        return {**document, "source": "dataset", "data": data, "losses": [MLM | {"weight": 1.0}]}

    def student(self, variant: str, seed: int, epochs: int) -> dict[str, Any]:
        """A student of half the layers."""
        asked = VARIANTS[variant]
        document = self._language_model(f"{variant}-{seed}", self.layers, self.size.steps, seed, "test")
        document["student"]["dropout"] = self.size.dropout
        if asked.initialised:
            layers = {str(number): 2 * number for number in range(self.layers)}
            document["student"]["weights"] = {"path": str(self.runs / "teacher"), "layers": layers}
        document["losses"] = list(asked.losses)
        if asked.losses == (MLM,):
            return {**document, "source": "dataset", "data": {**self.data("transfer"), "epochs": epochs, "labelled": 0}}
        return {**document, "source": "stream", "data": {"stream": STREAM}, "teachers": [{"name": TEACHER}]}

    def classifier(self, of: str, seed: int) -> dict[str, Any]:
        """The language model run `of`, fine-tuned to say what a docstring is of."""
        steps, layers = self.size.classifier_steps, self.size.layers if of == "teacher" else self.layers
        weights = {"path": str(self.runs / of), "fresh": ["head"]}
        return {
            "name": f"kinds-{of}-{seed}",
            "source": "dataset",
            "data": {"dataset": self.kinds("train"), "view": "none", "order_size": 128, "seed": seed},
            "student": {**self._network(layers, self.size.dropout), "weights": weights},
            "losses": [{"name": "cross_entropy"}],
            "optimizer": {"name": "adamw", "lr": 1e-3, "clip_norm": 5.0},
            "schedule": {"name": "linear", "warmup": steps // 10},
            "train": {"batch_size": self.size.batch_size, "steps": steps, "seed": seed},
            "checkpoint": {"every": 200, "keep": 1},
            "evaluation": {"dataset": self.kinds("test"), "view": "none"},
        }

    def _language_model(self, name: str, layers: int, steps: int, seed: int, split: str) -> dict[str, Any]:
        place = self.corpus.absolute()
        counts = {"tokens": str(place / "train.npy"), "tokenizer": str(place / TOKENIZER)}
        metrics = [{"name": "position_nll", "labels": "labels"}, {"name": "unigram:UnigramNll", **counts}]
        return {
            "name": name,
            "student": self._network(layers) | {"positions": True, "tied": True},
            "optimizer": {"name": "adamw", "lr": 1e-3, "clip_norm": 5.0},
            "schedule": {"name": "linear", "warmup": steps // 20},
            "train": {"batch_size": self.size.batch_size, "steps": steps, "seed": seed, "threads": 1},
            "checkpoint": {"every": 500, "keep": 1},
            "evaluation": {
                "dataset": self.tokens(split),
                "view": "masked",
                "every": max(1, steps // 4),
                "batch_size": 64,
                "metrics": metrics,
            },
        }

    def _network(self, layers: int, dropout: float = 0.0) -> dict[str, Any]:
        size = self.size
        shape = {"layers": layers, "width": size.width, "heads": size.heads, "dropout": dropout}
        return {"name": "transformer", "inputs": INPUTS, **shape}

"""Losses against hard labels, row by row.

Letters: B rows of a batch, C classes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from student_trainer.learning.targets import Target


def cross_entropy(
    logits: Tensor,
    target: Target | None,
    labels: Tensor,
    temperature: float,
    labelled_fraction: float = 1.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log p_s(label) at T = 1 / labelled fraction of the data; 0 where a row has no label.

    So the batch's mean is the sum over labelled rows / (B * labelled fraction): a lone label in a batch does not carry
    a whole loss, and its expectation is that of the mean over labelled rows. Ignores temperature and target: the hard
    loss is not multiplied by T^2. With label smoothing e the label's distribution is (1 - e) of it and e / C for each
    class (Szegedy et al. 2016, section 7): the baseline that softness alone, without a teacher, is held against.
    """
    rows = functional.cross_entropy(logits, labels, ignore_index=-1, reduction="none", label_smoothing=label_smoothing)
    return rows if labelled_fraction == 1 else rows / labelled_fraction

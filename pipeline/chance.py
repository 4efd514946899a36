"""Whether a classifier is better than no classifier at all."""

from __future__ import annotations


def chance_level(accuracy: float, num_commonest: int, num_labelled: int) -> str:
    """Say where one is no better than always naming the commonest class, within two standard errors; else "".

    Labels of one class say nothing, and what is always right is never called so.
    """
    if accuracy == 1.0 or num_commonest == num_labelled:
        return ""
    share = num_commonest / num_labelled
    if accuracy > share + 2 * (share * (1 - share) / num_labelled) ** 0.5:
        return ""
    return f"no better than always naming the commonest class, which is right for {share:.1%}"

"""Warnings that come again and again."""

from __future__ import annotations

import logging

import pytest

from pipeline import complaints
from pipeline.complaints import Complaints


def test_the_same_fault_is_told_once_in_a_while_and_another_at_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Complaints(logging.getLogger("here"))
    for text in ("one", "one", "another", "one"):
        told.warn(text)
    assert caplog.messages == ["one", "another", "one"]
    monkeypatch.setattr(complaints, "EVERY", 0.0)
    told.warn("two")
    told.warn("two")
    assert caplog.messages[3:] == ["two", "two"]

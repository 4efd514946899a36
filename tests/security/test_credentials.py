"""What a certificate's own file says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.certificates import DAY, Authority

from pipeline.kafka.credentials import valid_until


@pytest.mark.parametrize("days", [-1, 1, 365, 365 * 40])
def test_the_moment_in_which_a_certificate_expires_is_read_from_it(days: int, tmp_path: Path) -> None:
    """Beyond 2049 it is written with four digits of the year."""
    issued = Authority(tmp_path, "ours").issue("alice", "localhost", lasts=days * DAY)
    expected = datetime.now(UTC) + days * DAY
    assert abs(valid_until(issued.certificate) - expected) < timedelta(minutes=5)


def test_what_is_no_certificate_has_no_such_moment(tmp_path: Path) -> None:
    issued = Authority(tmp_path, "ours").issue("alice")
    with pytest.raises(ValueError, match="substring not found"):
        valid_until(issued.key)

"""Dead letters as users meet them: why rows have no labels, and one letter in full.

Workers that go on where another died write the letters of an order again, so what counts is one letter for each
teacher, record and row: the first. A letter's number is its offset in the topic.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from kafka import TopicPartition

from pipeline.kafka.log import Cluster, Reader, Record
from pipeline.kafka.reading import read_to_end
from pipeline.names import address_of, dead_letters_topic, work_orders_topic
from pipeline.progress import Progress
from pipeline.streams import Stream, topic_missing
from schemas.errors import CannotWrite, ConfigError, DecodeError, StreamChanged
from schemas.records import DeadLetter

_MOST_KINDS = 10_000
"""Kinds of reasons, and workers, that are told apart: whoever may write the topic may write any."""
_OTHERS = "(others)"
_LONGEST = 1_000
"""Characters of a reason that its kind depends on; workers write no more."""
_QUOTED = re.compile(r"(?<!\w)('[^']*'|\"[^\"]*\")(?!\w)")
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+(\.\d+)?")
_ROW_BITS = 32
"""No order has as many rows as these can number."""
_SHOW_TIMEOUT = 30.0
_FETCH_BYTES = 1 << 22
_PROGRESS_EVERY = 1024

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Histogram(Generic[T]):
    """How many letters have which value."""

    commonest: tuple[tuple[T, int], ...]
    """(value, letters), the commonest first"""
    num_more: int
    """other values that letters have"""


@dataclass(frozen=True, slots=True)
class Letters:
    """What a stream's letters say, each counted once."""

    num_letters: int
    num_of_records: int
    """of them about whole records that are no work orders; the others are each about one row of an order"""
    num_repeated: int
    """records that are a letter once more"""
    num_foreign: int
    """records of the topic that are no letters of this stream"""
    num_removed: int
    """records that retention removed"""
    reasons: Histogram[str]
    """by kind: `kind_of`"""
    first_of: dict[str, int]
    """kind of reason -> number of the first letter of that kind, for those of `reasons`"""
    samples: Histogram[int]
    workers: Histogram[str]
    teachers: Histogram[str]


@dataclass(frozen=True, slots=True)
class Found:
    """One letter where it lies."""

    number: int
    letter: DeadLetter
    worker: str
    """who wrote it; "" where nothing says it"""

    @property
    def address(self) -> str:
        """Of the record that it is about."""
        return address_of(self.letter)


@dataclass(slots=True)
class _Counts:
    """Of what was read so far. What grows with the letters is a number for each of them, and one for each sample."""

    seen: defaultdict[tuple[str, int], set[int]] = field(default_factory=lambda: defaultdict(set))
    """(teacher, partition) -> offsets and rows in one number each"""
    reasons: Counter[str] = field(default_factory=Counter)
    first_of: dict[str, int] = field(default_factory=dict)
    samples: Counter[int] = field(default_factory=Counter)
    workers: Counter[str] = field(default_factory=Counter)
    teachers: Counter[str] = field(default_factory=Counter)
    num_of_records: int = 0
    num_repeated: int = 0
    num_foreign: int = 0

    def add(self, found: Found) -> None:
        """Count a letter, unless it was counted already."""
        letter = found.letter
        rows = self.seen[letter.teacher, letter.partition]
        place = letter.offset << _ROW_BITS | (0 if letter.row is None else letter.row + 1)
        if place in rows:
            self.num_repeated += 1
            return
        rows.add(place)
        kind = _count(self.reasons, kind_of(letter.reason))
        self.first_of.setdefault(kind, found.number)
        _count(self.workers, found.worker or "(unknown)")
        _count(self.teachers, letter.teacher)
        self.num_of_records += letter.row is None
        if letter.sample_id is not None:
            self.samples[letter.sample_id] += 1


def list_letters(
    cluster: Cluster,
    stream: Stream,
    *,
    most: int,
    timeout: float,
    teacher: str | None = None,
    sample: int | None = None,
) -> Letters:
    """Count a stream's letters.

    Args:
        cluster: where it is.
        stream: whose.
        most: values in each histogram.
        timeout: seconds for all of it.
        teacher: count the letters of this teacher alone, which may have been removed.
        sample: count the letters about this sample alone.

    Raises:
        StreamNotFound: the stream never had such a teacher.
        StreamChanged: somebody deleted the topic.
        NotAuthorized: it may not be read.
        BrokerUnavailable: not read to its end in time.
    """
    if teacher is not None and teacher not in {*stream.removed, *stream.unread}:
        stream.teacher(teacher)
    partition = _partition(cluster, stream)
    counts = _Counts()
    title = f"reading {partition.topic}"
    with closing(cluster.reader(fetch_bytes=_FETCH_BYTES)) as reader, Progress(title=title, after=2.0) as progress:
        begin = reader.begins([partition])[partition]
        for record in read_to_end(reader, partition, begin, timeout):
            if record.offset % _PROGRESS_EVERY == 0:
                progress.update(records=record.offset - begin)
            try:
                found = _found(record, stream)
            except DecodeError:
                counts.num_foreign += 1
                continue
            if teacher in (None, found.letter.teacher) and sample in (None, found.letter.sample_id):
                counts.add(found)
    reasons = _histogram(counts.reasons, most)
    return Letters(
        num_letters=counts.reasons.total(),
        num_of_records=counts.num_of_records,
        num_repeated=counts.num_repeated,
        num_foreign=counts.num_foreign,
        num_removed=begin,
        reasons=reasons,
        first_of={kind: counts.first_of[kind] for kind, _ in reasons.commonest},
        samples=_histogram(counts.samples, most),
        workers=_histogram(counts.workers, most),
        teachers=_histogram(counts.teachers, most),
    )


def read_letter(cluster: Cluster, stream: Stream, number: int) -> Found:
    """Read one letter.

    Raises:
        ConfigError: no letter has that number.
        StreamChanged, NotAuthorized, BrokerUnavailable: as `list_letters`.
    """
    partition = _partition(cluster, stream)
    with closing(cluster.reader()) as reader:
        record = _record(reader, partition, number)
    try:
        if record is not None:
            return _found(record, stream)
        why = "nothing has that number"
    except DecodeError as error:
        why = error.reason
    name = stream.manifest.stream
    raise ConfigError(f"stream {name!r} has no letter {number} ({why}); see `distillog letters list {name}`")


def write_raw(found: Found, path: Path) -> None:
    """Write the bytes that a letter carries to a new file; nothing is overwritten, nor any link followed.

    Raises:
        ConfigError: it carries none.
        CannotWrite: something lies at the path, or the disk refuses; the file is removed then.
    """
    raw = found.letter.raw
    if raw is None:
        raise ConfigError(
            f"letter {found.number} is about a row of a work order and carries no bytes: its sample, "
            f"{found.letter.sample_id}, lies in the dataset"
        )
    try:
        file = path.open("xb")
        try:
            with file:
                file.write(raw)
        except OSError:
            path.unlink(missing_ok=True)
            raise
    except FileExistsError:
        raise CannotWrite(f"{path}: exists, and nothing is overwritten: give the name of a new file") from None
    except OSError as error:
        raise CannotWrite(f"{path}: cannot be written: {error.strerror}; give another name, or make room") from None


def kind_of(reason: str) -> str:
    """Return a reason with `*` for what differs from one sample to the next: numbers, paths, what stands in quotes."""
    text = _QUOTED.sub("*", reason[:_LONGEST])
    return " ".join(map(_kind_of_word, text.split(" ")))


def _kind_of_word(word: str) -> str:
    if word.isalpha():
        return word
    bare = word.rstrip(":;,.)")
    if "/" in bare and (bare.startswith("/") or "." in bare.rpartition("/")[2]):
        return "*" + word[len(bare) :]
    return _NUMBER.sub("*", word)


def _partition(cluster: Cluster, stream: Stream) -> TopicPartition:
    topic = dead_letters_topic(stream.manifest.stream)
    with closing(cluster.admin()) as admin:
        if admin.identities([topic])[topic] is None:
            raise StreamChanged(topic_missing(topic))
    return TopicPartition(topic, 0)


def _record(reader: Reader, partition: TopicPartition, number: int) -> Record | None:
    """The record at an offset; None: there is none, or none any more."""
    if not reader.begins([partition])[partition] <= number < reader.ends([partition])[partition]:
        return None
    return next(read_to_end(reader, partition, number, _SHOW_TIMEOUT, number + 1), None)


def _found(record: Record, stream: Stream) -> Found:
    """Decode a letter. Raises DecodeError where the record is none, or none of this stream's."""
    address, raw = address_of(record), record.value or b""
    letter = DeadLetter.decode(raw, address)
    if letter.stream_id != stream.manifest.stream_id or letter.topic != work_orders_topic(stream.manifest.stream):
        raise DecodeError(address, "a letter of another stream", raw)
    worker = dict(record.headers).get("worker") or b""
    return Found(record.offset, letter, worker.decode(errors="backslashreplace"))


def _count(counts: Counter[str], value: str) -> str:
    """Count a value, as one of many others where there are too many; returns what it was counted as."""
    counted = value if value in counts or len(counts) < _MOST_KINDS else _OTHERS
    counts[counted] += 1
    return counted


def _histogram(counts: Counter[T], most: int) -> Histogram[T]:
    commonest = tuple(counts.most_common(most))
    return Histogram(commonest, len(counts) - len(commonest))

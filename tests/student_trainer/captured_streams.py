"""Streams of the digits whose labels the tests write by hand, to be captured, and commands that know no broker."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np
from reader_logs import Logs, label
from support.streams import DIGITS, OPTIONS, fetcher

from pipeline.create import add_teacher, create_stream
from pipeline.kafka.clients import new_admin, new_producer
from pipeline.kafka.settings import KafkaSettings
from pipeline.streams import delete_stream, open_stream
from schemas.records import Output, SoftTargets, Teacher, TeacherInput, TeacherOutput

NUM_ORDERS = 41
NO_KAFKA = """
import sys
from pipeline.cli import main
try:
    main(sys.argv[1:])
finally:
    assert "student_trainer.train" in sys.modules
    assert not [name for name in sys.modules if name.partition(".")[0] == "kafka"]
"""
"""A command that ends with a traceback where Kafka's client was imported."""


def without_kafka(*arguments: object) -> None:
    """Run a command to its end in success where no cluster is known."""
    environment = {key: value for key, value in os.environ.items() if "KAFKA" not in key and "DISTILLOG" not in key}
    done = subprocess.run(
        [sys.executable, "-c", NO_KAFKA, *map(str, arguments)],
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@contextmanager
def digits_logs(settings: KafkaSettings, name: str) -> Iterator[Logs]:
    """A stream of the digits with the teachers t, u and w, and nothing labelled."""
    stream, _ = create_stream(settings, name, fetcher(), DIGITS, OPTIONS)
    for teacher in ("t", "u", "w"):
        inputs = (TeacherInput("x", "image", "float32", "nchw", 1.0, ()),)
        outputs = (TeacherOutput.of_classes("y", "logits", 10),)
        digest = secrets.token_hex(32)
        add_teacher(
            settings, stream, Teacher(stream.manifest.stream_id, teacher, digest, "m.onnx", inputs, outputs, 32)
        )
    with closing(new_admin(settings)) as admin:
        producer = new_producer(settings)
        yield Logs(settings, open_stream(settings, name), admin, producer)
        producer.close(timeout=5)
    delete_stream(settings, name)


def labels(logs: Logs, teacher: str, *sequences: int) -> list[SoftTargets]:
    """Logits that depend on teacher and order."""
    made = []
    for sequence in sequences:
        whole = label(logs.stream, teacher, sequence)
        random = np.random.default_rng([sequence, ord(teacher)])
        logits = 3 * random.standard_normal((len(whole.sample_ids), 10), np.float32)
        output = Output.of("logits", logits, logs.stream.manifest.codec)
        made.append(label(logs.stream, teacher, sequence, outputs=(output,)))
    return made

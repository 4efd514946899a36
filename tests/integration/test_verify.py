"""`distillog verify` over a real Kafka: true labels pass, and each forged order is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.generations import by, generation, publisher
from support.models import classifier
from support.processes import Distillog
from support.streams import DIGITS, fetcher, num_orders, records, stream_with_teacher
from support.written_labels import Labelling, rolled, write

from pipeline.generations import claim_teacher, publish_generation
from pipeline.kafka.clients import admin_client
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import REPLAY_OF, soft_targets_topic, teacher_group
from pipeline.streams import Stream, open_stream
from pipeline.views.fetch import Fetched
from schemas.codecs import CodecSpec
from schemas.errors import LabelsDiffer, StreamChanged
from schemas.records import Teacher
from teacher_service.models.files import model_sha256
from teacher_service.models.session import OnnxTeacher
from teacher_service.proof.rows import Choice
from teacher_service.proof.subject import of_stream
from teacher_service.proof.verify import Verdict, Verification, VerifyOptions
from teacher_service.serve import TeachOptions, prepare_worker
from teacher_service.worker import WorkerOptions

pytestmark = pytest.mark.kafka


class Place:
    """A stream with teacher "t", and what writes its labels."""

    def __init__(self, settings: KafkaSettings, name: str, folder: Path, **options: Any) -> None:
        self.settings, self.name, self.folder = settings, name, folder
        self.model = classifier(folder / "m.onnx")
        self.stream: Stream = stream_with_teacher(settings, name, self.model, options=options, batch=16)
        self.teacher: Teacher = self.stream.teacher("t")
        self.labelling = Labelling(self.stream, fetcher(), OnnxTeacher(self.model, self.teacher, "cpu", 1))
        self.num_orders = num_orders(self.stream)

    def verify(self, **options: Any) -> tuple[Verdict, str]:
        """What was found, and the error; "" without one."""
        subject = of_stream(self.settings, self.name, self.model, None)
        verification = Verification(subject, self.model, VerifyOptions(threads=1, **options))
        verdict = verification.run()
        try:
            verification.judge()
        except LabelsDiffer as error:
            return verdict, str(error)
        return verdict, ""

    def another_model(self) -> OnnxTeacher:
        path = classifier(self.folder / "other.onnx", seed=1)
        return OnnxTeacher(path, replace(self.teacher, sha256=model_sha256(path)), "cpu", 1)


@pytest.fixture
def place(kafka_settings: KafkaSettings, fresh_name: Callable[[str], str], tmp_path: Path) -> Callable[..., Place]:
    return lambda **options: Place(kafka_settings, fresh_name("proof"), tmp_path, **options)


@pytest.mark.parametrize("codec", ["float16", "topk:k=3,temperatures=1|4", "sampled:n=40"])
def test_forged_orders_are_found_and_named_whatever_was_forged(place: Callable[..., Place], codec: str) -> None:
    here = place(codec=CodecSpec.parse(codec))
    of, other = here.labelling.record, here.another_model()

    def noisy(fetched: Fetched) -> Fetched:
        images = fetched.inputs["image"]
        return replace(fetched, inputs={"image": images[:, :, ::-1].copy()})

    def holed(fetched: Fetched) -> Fetched:
        images = fetched.inputs["image"].copy()
        images[3] = np.nan
        return replace(fetched, inputs={"image": images})

    forged = {
        5: of(5, labelled_as=9),
        9: of(9, labelled_as=5),
        12: of(12, changed=rolled),
        20: of(20, by=other),
        25: of(25, seen=fetcher(DIGITS, "affine", rotation=20, noise=0.3)),
        30: replace(of(30), teacher_sha256="0" * 64),
        33: of(33, changed=noisy),
    }
    harmless = {7: of(7, changed=holed)}
    given = [forged.get(number) or harmless.get(number) or of(number) for number in range(here.num_orders - 1)]
    repeated = replace(of(2), outputs=of(3).outputs)
    write(here.settings, here.stream, [*given[:10], repeated, *given[10:]])

    verdict, error = here.verify()
    assert [each.sequence for each in verdict.differences] == sorted(forged)
    assert verdict.num_differ == len(forged)
    assert (verdict.num_verified, verdict.num_missing, verdict.first_missing) == (40, 1, 40)
    assert verdict.num_rows == 39
    assert verdict.num_same == 33
    assert verdict.rows_left_out == 1
    assert verdict.dropped.repetitions == 1
    address = f"{soft_targets_topic(here.name, 't')}/1@1"
    assert f"7 of 40 orders of teacher 't' are not what its model gives here; the first is order 5 ({address}" in error
    assert "teacher_sha256 is 0000" in verdict.differences[5].what

    again, _ = here.verify()
    assert {**again.as_dict(), "seconds": 0} == {**verdict.as_dict(), "seconds": 0}
    part, error = here.verify(begin=13, until=20, choice=Choice(fraction=0.5))
    assert (part.num_orders, part.num_verified, part.num_missing, error) == (7, 7, 0, "")
    assert part.num_rows == part.num_same == 7 * 16


def test_one_permuted_order_among_many_is_found_by_the_command_which_writes_nothing(
    place: Callable[..., Place], distillog: Distillog
) -> None:
    here = place(order_size=4, epochs=4)
    bad = 777
    given = [here.labelling.record(number) for number in range(here.num_orders)]
    given[bad] = here.labelling.record(bad, changed=rolled)
    write(here.settings, here.stream, given)
    topic = soft_targets_topic(here.name, "t")
    before = {number: len(found) for number, found in records(here.settings, topic).items()}

    result = distillog.call("verify", here.name, here.model, "--threads", 1, "--json")
    assert result.exit_code == 4
    found = json.loads(result.stdout)
    assert (found["orders"], found["verified"], found["missing"], found["differ"]) == (1300, 1300, 0, 1)
    assert found["asked"] == {"rows": 1, "fraction": 0.0, "seed": 0, "limit": 0.001}
    assert found["rows"] == 1300
    assert found["same_bits"] == 1299
    assert [each["sequence"] for each in found["differences"]] == [bad]
    assert "are not what its model gives here; the first is order 777" in result.stderr
    assert result.stderr.count("error:") == 1
    assert {number: len(found) for number, found in records(here.settings, topic).items()} == before

    within = distillog.call("verify", here.name, here.model, "--threads", 1, "--until-sequence", bad)
    assert within.exit_code == 0
    assert "777 of 777 orders are labelled, 777 rows of them labelled again" in within.stdout
    assert "equal to the bit: 777 rows; limit: 0.001 of an output's range" in within.stdout


def test_an_order_of_more_rows_than_go_through_the_model_at_once_is_one_order(place: Callable[..., Place]) -> None:
    here = place(order_size=300)
    given = [here.labelling.record(number) for number in range(here.num_orders)]
    given[2] = here.labelling.record(2, changed=rolled)
    write(here.settings, here.stream, given)
    verdict, error = here.verify(choice=Choice(fraction=1.0))
    assert "1 of 5 orders" in error
    assert (verdict.num_rows, verdict.num_differ) == (1297, 1)
    assert verdict.num_same == 997


def test_nothing_to_verify_and_a_range_outside_the_stream_are_errors(
    place: Callable[..., Place], distillog: Distillog
) -> None:
    here = place()
    assert "there is nothing to verify yet" in distillog.call("verify", here.name, here.model).stderr
    refused = distillog.call("verify", here.name, here.model, "--until-sequence", 42)
    assert refused.exit_code == 1
    assert "has the orders 0 to 40" in refused.stderr


def test_a_worker_that_gives_other_labels_than_those_in_the_log_does_not_join(
    place: Callable[..., Place], kafka_settings: KafkaSettings
) -> None:
    here = place(codec=CodecSpec("float16"))
    said: list[str] = []

    def prepare(name: str, **options: Any) -> None:
        settings = TeachOptions(threads=1, worker=WorkerOptions(name), **options)
        prepare_worker(here.settings, here.name, here.model, settings, said.append)

    write(here.settings, here.stream, [here.labelling.record(0)], "s.soft-targets.t/0@9", REPLAY_OF)
    prepare("second")
    assert "labelled by worker of s.soft-targets.t/0@9: largest change 0.0e+00" in said[-1]
    write(here.settings, here.stream, [here.labelling.record(0)], "first")
    prepare("second")
    assert "agrees with order 0 " in said[-1]
    assert "labelled by worker first: largest change 0.0e+00 of the output's range, in 8 rows" in said[-1]
    said.clear()
    prepare("first")
    assert not any("agrees" in each for each in said)

    write(here.settings, here.stream, [here.labelling.record(4, by=here.another_model())], "liar")
    with pytest.raises(LabelsDiffer, match=r"this worker, third on .*, gives other labels than order 4 .* worker liar"):
        prepare("third")
    prepare("third", agreement=10.0)
    stream = open_stream(kafka_settings, here.name)
    with admin_client(kafka_settings) as admin:
        admin.delete_topics([soft_targets_topic(here.name, "t")])
    with pytest.raises(StreamChanged, match=r"soft-targets\.t does not exist, somebody deleted it"):
        prepare("fourth")
    assert teacher_group(stream.manifest, "t") not in groups(kafka_settings)


def groups(settings: KafkaSettings) -> set[str]:
    with admin_client(settings) as admin:
        return {each["group_id"] for each in admin.list_groups()}


def test_a_teacher_that_moves_is_verified_by_one_model_also_while_it_moves_on(place: Callable[..., Place]) -> None:
    here = place()
    stream, other = here.stream, here.another_model()
    sha256 = other.teacher.sha256
    claim_teacher(here.settings, stream, publisher(stream, "t"))
    publish_generation(here.settings, stream, generation(stream, "t", 1, sha256=sha256))
    old, new = here.labelling, Labelling(stream, here.labelling.source, other)
    values = [old.record(each) for each in range(10)]
    values += [replace(new.record(each), generation=1) for each in range(10, 20)]
    lies = {3: {"generation": 1}, 12: {"generation": 0}, 15: {"generation": 9}, 6: {"teacher_sha256": sha256}}
    write(here.settings, stream, [replace(each, **lies.get(each.sequence, {})) for each in values])
    subject = of_stream(here.settings, here.name, other.path, None)
    assert (subject.teacher.generation, subject.teacher.sha256) == (1, sha256)
    publish_generation(here.settings, stream, generation(stream, "t", 2))
    write(here.settings, stream, [by(old.record(each), stream, 2) for each in range(20, 30)])
    verdict = Verification(subject, other.path, VerifyOptions(threads=1)).run()
    assert (verdict.num_verified, verdict.num_others, verdict.num_missing) == (12, 18, here.num_orders - 30)
    told = {each.sequence: each.what for each in verdict.differences}
    assert told.keys() == lies.keys()
    assert told[3].startswith("teacher_sha256 is ")
    assert told[15].startswith("generation is 9, ")
    assert verdict.num_same == 8

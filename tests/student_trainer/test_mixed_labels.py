"""Hard labels of mixed samples: each half counts with its share, and only where its own label shows."""

from __future__ import annotations

import json
import shutil
import threading
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.captures import captured
from support.models import classifier
from support.streams import manifest
from support.written_labels import Labelling
from torch import Tensor
from torch.nn import functional
from train_runs import digits_run, run

import distillog
from pipeline.datasets import open_dataset
from pipeline.datasets.fingerprint import fingerprint
from pipeline.sequence import Sequence
from pipeline.streams import Stream
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from pipeline.views.probe import make_probe
from schemas.avro import REGISTRY
from schemas.codecs import CodecSpec
from schemas.errors import ConfigError
from student_trainer.batches import Batch, cut
from student_trainer.learning.partner_labels import PARTNERS, PartnerTarget
from student_trainer.learning.targets import TargetSpec
from student_trainer.learning.terms import Term, resolve
from student_trainer.learning.total import total_loss
from student_trainer.loading import Loader
from student_trainer.own_loop.iterable import LabelledBatch
from student_trainer.processes.frames import pack, unpack
from student_trainer.run.settings import RunSettings, run_settings
from student_trainer.sources.base import Cursor
from student_trainer.sources.dataset import DatasetSource
from student_trainer.sources.files import FilesSource
from student_trainer.sources.hard_labels import HardLabels
from student_trainer.sources.stream_settings import StreamSettings
from teacher_service.models.declared import Declared
from teacher_service.models.describe import describe_model
from teacher_service.models.session import OnnxTeacher

MIXUP = {"name": "crop_flip+mixup", "crop_flip.flip": 0.5, "mixup.alpha": 0.4}
CUTMIX = {"name": "cutmix", "alpha": 1.0}
CPU = torch.device("cpu")
SPECS = {"t.logits": TargetSpec("logits", (10,), 10, CodecSpec("float32"), default=True)}


def mixed_run(view: dict[str, Any] = MIXUP, **sections: Any) -> RunSettings:
    data = {"dataset": "digits?split=train", "view": view, "order_size": 64} | sections.pop("data", {})
    return run_settings(digits_run(**sections).as_dict() | {"data": data})


def batches_of(settings: RunSettings, count: int) -> tuple[DatasetSource, list[Batch]]:
    source, size = DatasetSource(settings), settings.train.batch_size
    loader = Loader(source.fetcher, (), source.sequence.sample_ids(0) % source.fetcher.dataset.num_samples)
    with closing(source.orders(Cursor.start())) as orders:
        groups = cut(orders, size, Cursor.start(), source.sequence.num_orders)
        return source, [batch for batch, _ in islice(loader.batches(groups), count)]


def terms_of(settings: RunSettings, specs: Any = SPECS) -> tuple[Term, ...]:
    return resolve(settings, specs, mixes=True)


def by_hand(source: DatasetSource, batch: Batch, logits: Tensor, shown: set[int], fraction: float, e: float) -> Tensor:
    """[B], row by row, as docs/run-file.md states it; of what was drawn, by the dataset's own labels."""
    dataset, seeds = source.fetcher.dataset, np.concatenate([[each.view_seed] * each.num_rows for each in batch.cuts])
    rows = []
    for row, (sample_id, seed) in enumerate(zip(batch.sample_ids.tolist(), seeds.tolist(), strict=True)):
        found = source.fetcher.mixture(np.array([sample_id]), seed)
        assert found is not None
        log_p = functional.log_softmax(logits[row].double(), dim=0)
        halves = ((sample_id, found[1].share[0]), (int(found[0][0]), 1 - found[1].share[0]))
        cost = torch.tensor(0.0, dtype=torch.float64)
        for one, share in halves:
            if one in shown:
                label = int(dataset.labels(np.array([one]))[0])
                cost = cost - share * ((1 - e) * log_p[label] + e * log_p.mean())
        rows.append(cost / fraction)
    return torch.stack(rows)


@pytest.mark.parametrize("view", [MIXUP, CUTMIX], ids=["mixup", "cutmix"])
@pytest.mark.parametrize("labelled", [None, 400])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_rows_loss_is_that_of_its_halves_each_where_its_own_label_shows(
    view: dict[str, Any], labelled: int | None, smoothing: float
) -> None:
    settings = mixed_run(view, data={"labelled": labelled} if labelled else {})
    document = settings.as_dict()
    document["losses"] = [{"name": "cross_entropy", "label_smoothing": smoothing}]
    source, batches = batches_of(settings, 4)
    hard = HardLabels.of(source.fetcher.dataset, labelled, 0)
    shown = set(range(1297)) if hard.shown is None else set(hard.shown.tolist())
    assert source.labelled_fraction == len(shown) / 1297
    total = total_loss(terms_of(run_settings(document)), source.labelled_fraction)
    only_other = 0
    for number, batch in enumerate(batches):
        logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(number)).requires_grad_()
        wanted = by_hand(source, batch, logits, shown, source.labelled_fraction, smoothing)
        loss, parts = total({"logits": logits}, batch.targets, batch.labels)
        torch.testing.assert_close(parts["cross_entropy"].double(), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(loss.double(), wanted.mean(), rtol=1e-5, atol=1e-6)
        partners = batch.targets[PARTNERS]
        assert isinstance(partners, PartnerTarget)
        only_other += int(((batch.labels < 0) & (partners.labels >= 0)).sum())
    assert (only_other > 0) == (labelled is not None)


def test_shares_of_labels_that_show_come_to_the_labelled_fraction() -> None:
    source = DatasetSource(mixed_run(data={"labelled": 300, "epochs": 20}))
    of_labels = rows = 0.0
    for order in source.orders(Cursor.start()):
        partners: Any = order.targets[PARTNERS]
        of_labels += partners.share[order.labels >= 0].sum() + (1 - partners.share)[partners.labels >= 0].sum()
        rows += len(order.labels)
    assert rows == 20 * 1297
    assert of_labels / rows == pytest.approx(source.labelled_fraction, rel=0.03)


def test_with_only_labelled_partners_are_labelled_ones() -> None:
    source = DatasetSource(mixed_run(data={"labelled": 60, "only_labelled": True}, train={"steps": 9}))
    shown = set(HardLabels.of(source.fetcher.dataset, 60, 0).shown.tolist())  # type: ignore[union-attr]
    seen = set()
    for order in source.orders(Cursor.start()):
        found = source.fetcher.mixture(order.sample_ids, order.view_seed)
        assert found is not None
        seen |= set(found[0].tolist())
        partners: Any = order.targets[PARTNERS]
        assert (partners.labels >= 0).all()
        assert np.array_equal(partners.labels, source.fetcher.dataset.labels(found[0]))
    assert seen == shown
    assert source.labelled_fraction == 1


def test_a_loss_of_ones_own_on_labels_alone_is_that_of_both_halves() -> None:
    document = mixed_run().as_dict() | {"losses": [{"name": f"{__name__}:margin"}]}
    _, (batch,) = batches_of(mixed_run(), 1)
    partners = batch.targets[PARTNERS]
    assert isinstance(partners, PartnerTarget)
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    _, parts = total_loss(terms_of(run_settings(document)), 1.0)({"logits": logits}, batch.targets, batch.labels)
    own, other = (margin(logits, None, labels, 1.0) for labels in (batch.labels, partners.labels))
    torch.testing.assert_close(parts[f"{__name__}:margin"], partners.share * own + (1 - partners.share) * other)


def margin(logits: Tensor, target: Any, labels: Tensor, temperature: float) -> Tensor:
    return functional.multi_margin_loss(logits, labels.clamp(min=0), reduction="none") * (labels >= 0)


margin.needs = ("labels",)  # type: ignore[attr-defined]


def of_both(logits: Tensor, target: Any, labels: Tensor, temperature: float) -> Tensor:
    return logits.sum(dim=1)


of_both.needs = ("teacher", "classes", "labels")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "dkd"},
        {"name": "nkd"},
        {"name": f"{__name__}:of_both"},
        {"name": "forward_kl", "choose": "label"},
        {"name": "dkd", "against": "self.logits"},
    ],
    ids=lambda loss: "-".join(loss.values()),
)
def test_a_loss_that_takes_one_class_for_a_row_is_refused_by_name(loss: dict[str, Any]) -> None:
    document = mixed_run().as_dict() | {"losses": [loss], "source": "stream"}
    document |= {"teachers": [{"name": "t"}], "data": {"stream": "s"}}
    settings = run_settings(document)
    with pytest.raises(
        ConfigError, match=rf"{loss['name']}: takes one class for each row, and the view mixes"
    ) as caught:
        terms_of(settings)
    assert "\n" not in str(caught.value)
    if "choose" not in loss:
        resolve(settings, SPECS)


def test_losses_without_labels_are_as_they_were() -> None:
    document = mixed_run().as_dict() | {"losses": [{"name": "forward_kl"}], "source": "stream"}
    document |= {"teachers": [{"name": "t"}], "data": {"stream": "s"}}
    with_mix, without = (resolve(run_settings(document), SPECS, mixes=mixes) for mixes in (True, False))
    assert [(each.shares, each.mixed) for each in with_mix] == [(each.shares, each.mixed) for each in without]


def test_a_message_brings_them_to_another_process() -> None:
    _, (batch,) = batches_of(mixed_run(), 1)
    there = unpack(pack(batch.targets[PARTNERS]))
    here = batch.targets[PARTNERS]
    assert isinstance(here, PartnerTarget)
    assert torch.equal(there.labels, here.labels)
    assert torch.equal(there.share, here.share)


def test_a_loop_of_ones_own_gets_both_halves_and_no_label_of_two_classes() -> None:
    _, (batch,) = batches_of(mixed_run(data={"labelled": 600}), 1)
    given = LabelledBatch.of(batch, CPU)
    assert given.halves is not None
    assert given.targets == {}
    own, partner = given.halves.own, given.halves.partner
    assert torch.equal(own, batch.labels)
    assert torch.equal(given.labels, torch.where(own == partner, own, -1))
    assert (given.labels >= 0).any()
    assert ((own >= 0) & (given.labels < 0)).any()
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    weights, share = given.weights, given.halves.share
    by_halves = distillog.cross_entropy(logits, own, 0.5, weights=weights * share) + distillog.cross_entropy(
        logits, partner, 0.5, weights=weights * (1 - share)
    )
    of_a_run, _ = total_loss(terms_of(mixed_run()), 0.5)({"logits": logits}, batch.targets, batch.labels)
    torch.testing.assert_close(by_halves, of_a_run)
    _, (plain,) = batches_of(mixed_run({"name": "none"}), 1)
    assert LabelledBatch.of(plain, CPU).halves is None


def losses(path: Path) -> list[float]:
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("view", [MIXUP, CUTMIX], ids=["mixup", "cutmix"])
def test_a_run_goes_on_to_the_same_bits_with_any_loaders(tmp_path: Path, view: dict[str, Any]) -> None:
    settings = mixed_run(view, data={"labelled": 700})
    whole = run(tmp_path / "whole", settings)
    for step in (12, 10):
        shutil.rmtree(tmp_path / f"whole/checkpoints/step-{step:08d}")
    assert run(tmp_path / "whole", settings).weights_sha256 == whole.weights_sha256
    loaders = mixed_run(view, data={"labelled": 700}, train={"loaders": 2, "loader_processes": True})
    assert run(tmp_path / "loaders", loaders).weights_sha256 == whole.weights_sha256


def test_a_run_in_parts_has_the_same_curve_and_another_alpha_other_weights(tmp_path: Path) -> None:
    view, plain = MIXUP, {"student": {"dropout": 0.0}}
    run(tmp_path / "one", mixed_run(view, **plain))
    run(tmp_path / "parts", mixed_run(view, **plain, train={"micro_batch": 7}))
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    other = mixed_run(MIXUP | {"mixup.alpha": 0.3}, **plain)
    run(tmp_path / "other", other)
    assert losses(tmp_path / "other") != losses(tmp_path / "one")


def test_peers_learn_from_mixed_labels_each_and_a_resume_has_the_same_bits(tmp_path: Path) -> None:
    document = mixed_run().as_dict() | {
        "losses": [{"name": "cross_entropy"}, {"name": "forward_kl", "against": "peers.logits"}],
        "peers": [{"name": "b", "student": {"name": "mlp", "hidden": [8]}}],
    }
    settings = run_settings(document)
    whole = run(tmp_path / "r", settings)
    shutil.rmtree(tmp_path / "r/checkpoints/step-00000012")
    assert run(tmp_path / "r", settings).weights_sha256 == whole.weights_sha256


def test_an_evaluation_is_of_samples_alone_and_one_of_mixes_is_refused(tmp_path: Path) -> None:
    evaluation = {"dataset": "digits?split=test", "every": 6}
    run(tmp_path / "r", mixed_run(evaluation=evaluation))
    lines = list(map(json.loads, (tmp_path / "r/metrics.jsonl").read_text().splitlines()))
    assert len([line for line in lines if "evaluation" in line]) == 2
    with pytest.raises(ConfigError, match=r"\[evaluation\] dataset .*: view mixup mixes samples"):
        run(tmp_path / "refused", mixed_run(evaluation=evaluation | {"view": {"name": "mixup", "alpha": 1.0}}))


def test_labels_beyond_the_classes_are_refused_also_of_partners() -> None:
    dataset = open_dataset("digits?split=train")
    fetcher, labels = Fetcher(dataset, view_spec("mixup", {"alpha": 1.0})), HardLabels.of(dataset, None, 0, 9)
    ids = np.flatnonzero(dataset.labels(np.arange(1297)) < 9)[:64]
    assert (labels.read(ids) >= 0).all()
    with pytest.raises(ConfigError, match=r"sample \d+ has label 9, but there are 9 classes, from 0 on"):
        labels.of_partners(fetcher, ids, 1, threading.Event())


BROKEN = (5, 300, 700)


class Broken:
    """The digits, of which some cannot be decoded."""

    def __init__(self) -> None:
        self._digits = open_dataset("digits?split=train")
        self.labels = self._digits.labels(np.arange(len(self)))
        self.num_classes = 10

    def __len__(self) -> int:
        return self._digits.num_samples

    def __getitem__(self, sample_id: int) -> dict[str, Any]:
        if sample_id in BROKEN:
            raise ValueError("cut short")
        return {"image": self._digits.read(np.array([sample_id])).fields["image"][0]}


def broken() -> Broken:
    return Broken()


def test_rows_whose_partner_cannot_be_decoded_are_the_same_to_a_teacher_and_to_its_students(tmp_path: Path) -> None:
    uri = f"{__name__}:broken"
    fetcher = Fetcher(open_dataset(uri), view_spec("mixup", {"alpha": 1.0}))
    facts = {"dataset_fingerprint": fingerprint(fetcher.dataset), "view_probe": make_probe(fetcher)}
    made = manifest(fetcher, schema_fingerprints=REGISTRY.fingerprints(), order_size=100, epochs=2, **facts)
    model = classifier(tmp_path / "m.onnx")
    stream = Stream(made, {"t": describe_model(model, "t", made, fetcher, Declared())})
    teacher = Labelling(stream, fetcher, OnnxTeacher(model, stream.teacher("t"), threads=1))
    records = [teacher.record(number) for number in range(Sequence.of(made).num_orders)]
    left_out = 0
    for record in records:
        found = fetcher.mixture(record.sample_ids, record.view_seed)
        assert found is not None
        whole = ~np.isin(record.sample_ids, BROKEN) & ~np.isin(found[0], BROKEN)
        assert np.array_equal(record.kept_sample_ids, record.sample_ids[whole])
        left_out += int((~whole).sum())
    assert left_out > 2 * len(BROKEN)  # more than they themselves, once an epoch
    captured(tmp_path / "labels", stream, records)
    document = mixed_run().as_dict() | {"source": "files", "data": {"files": str(tmp_path / "labels")}}
    document |= {"teachers": [{"name": "t"}], "losses": [{"name": "forward_kl"}, {"name": "cross_entropy"}]}
    settings = run_settings(document | {"train": document["train"] | {"steps": 0}})
    source = FilesSource(tmp_path / "labels", StreamSettings.of(settings))
    assert run(tmp_path / "r", settings, source).weights_sha256
    assert source.statistics()["rows_left_out"] == left_out

"""What a run settles about its generations before its first step: who publishes, and that its files will be taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.captured.storage import storage_of
from pipeline.captured.urls import is_url
from pipeline.views.patience import fetch_patiently
from pipeline.whole_files import writing
from schemas.errors import ConfigError
from schemas.records import Lineage, Publisher
from student_trainer.export_metadata import metadata_of
from student_trainer.learning.peers import Peers
from student_trainer.learning.students import Network
from student_trainer.preparation import first_ids
from student_trainer.publishing.exporting import Exporter
from student_trainer.publishing.form import refuse_unlike, unlike
from student_trainer.publishing.publishing import Publishing, file_name
from student_trainer.run.folder import RunFolder
from student_trainer.run.peer_settings import FIRST
from student_trainer.run.publish_settings import PublishSettings
from student_trainer.run.settings import RunSettings
from student_trainer.sources.base import OrderSource
from student_trainer.sources.teachers import TeachersSource


def prepare_publishing(
    settings: RunSettings,
    source: OrderSource,
    folder: RunFolder,
    trainee: Peers,
    network: Network,
    done: int,
    begins: bool,
    say: Callable[[str], object],
) -> Publishing | None:
    """Settle who publishes, and claim the teacher where nobody has; None where the run file says nothing of it.

    Nothing is written before a file of the student was exported, and held against the teacher's record.

    Args:
        settings, source, folder, network: the run's.
        trainee: with the weights to begin with.
        done: the last generation that the run has dealt with.
        begins: whether it has no checkpoint yet.
        say: is told, in a line, what becomes of it.

    Raises:
        StreamNotFound: the stream has no such teacher.
        ConfigError: the student cannot be a generation of it, it cannot move, or another run publishes for it after
            another number of orders.
        CannotWrite: its files cannot be written where they are to lie.
        StreamConflict, NotAuthorized, BrokerUnavailable: as their names say.
    """
    publish = settings.publish
    if publish is None:
        return None
    assert isinstance(source, TeachersSource)  # the settings refuse a dataset's
    ledger = source.ledger(publish.teacher)
    lineage, exporter = ledger.lineage(), None
    by = None if lineage is None else lineage.publisher
    if by is not None and by.every != publish.every:
        raise ConfigError(
            f"[publish] every = {publish.every}: run {by.run!r} publishes for teacher {publish.teacher!r} every "
            f"{by.every} orders; give that, to compare with what it published"
        )
    if ledger.writes and lineage is not None and (by is None or by.run_id == folder.run_id):
        ledger.refuse_unmovable()
        exporter = _exporter(settings, publish, source, network, lineage)
        peer = trainee.each[publish.peer or FIRST]
        teacher = lineage.teacher
        try:
            file = exporter.export(peer.state()["model"], folder.path)
        except ConfigError as error:
            raise unlike(teacher, str(error)) from None
        size = teacher.inputs[0].size or None
        refuse_unlike(teacher, file.content, fetch_patiently(source.fetcher, first_ids(source), 0, size).inputs)
        _make_place(publish)
        if begins:
            _write_first(publish, teacher.name, file.sha256, file.content)
        lineage = ledger.claim(Publisher(teacher.stream_id, teacher.name, settings.name, folder.run_id, publish.every))
        folder.keep()  # the teacher is this run's now, for good
        by = lineage.publisher
        if by is not None and by.run_id != folder.run_id:  # it was faster
            exporter = None
    say(_said(publish, by, exporter is not None))
    num_orders = source.sequence.num_orders
    return Publishing(publish, settings.starve, ledger, lineage, exporter, folder.run_id, num_orders, done)


def _exporter(
    settings: RunSettings, publish: PublishSettings, source: TeachersSource, network: Network, lineage: Lineage
) -> Exporter:
    own = settings.of_peers()[publish.peer or FIRST]
    views = fetch_patiently(source.fetcher, first_ids(source), 0, own.student.size).inputs
    inputs = {name: views[name] for name in network.fields}
    return Exporter(own, network, lineage.teacher, inputs, metadata_of(network, source.fetcher.view))


def _make_place(publish: PublishSettings) -> None:
    """Make the folder where there is none: a resume, too, may find it gone, or name another."""
    if not is_url(publish.to):
        with writing(Path(publish.to)):
            Path(publish.to).mkdir(parents=True, exist_ok=True)


def _write_first(publish: PublishSettings, teacher: str, sha256: str, content: bytes) -> None:
    """Write the student as it begins, so that what cannot be written there fails now, and not hours later."""
    storage_of(publish.to).write_whole(file_name(teacher, 0, sha256), content)


def _said(publish: PublishSettings, by: Publisher | None, publishes: bool) -> str:
    what = f"teacher {publish.teacher!r}"
    if publishes:
        return f"publishes itself as {what} every {publish.every} orders, in {publish.to}"
    if by is None:
        return f"nobody published for {what} here: nothing is compared, and nothing published"
    return f"run {by.run!r} ({by.run_id}) publishes for {what}: this one compares its weights, and publishes nothing"

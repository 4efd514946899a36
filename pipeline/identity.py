"""Whether a record of soft targets is what the stream's manifest and its teacher's record promise.

Who finds a record that is not says so by its address: a student does not train on it, a verification counts it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.sequence import Sequence
from schemas.codecs import CODECS, CodecSpec
from schemas.records import Lineage, SoftTargets, Teacher

Form = tuple[str, str, int, tuple[int, ...], bool]
"""Name, codec, classes and shape of an output, and whether it is of positions."""


def other_identity(orders: Sequence, sequence: int, teacher: Teacher, value: SoftTargets) -> str:
    """Return in what a record is not of an order, or not of a teacher as it is, in words; "" where it is of both."""
    epoch = orders.epoch_of(sequence)
    pinned_and_found = (
        ("sequence", sequence, value.sequence),
        ("teacher", teacher.name, value.teacher),
        ("generation", teacher.generation, value.generation),
        ("teacher_sha256", teacher.sha256, value.teacher_sha256),
        ("epoch", epoch, value.epoch),
        ("view_seed", orders.view_seed(epoch), value.view_seed),
    )
    for what, pinned, found in pinned_and_found:
        if pinned != found:
            return f"{what} is {found}, the manifest says {pinned}"
    if not np.array_equal(orders.sample_ids(sequence), value.sample_ids):
        return (
            f"the sample IDs are not those of sequence {sequence}; the teacher works with another dataset size, order "
            "size or seed than the manifest's"
        )
    return ""


def other_lineage(orders: Sequence, sequence: int, lineage: Lineage, value: SoftTargets) -> str:
    """Return in what a record is of no generation of a teacher that is known, or not of an order, as `other_identity`.

    Whoever reads a log that grows has read the manifest's topic since it had the record: a generation stands there
    before the first label by it is written.
    """
    teacher = lineage.at(value.generation)
    if teacher is None:
        return f"generation is {value.generation}, and teacher {lineage.teacher.name!r} has {lineage.newest}"
    return other_identity(orders, sequence, teacher, value)


def other_form(teacher: Teacher, codec: CodecSpec, value: SoftTargets) -> str:
    """Return in what a record's outputs are not those that its teacher's record declares, in words; "" where they are.

    `codec` is the stream's.
    """
    there: list[Form] = [
        (each.name, each.codec, each.num_classes, each.row_shape, each.chosen is not None) for each in value.outputs
    ]
    declared: list[Form] = [
        (each.name, each.stored_as(codec).name, each.codec_classes, each.stored_shape, bool(each.positions))
        for each in teacher.outputs
    ]
    if there != declared:
        return f"{_shown(there)}; the record of teacher {teacher.name!r} says {_shown(declared)}"
    return next(_other_settings(teacher, codec, value), "")


def _other_settings(teacher: Teacher, codec: CodecSpec, value: SoftTargets) -> Iterator[str]:
    """Yield the outputs that are stored by other settings of their codec: of another k, say, or with other tails."""
    for declared, output in zip(teacher.outputs, value.outputs, strict=True):
        spec = declared.stored_as(codec)
        if not CODECS[spec.name].is_of(output.columns, spec):
            yield f"its columns are of other settings, {teacher.name}.{output.name} is stored as {spec}"


def _shown(outputs: list[Form]) -> str:
    texts = []
    for name, codec, num_classes, shape, of_positions in outputs:
        what = f"{num_classes} classes as {codec}" if num_classes else f"features as {codec}"
        texts.append(f"{name} of {what}, rows of {list(shape)}" + (", of positions" if of_positions else ""))
    return ", ".join(texts) or "no output"

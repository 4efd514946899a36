"""A run's report as one HTML file: styles and pictures in it, no script, nothing from elsewhere, all text escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from student_trainer.curves import picture
from student_trainer.report.gather import Facts
from student_trainer.report.png import data_uri
from student_trainer.report.sample import is_picture, shown
from student_trainer.report.samples import Example, Looked
from student_trainer.report.tables import called, figure, rows_of, section
from student_trainer.run.peer_settings import FIRST

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1f2328;
  background: #fff }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2.2rem }
table { border-collapse: collapse; margin: .8rem 0; display: block; overflow-x: auto }
th, td { padding: .25rem .8rem .25rem 0; text-align: left;
  vertical-align: top; border-bottom: 1px solid #8c959f55; overflow-wrap: anywhere }
th, td.n { white-space: nowrap; overflow-wrap: normal } .n { text-align: right; font-variant-numeric: tabular-nums }
.curves { overflow-x: auto } .curves svg { display: block; width: 100%; min-width: 42rem }
.note { color: #57606a } pre { overflow: auto; background: #8c959f22; padding: .8rem }
.examples { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0; width: 11rem }
figure img { width: 8rem; image-rendering: pixelated; border: 1px solid #8c959f55 }
figcaption, .text { font-size: .85rem } .text { max-height: 10rem; overflow: auto; white-space: pre-wrap }
@media (max-width: 40rem) { th { white-space: normal } th, td { padding-right: .5rem } }
@media (prefers-color-scheme: dark) { body { color: #d1d7e0; background: #0d1117 } .note { color: #9198a1 } }
"""
_KEPT = ("accuracy", "nll", "ece")
_ROWS = {"accuracy": "accuracy", "nll": "NLL of the labels, nats", "ece": "calibration error (ECE)"}


def page(facts: Facts) -> str:
    """Return the HTML; equal facts give equal text."""
    name = f"{facts.settings.name}, {facts.peer}" if facts.peer else facts.settings.name
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(name)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(name)}</h1>",
        *section("What was distilled from what", _origin(facts)),
        *section("What came of it", _table(facts)),
        *section("Each class", _classes(facts.looked)),
        *section("Learning curves", _curves(facts.settings.name, facts.curves)),
        *section("Lead and lag", _paces(facts)),
        *section("Where they differ", _examples(facts)),
        *section(
            "Settings",
            [f"<details><summary>the run file</summary><pre>{escape(facts.run_file.as_toml())}</pre></details>"],
        ),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _origin(facts: Facts) -> Iterator[str]:
    settings, source = facts.settings, facts.source
    rows: list[tuple[str, object]] = [("state", f"{facts.summary['state']}, checkpoint of step {facts.step:,}")]
    if settings.source == "dataset":
        rows.append(("learned from", f"the labels of {settings.data.dataset}, without a teacher"))
    else:
        where = f", captured in {settings.data.files}" if settings.source == "files" else ""
        rows.append(("learned from", f"stream {source.get('stream')} ({source.get('stream_id')}){where}"))
        for each in settings.teachers:
            text = f"{each.name}, weight {each.weight:g}" + (f", {each.span}" if str(each.span) else "")
            sha256 = source.get("teachers", {}).get(each.name, "")
            rows.append(("teacher", f"{text}, SHA-256 {str(sha256)[:16]}"))
    rows.append(("view", called(source.get("view", {}).get("name"), source.get("view", {}).get("params", {}))))
    rows.append(
        ("student", f"{called(settings.student.name, settings.student.params)}, {facts.parameters:,} parameters")
    )
    for name, other in facts.run_file.of_peers().items():
        if name != (facts.peer or FIRST):
            rows.append(("learned with", f"{name}: {called(other.student.name, other.student.params)}"))
    if facts.summary["began_with"] and not facts.peer:
        rows.append(("began with", facts.summary["began_with"]))
    for loss in settings.losses:
        text = f"{called(loss.name, loss.params)}, weight {loss.weight:g}, T {loss.temperature:g}"
        text += "".join(
            f", {key} {getattr(loss, key)}" for key in ("on", "against", "mean", "choose") if getattr(loss, key)
        )
        rows.append(("loss", text))
    rate = f"{called(settings.optimizer.name, settings.optimizer.params)}, rate {settings.optimizer.lr:g}"
    rows.append(("optimizer", f"{rate}, {called(settings.schedule.name, settings.schedule.params)}"))
    train = settings.train
    average = "" if train.ema is None else f", average of weights {train.ema:g}"
    rows.append(("training", f"batches of {train.batch_size}, {train.precision}, seed {train.seed}{average}"))
    own = facts.report["peers"][facts.peer] if facts.report and facts.peer else facts.report
    if own.get("weights_sha256"):
        rows.append(("weights", f"SHA-256 {own['weights_sha256']}"))
    rows.append(("made with", ", ".join(f"{key} {value}" for key, value in sorted(facts.machine.items()))))
    yield from rows_of(None, rows)


def _table(facts: Facts) -> Iterator[str]:
    looked, taught = facts.looked, bool(facts.teacher)
    if looked is None:
        yield f'<p class="note">The last evaluation, since {escape(facts.why_not)}.</p>'
        scores = facts.summary["evaluation"] or {}
        yield from rows_of(None, [(key, figure(value)) for key, value in scores.items()])
        return
    yield f"<p>On {looked.num_samples:,} samples of {escape(looked.dataset)}.</p>"
    if not taught:
        yield '<p class="note">No teacher was given (--teacher): the student stands against the labels alone.</p>'
    head = ("", "student", *((facts.teacher, "student over teacher") if taught else ()))
    rows: list[Sequence[object]] = []
    for key in _KEPT:
        if key in looked.student:
            rows.append(_beside(_ROWS[key], looked.student[key], looked.teacher.get(key), taught))
    for key, text in (("agreement_top1", "same class as the teacher"), ("kl", "KL(teacher ‖ student), nats")):
        if key in looked.student:
            rows.append((text, figure(looked.student[key]), "", ""))
    own, its = facts.speeds.get("student"), facts.speeds.get("teacher")
    if own is not None:
        rows.append(_beside("bytes of ONNX", own.file_bytes, its.file_bytes if its else None, taught))
        for attribute, text in (("p50_ms", "one sample, ms"), ("samples_per_s", "samples/s")):
            pair = [getattr(each.latency, attribute) if each and each.latency else None for each in (own, its)]
            rows.append(_beside(text, pair[0], pair[1], taught))
    yield from rows_of(head, rows)
    if own is not None:
        yield '<p class="note">Speed was measured on one core of the machine that wrote this.</p>'


def _beside(text: str, student: float | None, teacher: float | None, taught: bool) -> Sequence[object]:
    share = f"{student / teacher:.3g}" if student is not None and teacher else "-"
    return (text, figure(student), *((figure(teacher), share) if taught else ()))


def _classes(looked: Looked | None) -> Iterator[str]:
    if looked is not None and looked.classes:
        taught = looked.classes[0]["teacher"] is not None
        head = ("class", "samples", "student right", *(("teacher right",) if taught else ()))
        figures = (
            (
                each["name"],
                f"{each['samples']:,}",
                figure(each["student"]),
                *((figure(each["teacher"]),) if taught else ()),
            )
            for each in looked.classes
        )
        yield from rows_of(head, figures)


def _curves(name: str, curves: Mapping[str, list[tuple[int, float]]]) -> Iterator[str]:
    if curves:
        yield f'<div class="curves">{picture([name], [dict(curves)])}</div>'


def _paces(facts: Facts) -> Iterator[str]:
    if facts.paces:
        yield (
            '<p class="note">How many batches lay ready when a step was logged, and how long the run had waited until '
            "then: a lead that falls to 0 while the wait grows says that teachers, or views, were too slow.</p>"
        )
        yield f'<div class="curves">{picture([facts.settings.name], [facts.paces])}</div>'
    counted = {**facts.report.get("stream", {}), **facts.report.get("files", {})}
    if counted:
        yield from rows_of(("reading labels", ""), [(key, figure(value)) for key, value in counted.items()])


def _examples(facts: Facts) -> Iterator[str]:
    looked = facts.looked
    if looked is None:
        return
    against = f"teacher {facts.teacher}" if facts.teacher else "label"
    if not looked.num_compared:
        yield '<p class="note">No sample has a label, and no teacher was given: there is nothing to differ from.</p>'
        return
    yield (
        f"<p>The student names another class than the {escape(against)} for {looked.num_different:,} of "
        f"{looked.num_compared:,} samples; here are the {len(looked.examples)} of which it is surest.</p>"
    )
    names = {each["class"]: each["name"] for each in looked.classes}
    yield '<div class="examples">'
    for each in looked.examples:
        yield _example(each, names)
    yield "</div>"


def _example(each: Example, names: Mapping[int, str]) -> str:
    def named(number: int) -> str:
        return escape(str(names.get(number, number)))

    parts = []
    if each.text:
        parts.append(f'<div class="text">{escape(each.text)}</div>')
    else:
        for field, values in each.values.items():
            if is_picture(values):
                parts.append(f'<img alt="{escape(field)} of sample {each.sample_id}" src="{data_uri(values)}">')
            else:
                parts.append(f'<div class="text">{escape(field)}: {escape(shown(values))}</div>')
    said = [f"sample {each.sample_id}", f"student: {named(each.student[0])} ({each.student[1]:.2f})"]
    said += [f"teacher: {named(each.teacher[0])} ({each.teacher[1]:.2f})"] if each.teacher else []
    said += [f"label: {named(each.label)}"] if each.label >= 0 else []
    return f"<figure>{''.join(parts)}<figcaption>{'<br>'.join(said)}</figcaption></figure>"

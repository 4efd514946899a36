"""`distillog runs report`: one HTML file that needs nothing else, and says what evaluations say."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from support.chromium import browser, chromium
from support.class_means import by_class_means

from pipeline.cli import main
from pipeline.datasets import open_dataset
from student_trainer.evaluate import predictor
from student_trainer.report.gather import gather
from student_trainer.report.page import page as html_of
from student_trainer.report.png import png
from student_trainer.run.settings import TeacherSettings
from student_trainer.trained import load_student

RUN = """
name = "small"
source = "dataset"
[[losses]]
name = "cross_entropy"
key = "<script>alert(1)</script>&"
[data]
dataset = "digits?split=train"
[student]
name = "mlp"
[train]
batch_size = 50
steps = 60
log_every = 10
[evaluation]
dataset = "digits?split=test"
every = 20
"""
VOID = {"br", "img", "meta", "path", "circle"}


class Reader(HTMLParser):
    """Elements that are closed in order, what they refer to, and their text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.sources: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["runs", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "small.toml").write_text(RUN)
    result = call("start", folder / "small.toml", "--folder", folder, "--quiet")
    assert result.exit_code == 0, result.output
    by_class_means(folder / "teacher.onnx")
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    options = ("--no-speed", "--examples", 5, "--teacher", folder / "teacher.onnx", "--html", folder / "r.html")
    result = call("report", "small", "--folder", folder, *options)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{folder}/r.html: {(folder / 'r.html').stat().st_size:,} bytes\n"
    return (folder / "r.html").read_text()


def test_it_is_whole_html_without_scripts_and_without_anything_from_elsewhere(page: str) -> None:
    found = Reader(page)
    assert page.startswith("<!DOCTYPE html>")
    assert found.open == []
    assert not {"script", "link", "iframe", "object", "a", "base", "form"} & set(found.tags)
    assert all(each.startswith("data:image/png;base64,") for each in found.sources)
    assert not re.findall(r"https?://|@import|url\(", page.replace("http://www.w3.org/2000/svg", ""))
    assert found.tags.count("svg") == 2
    assert "<script>alert(1)</script>&" in "".join(found.texts)


def test_its_figures_are_those_of_an_evaluation(folder: Path, page: str) -> None:
    own = json.loads(
        call("evaluate", "small", "--folder", folder, "--teacher", folder / "teacher.onnx", "--json").stdout
    )
    rows = dict(re.findall(r"<tr><th scope=row>([^<]*)</th>(.*)</tr>", page))
    cells = {name: re.findall(r"<td class=n>([^<]*)</td>", row) for name, row in rows.items()}
    student, teacher = own["accuracy"], own["teacher_accuracy"]
    assert cells["accuracy"] == [f"{student:.4g}", f"{teacher:.4g}", f"{student / teacher:.3g}"]
    assert cells["calibration error (ECE)"][0] == f"{own['ece']:.4g}"
    assert cells["same class as the teacher"][0] == f"{own['agreement_top1']:.4g}"
    data = open_dataset("digits?split=test")
    ids = np.arange(data.num_samples)
    labels = data.labels(ids)
    trained = load_student(folder / "small")
    best = predictor(trained.outputs, trained.network.fields)(data.read(ids).fields)["logits"].argmax(axis=1)
    for number in range(10):
        of_class = labels == number
        assert cells[str(number)][0] == f"{of_class.sum()}"
        assert float(cells[str(number)][1]) == pytest.approx(float((best[of_class] == number).mean()), abs=1e-4)


def test_examples_are_samples_that_both_name_differently_with_their_pictures(folder: Path, page: str) -> None:
    found = re.findall(
        r'src="data:image/png;base64,([^"]+)"><figcaption>sample (\d+)<br>student: (\d) .*?: (\d) ', page
    )
    assert 0 < len(found) <= 5
    data = open_dataset("digits?split=test")
    for content, number, student, teacher in found:
        assert student != teacher
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
        sample = data.read(np.array([int(number)])).fields["image"][0, 0]
        assert np.abs(image / 255 - sample / sample.max()).max() < 0.01


def test_equal_weights_give_an_equal_file(folder: Path, page: str, tmp_path: Path) -> None:
    options = ("--no-speed", "--examples", 5, "--teacher", folder / "teacher.onnx", "--html", tmp_path / "again.html")
    assert call("report", "small", "--folder", folder, *options).exit_code == 0
    assert (tmp_path / "again.html").read_text() == page


def test_without_a_teacher_it_shows_what_the_student_gets_wrong(folder: Path) -> None:
    result = call("report", "small", "--folder", folder, "--no-speed")
    assert result.exit_code == 0, result.output
    page = (folder / "small/report.html").read_text()
    assert "No teacher was given" in page
    assert "another class than the label for" in page
    assert "teacher right" not in page


def test_of_samples_without_labels_nothing_is_said_to_differ(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.zeros((7, 1, 8, 8), np.float32))
    options = ("--no-speed", "--dataset", f"npy:{tmp_path}", "--html", tmp_path / "r.html")
    result = call("report", "small", "--folder", folder, *options)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "r.html").read_text()
    assert "No sample has a label, and no teacher was given" in page
    assert "another class than the label" not in page


def test_a_run_that_went_on_has_no_weights_and_counts_of_its_last_end(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "small", tmp_path / "small")
    kept = tmp_path / "small/report.json"
    found = json.loads(kept.read_text())
    for steps, known in ((60, True), (40, False)):
        kept.write_text(json.dumps({**found, "steps": steps}))
        assert call("report", "small", "--folder", tmp_path, "--no-speed").exit_code == 0
        assert (found["weights_sha256"] in (tmp_path / "small/report.html").read_text()) is known


def test_it_says_in_which_orders_a_teacher_counts(folder: Path) -> None:
    facts = gather(folder / "small", speed=False)
    teachers = (TeacherSettings("a", until=20), TeacherSettings("b", from_=10))
    data = replace(facts.settings.data, dataset="", stream="s")
    settings = replace(facts.settings, source="stream", data=data, teachers=teachers)
    text = html_of(replace(facts, settings=settings, source={"teachers": {"a": "ab12", "b": "cd34"}}))
    assert "a, weight 1, until 20, SHA-256 ab12" in text
    assert "b, weight 1, from 10, SHA-256 cd34" in text


@pytest.mark.faults
@pytest.mark.short
def test_sizes_and_speeds_stand_beside_one_another(folder: Path) -> None:
    result = call("report", "small", "--folder", folder, "--teacher", folder / "teacher.onnx")
    assert result.exit_code == 0, result.output
    page = (folder / "small/report.html").read_text()
    size = (folder / "teacher.onnx").stat().st_size
    assert re.search(rf"bytes of ONNX</th><td class=n>[\d,]+</td><td class=n>{size:,}</td>", page)
    assert re.search(r"samples/s</th><td class=n>[\d,]+</td><td class=n>[\d,]+</td>", page)
    assert not (folder / "small/student.onnx").exists()


def test_what_cannot_be_told_is_one_line(folder: Path) -> None:
    assert "there is no run" in call("report", "other", "--folder", folder).stderr
    own = call("report", "small", "--folder", folder, "--html", folder / "small/run.toml")
    assert "is the run's own" in own.stderr


@given(arrays(np.uint8, st.tuples(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))))
def test_a_picture_is_read_back_as_it_was(values: np.ndarray) -> None:
    image = np.asarray(Image.open(io.BytesIO(png(values))))
    assert (image.reshape(*values.shape[1:], -1) == values.transpose(1, 2, 0)).all()


# How wide it all is, and of pictures, rows, cells, curves and their letters whether they have a size to be seen in.
LAID_OUT = """({
  title: document.title,
  wide: document.documentElement.scrollWidth,
  pictures: [...document.images].filter(each => each.complete && each.naturalWidth && each.width > 100).length,
  rows: [...document.querySelectorAll('tr')].filter(each => each.offsetHeight > 15).length,
  cells: [...document.querySelectorAll('th, td')].filter(each => each.scrollWidth > each.offsetWidth + 1).length,
  curves: [...document.querySelectorAll('svg')].map(each => [each.clientWidth, each.clientHeight]),
  lines: [...document.querySelectorAll('svg path.line')].filter(each => each.getTotalLength() > 20).length,
  letters: Math.min(...[...document.querySelectorAll('svg text')].map(each => each.getBoundingClientRect().height)),
  asked: performance.getEntriesByType('resource').filter(each => !each.name.startsWith('data:')).length
})"""


@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_lays_all_of_it_out_in_that_width_and_asks_for_nothing_more(
    folder: Path, page: str, tmp_path: Path, width: int
) -> None:
    file = (folder / "r.html").as_uri()
    with browser(chromium(), tmp_path / "profile") as chrome:
        chrome.open(file, width)
        found = chrome.evaluate(LAID_OUT)
        shot = np.asarray(Image.open(io.BytesIO(chrome.picture())).convert("RGB"))
        asked = [each for each in chrome.asked if not each.startswith("data:")]
    assert (asked, found["asked"], chrome.said) == ([file], 0, [])
    assert found["title"] == "small"
    assert found["wide"] == width, "the page is to be read without moving it sideways"
    assert found["pictures"] == page.count("<img ") == 5
    assert found["rows"] == page.count("<tr>") > 20
    assert found["cells"] == 0, "no cell's text lies over the next one"
    assert len(found["curves"]) == 2
    assert all(across > 600 and down > 250 for across, down in found["curves"])
    assert found["lines"] == page.count('<path class="line"') > 4
    assert found["letters"] > 9
    assert shot.shape[:2] > (1000, width - 1)
    assert all((shot == colour).all(-1).any() for colour in ((47, 129, 247), (255, 255, 255)))


def test_that_browser_tells_of_a_page_that_is_not_whole(tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(
        "<table style='table-layout: fixed; width: 50px'><tr style='display: none'><td>none"
        "<tr style='font-size: 1px'><td style='white-space: nowrap'><span style='font-size: 400px'>wide</span></table>"
        "<img src='http://elsewhere.example/x.png'><svg style='width: 0'></svg><script>nonsense()</script>"
    )
    with browser(chromium(), tmp_path / "profile") as chrome:
        chrome.open((tmp_path / "bad.html").as_uri(), 360)
        found = chrome.evaluate(LAID_OUT)
    assert any("nonsense is not defined" in each for each in chrome.said)
    assert "http://elsewhere.example/x.png" in chrome.asked
    assert (found["pictures"], found["rows"], found["cells"], found["curves"][0][0], found["asked"]) == (0, 1, 1, 0, 1)
    assert found["wide"] > 900

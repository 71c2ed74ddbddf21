"""The page of a report: complete, self-contained, escaped; and the command that writes it."""

import base64
import dataclasses
import html
import io
import json
import re
import sys

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image
from report_sets import IDS, SIZE, ground_truth, results, written

from balms_det.commands import report as command
from balms_det.report import Options, gather, page, run_files
from balms_det.report.html import number, table, with_interval
from balms_det.report.page import plotly_script, write_page
from balms_det.report.sections import SECTIONS, training
from balms_det.runtime.errors import InputError

# Stands for Plotly, which is an optional package; its own text is not what is tested here.
STUB = "window.Plotly = {react() {}}; // </script> https://plotly.example"


@pytest.fixture(autouse=True)
def stub_of_plotly(monkeypatch):
    monkeypatch.setattr(page, "plotly_script", lambda: STUB)
    monkeypatch.setattr(command, "plotly_script", lambda: STUB)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A ground truth, its images, a run and another one."""
    folder = tmp_path_factory.mktemp("page")
    content = ground_truth()
    written(folder, content, results(content))
    (folder / "val2017").mkdir()
    for image in content["images"][1:]:  # one image is missing
        color = (image["id"], 40, 200)
        Image.new("RGB", (SIZE, SIZE), color).save(folder / "val2017" / f"{image['id']}.png")
    for name, seed in (("run", 0), ("other <&>", 1)):
        inference = folder / name / "inference"
        inference.mkdir(parents=True)
        found = json.dumps(results(content, seed))
        (inference / "lvis_instances_results.json").write_text(found)
        (folder / name / "config.yaml").write_text(
            f"DATASETS:\n  TEST: [report_page_val]\nNAME: <{name}>\n"
        )
        lines = [
            {"iteration": i, "total_loss": 9 - i / 100, "loss_mask": 1.0} for i in range(0, 800, 2)
        ]
        lines.append({"iteration": 799, "segm/AP": 12.0})
        (folder / name / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="module")
def data(folder):
    runs = [run_files(str(folder / name)) for name in ("run", "other <&>")]
    return gather(str(folder / "gt.json"), runs, Options(bootstrap=3, image_root=str(folder)))


@pytest.fixture
def text(data):
    return page.page(data)


def figures_of(text):
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.S)
    return json.loads(found[1])


def rows_of(text, name=None):
    """Return the cells of each row of the table with the given id, or of all tables."""
    if name is not None:
        text = text[text.index(f'<table id="{name}">') :]
        text = text[: text.index("</table>")]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text, re.S)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.S) for row in rows]
    return [[html.unescape(cell) for cell in row] for row in cells if row]


def test_the_page_loads_nothing(text):
    own = text.replace(STUB.replace("</", "<\\/"), "")
    assert STUB not in text and "https://plotly.example" in text
    assert re.findall(r"https?:|//\w+\.", own) == []
    links = re.findall(r'(?:src|href|action)="([^"]*)"', own)
    assert links and all(link.startswith(("#", "data:")) for link in links)
    assert "url(" not in own and "@import" not in own
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src 'none'" in policy and "http" not in policy


def test_no_name_ends_a_script_or_is_markup(text):
    assert text.count("</script>") == text.count("<script") == 3
    assert "class &lt;3&gt; &amp; &lt;/script&gt;" in text
    assert "<other" not in text and "&lt;other &lt;&amp;&gt;&gt;" in text
    assert figures_of(text)["by-count"]["data"][0]["text"][0] == "class <3> & </script>"


def test_every_figure_has_its_place_and_every_link_its_section(text):
    assert set(re.findall(r'id="figure-([\w-]+)"', text)) == set(figures_of(text))
    ids = re.findall(r'\bid="([\w-]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([\w-]+)"', text)) <= set(ids)
    assert len(re.findall(r"<section ", text)) == len(SECTIONS)


def test_the_page_is_for_light_and_dark_and_for_phones(text):
    assert "prefers-color-scheme: dark" in text
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text


def test_the_table_has_every_class_with_its_figures(text, data):
    rows = {row[0]: row for row in rows_of(text, "class-table")}
    assert len(rows) == len(IDS)
    matrix = data.detail.confusion.matrix
    for i, name in enumerate(data.classes.names):
        row = rows[name]
        first, other = (run.class_ap[i] for run in data.runs)
        objects = matrix[i].sum()
        assert row[2:5] == [str(IDS[i] ** 2), str(data.classes.objects[i]), f"{first:.1f}"]
        assert row[5] == f"{other - first:+.1f}"
        assert row[6] == f"{100 * matrix[i, i] / objects:.0f}"
        assert row[8] == f"{100 * matrix[i, -1] / objects:.0f}"


def test_the_summary_has_the_scores_with_intervals(text, data):
    rows = rows_of(text[: text.index('id="classes"')])
    run = data.runs[0]
    assert rows[0][:3] == [
        "run", "masks", f"{run.scores['segm']['AP']:.1f} ± {run.intervals['AP']:.1f}"
    ]  # fmt: skip
    assert rows[1][:3] == ["run", "boxes", f"{run.scores['bbox']['AP']:.1f}"]
    change = data.runs[1].difference
    assert rows[4][1] == f"{change.change['AP']:+.1f} ± {change.half_width['AP']:.1f}"


def test_figures_have_the_gathered_values(text, data):
    figures = figures_of(text)
    run = data.runs[0]
    metrics = ("AP", "APr", "APc", "APf")
    assert figures["headline"]["data"][0]["y"] == [run.scores["segm"][m] for m in metrics]
    assert figures["tide"]["data"][1]["y"][0] == data.detail.tide["r"]["Cls"]
    assert figures["caps"]["data"][0]["x"] == [10, 30, 100, 300]
    points = [point for trace in figures["by-count"]["data"] for point in trace["y"]]
    assert len(points) == sum(ap is not None for ap in run.class_ap)
    between = figures["confusion"]["data"][0]["z"]
    assert [sum(row) for row in between] == pytest.approx([100] * 3, abs=0.1)


def test_confusions_are_listed_the_worst_first(text, data):
    part = text[text.index("detected as</th>") :]
    rows = rows_of(part[: part.index("</table>")])
    names = data.classes.names
    matrix = data.detail.confusion.matrix[:-1, :-1]
    counts = [int(row[4]) for row in rows]
    off_diagonal = matrix - np.diag(matrix.diagonal())
    assert counts[0] == off_diagonal.max() > 0
    for row in rows:
        assert int(row[4]) == matrix[names.index(row[0]), names.index(row[2])]


def test_crops_show_truth_beside_prediction(text, data):
    crops = data.detail.crops
    shown = [crop for of_class in crops for crop in of_class.crops]
    assert {crop.kind for crop in shown} == {"missed", "false positive"}
    assert [data.classes.groups[c.index] for c in crops] == ["r"] * len(crops)
    for crop in shown:
        truth, prediction = (
            Image.open(io.BytesIO(base64.b64decode(side))) for side in (crop.truth, crop.prediction)
        )
        assert truth.size == prediction.size and max(truth.size) == 180
        assert f'src="data:image/jpeg;base64,{crop.truth}"' in text
        assert html.escape(crop.caption) in text
    aps = [of_class.ap for of_class in crops]
    assert aps == sorted(aps)


def test_without_images_or_history_the_sections_are_left_out(data):
    runs = [
        dataclasses.replace(run, files=dataclasses.replace(run.files, history=[]))
        for run in data.runs
    ]
    detail = dataclasses.replace(data.detail, crops=None)
    text = page.page(dataclasses.replace(data, runs=runs, detail=detail))
    assert len(re.findall(r"<section ", text)) == len(SECTIONS) - 2
    assert 'id="worst"' not in text and 'href="#training"' not in text


def test_long_histories_are_thinned_and_keep_the_last_record(data):
    section = training.section(data)
    curve = section.figures["training-losses"]["data"][0]
    assert len(curve["x"]) <= training.MAX_POINTS and curve["x"][-1] == 798
    assert section.figures["training-evaluations"]["data"][0]["y"] == [12.0]


def test_values_that_do_not_exist_are_dashes():
    assert number(None) == number(-100.0) == with_interval(-100.0, 0.5) == "–"
    assert number(-1.25, signed=True) == "-1.2" and number(0.0) == "0.0"
    assert with_interval(3.0, None) == "3.0" and with_interval(3.0, 0.25) == "3.0 ± 0.2"
    assert "<td>&lt;b&gt;</td>" in table(["a"], [["<b>"]])


def test_a_page_is_there_whole_or_not_at_all(data, tmp_path):
    write_page(data, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.startswith("<!DOCTYPE html>") and text.endswith("</html>\n")
    with pytest.raises(InputError, match="the report cannot be written"):
        write_page(data, tmp_path / "none" / "report.html")


def test_plotly_is_found_or_its_absence_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(InputError, match=r"pip install 'balms_det\[report\]'"):
        plotly_script()


def test_plotlys_script_is_put_in_whole(data, monkeypatch):
    pytest.importorskip("plotly")
    monkeypatch.setattr(page, "plotly_script", plotly_script)
    text = page.page(data)
    assert text.count("</script>") == 3
    assert 4e6 < len(text) - len(figures_of(text)) < 8e6


def run_command(folder, output, *arguments):
    command.main([*map(str, arguments), "--output", str(output), "--bootstrap", "0"])
    return output.read_text()


def test_the_command_reports_a_run_and_compares(folder, tmp_path, capsys):
    run, gt = folder / "run", folder / "gt.json"
    text = run_command(
        folder, tmp_path / "a.html", run, "--annotations", gt, "--compare", folder / "other <&>"
    )
    assert re.search(r"run: AP \d+\.\d, APr \d+\.\d, .* \(segm\)", capsys.readouterr().out)
    assert "Difference from run" in text and "Configuration of run" in text
    assert 'id="worst"' not in text


def test_the_command_takes_a_result_file_of_any_framework(folder, tmp_path):
    predictions, gt = folder / "results.json", folder / "gt.json"
    text = run_command(
        folder, tmp_path / "a.html",
        "--predictions", predictions, "--annotations", gt, "--image-root", folder,
        "--task", "bbox",
    )  # fmt: skip
    assert "<title>results on gt.json</title>" in text and 'id="worst"' in text


def test_the_annotations_of_a_registered_set_are_known(folder, tmp_path):
    run = folder / "run"
    with pytest.raises(InputError, match="'report_page_val' are not known; give them with"):
        run_command(folder, tmp_path / "a.html", run)
    MetadataCatalog.get("report_page_val").set(
        json_file=str(folder / "gt.json"), image_root=str(folder)
    )
    try:
        assert 'id="worst"' in run_command(folder, tmp_path / "a.html", run)
    finally:
        MetadataCatalog.remove("report_page_val")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give either RUN or --predictions"),
        (["a", "--predictions", "b"], "give either RUN or --predictions"),
        (["no_such_run"], "no_such_run: there are no predictions"),
        (["--predictions", "RESULTS", "--bootstrap", "-1"], "--bootstrap is -1"),
        (["--predictions", "RESULTS"], "the annotations of its data set '' are not known"),
        (
            ["--predictions", "RESULTS", "--annotations", "GT", "--image-root", "nowhere"],
            "nowhere: the image root is not a directory",
        ),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(folder, arguments, words):
    names = {"RESULTS": str(folder / "results.json"), "GT": str(folder / "gt.json")}
    with pytest.raises(InputError, match=words):
        command.main([names.get(argument, argument) for argument in arguments])

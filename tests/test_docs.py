"""Documents: their numbers are those of the stored runs, and what they name exists."""

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(p for d in ("docs", "datasets", "configs") for p in ROOT.glob(f"{d}/**/*.md")),
    ]
)


def report(*args):
    command = [sys.executable, "-W", "ignore", ROOT / "tools" / "report.py", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    missing = [t for t in targets if "://" not in t and not (document.parent / t).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_name_files_that_exist(document):
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"\b(?:tools|configs|datasets|tests|docs)/[\w/]+\.(?:py|yaml|md)\b", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_table_of_configurations_has_a_row_for_each_and_no_other():
    table = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `(\w+)` \| ", table, re.MULTILINE))
    assert rows == {path.stem for path in (ROOT / "configs").glob("methods/*.yaml")}


SUMMARISED = [
    ROOT / "docs" / "runs" / "performance" / f"{name}.json"
    for name in ("heads", "image", "train", "evaluation")
]


@pytest.mark.parametrize(
    "arguments",
    [[ROOT / "docs" / "runs" / "quickstart.json"], [*SUMMARISED, "--summary", "performance"]],
    ids=["quickstart", "performance"],
)
def test_the_readmes_numbers_are_those_of_the_stored_runs(tmp_path, arguments):
    copy = tmp_path / "README.md"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    copy.write_text(readme, encoding="utf-8")
    assert report(*arguments, "--into", copy).returncode == 0
    assert copy.read_text(encoding="utf-8") == readme
    run = json.loads(arguments[0].read_text())
    if isinstance(run, list):
        run[0]["ratio"] *= 2
    else:
        run["results"]["segm"]["AP"] += 1
    other = tmp_path / arguments[0].name
    other.write_text(json.dumps(run))
    assert report(other, *arguments[1:], "--into", copy).returncode == 0
    assert copy.read_text(encoding="utf-8") != readme


def test_a_run_without_results_is_refused(tmp_path):
    done = report(tmp_path)
    assert done.returncode == 2
    assert "there is no finished run" in done.stderr


def test_a_document_without_the_markers_is_refused(tmp_path):
    (tmp_path / "empty.md").write_text("nothing here")
    done = report(ROOT / "docs" / "runs" / "quickstart.json", "--into", tmp_path / "empty.md")
    assert done.returncode == 2
    assert "<!-- report: quickstart -->" in done.stderr


PERFORMANCE = ROOT / "docs" / "PERFORMANCE.md"
MEASUREMENTS = sorted((ROOT / "docs" / "runs" / "performance").glob("*.json"))


def test_the_tables_of_performance_are_those_of_the_stored_measurements(tmp_path):
    text = PERFORMANCE.read_text(encoding="utf-8")
    blocks = dict(
        re.findall(r"<!-- report: (\w+) -->\n(.*?)<!-- /report -->", text, flags=re.DOTALL)
    )
    stored = {path.stem for path in MEASUREMENTS}
    assert stored <= set(blocks)
    assert {blocks[name].strip() for name in set(blocks) - stored} <= {"Not measured yet."}
    copy = tmp_path / "PERFORMANCE.md"
    copy.write_text(text, encoding="utf-8")
    assert report(*MEASUREMENTS, "--into", copy).returncode == 0
    assert copy.read_text(encoding="utf-8") == text
    records = json.loads(MEASUREMENTS[0].read_text())
    records[0]["ours_s"] *= 2
    other = tmp_path / MEASUREMENTS[0].name
    other.write_text(json.dumps(records))
    assert report(other, "--into", copy).returncode == 0
    assert copy.read_text(encoding="utf-8") != text


@pytest.mark.parametrize("path", MEASUREMENTS, ids=lambda path: path.stem)
def test_stored_measurements_name_no_machine_and_no_folder(path):
    for record in json.loads(path.read_text()):
        assert record["command"].startswith("python tools/benchmark.py ")
        assert "/home" not in json.dumps(record) and platform.node() not in json.dumps(record)

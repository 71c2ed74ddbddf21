"""Documents: their numbers are those of the stored runs, and what they name exists."""

import json
import platform
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from commands_in_docs import DOCUMENTS, split

from balms_det.config.reference import key_reference

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "docs" / "runs"


# In this process, because the tool takes seconds to import.
write_tables = runpy.run_path(str(ROOT / "tools" / "report.py"))["main"]


def report(*args):
    command = [sys.executable, "-W", "ignore", ROOT / "tools" / "report.py", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def anchors(document):
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", split(document.read_text(encoding="utf-8"))[0], re.M)
    names = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return {name if not at else f"{name}-{at}" for name in names for at in range(names.count(name))}


def broken_links(document):
    """Return the relative links of a document that lead to no file, or to no heading of it."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def missing_files(document):
    """Return the files of the repository that a document names and that do not exist."""
    text = document.read_text(encoding="utf-8")
    tops = "balms_det|tools|configs|datasets|tests|docs"
    named = set(re.findall(rf"\b(?:{tops})/[\w/]+\.(?:py|yaml|md|json|png)\b", text))
    return sorted(name for name in named if not (ROOT / name).exists())


# Words that the language rules of CONTRIBUTING.md replace.
AVOIDED = r"\b(pictures?|folders?|mend|thereby|whereby|goes? on|gone on|is no|Gone are)\b"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_use_the_words_of_the_field(document):
    prose = re.sub(r"`[^`]*`", "", split(document.read_text(encoding="utf-8"))[0])
    assert [match[0] for match in re.finditer(AVOIDED, prose)] == []
    assert re.findall(r"(?:^|[.:;] |\n\n)((?:Of|What) [^.?]*[.])", prose) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(document):
    assert broken_links(document) == []
    assert missing_files(document) == []


def test_a_broken_link_or_path_is_found(tmp_path):
    (tmp_path / "b.md").write_text("# One heading, two\n")
    (tmp_path / "a.md").write_text(
        "[x](b.md) [x](b.md#one-heading-two) [x](c.md) [x](b.md#two) [x](https://x.org) "
        "tools/report.py tools/no_such.py"
    )
    assert broken_links(tmp_path / "a.md") == ["c.md", "b.md#two"]
    assert missing_files(tmp_path / "a.md") == ["tools/no_such.py"]


def test_the_table_of_configurations_has_a_row_for_each_and_no_other():
    table = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `(\w+)` \| ", table, re.MULTILINE))
    assert rows == {path.stem for path in (ROOT / "configs").glob("methods/*.yaml")}


def performance(*names):
    return [RUNS / "performance" / f"{name}.json" for name in names]


IN_README = performance("heads", "image", "train", "evaluation")
IN_SUMMARY = performance("heads", "image", "train", "meta", "evaluation", "annotations")
MEASURED = sorted((RUNS / "performance").glob("*.json"))
# A document, and how tools/report.py makes its tables.
GENERATED = {
    "README.md": [[RUNS / "quickstart.json"], [*IN_README, "--summary", "performance"]],
    "docs/PHOTOS.md": [[RUNS / "photos_lite0.json"]],
    "docs/PERFORMANCE.md": [[*IN_SUMMARY, "--summary", "performance"]],
    "docs/performance/MEASUREMENTS.md": [MEASURED],
    "docs/performance/OPERATIONS.md": [[*MEASURED, "--operations"]],
    "docs/DEPLOY.md": [[RUNS / "deploy" / "image.json", RUNS / "deploy" / "accuracy.json"]],
}


# The stored run of each document that a test changes.
FIRST = ("quickstart", "photos_lite0", "heads", "image")


def changed(run):
    """Return a stored run with other numbers."""
    if not isinstance(run, list):
        run["results"]["segm"]["AP"] += 1
        return run
    times = {
        name: {operation: 2 * seconds for operation, seconds in (run[0].get(name) or {}).items()}
        for name in ("ours_operations_s", "peer_operations_s")
        if name in run[0]
    }
    return [{**run[0], "ratio": 2 * run[0]["ratio"], **times}, *run[1:]]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [(name, arguments) for name, calls in GENERATED.items() for arguments in calls],
)
def test_the_numbers_of_documents_are_those_of_the_stored_runs(tmp_path, name, arguments):
    text = (ROOT / name).read_text(encoding="utf-8")
    copy = tmp_path / "copy.md"
    copy.write_text(text, encoding="utf-8")
    write_tables([str(argument) for argument in (*arguments, "--into", copy)])
    assert copy.read_text(encoding="utf-8") == text
    source = next(path for path in arguments if Path(path).stem in FIRST)
    other = tmp_path / source.name
    other.write_text(json.dumps(changed(json.loads(source.read_text()))))
    others = [other if path is source else path for path in arguments]
    write_tables([str(argument) for argument in (*others, "--into", copy)])
    assert copy.read_text(encoding="utf-8") != text


@pytest.mark.parametrize("name", GENERATED)
def test_every_table_between_markers_is_generated(name):
    blocks = set(re.findall(r"<!-- report: (\w+) -->", (ROOT / name).read_text(encoding="utf-8")))
    made = set()
    for arguments in GENERATED[name]:
        paths = [path.stem for path in arguments if isinstance(path, Path)]
        summary = arguments[-1] if "--summary" in arguments else None
        made |= {summary} if summary else set(paths)
    others = {"glyphs_lt_cpu"} if name == "README.md" else set()  # tests/test_evidence.py
    assert blocks - others <= made


DECISIONS = {
    "Balanced Sigmoid, joint": "Balanced Sigmoid",
    "Balanced Softmax, joint": "Balanced Softmax",
    "BALMS, second stage": "BALMS (Meta Sampler)",
    "Balanced Sigmoid, second stage": "Balanced Sigmoid, second stage",
    "NorCal at test time": "NorCal",
}


def rows_of(text, columns):
    """Return the cells of the first table with these column headings, by their first cell."""
    table = text[text.index(f"| {columns} |") :]
    lines = table[: table.index("\n\n")].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_the_decision_table_has_the_numbers_of_the_results():
    methods = (ROOT / "docs" / "METHODS.md").read_text(encoding="utf-8")
    results = (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8")
    scores = rows_of(results, "method | trained | AP | APr | APc | APf | AP-Fixed | box AP | seeds")
    gains = rows_of(results, "method | AP | APr | APc | APf")
    table = methods[methods.index("| you have | use |") :]
    rows = [row.split("|") for row in table[: table.index("\n\n")].splitlines()[2:]]
    compared = set()
    for _, _, use, ap, apr, cost, _ in rows:
        name = next((name for name in DECISIONS if use.strip().startswith(f"{name}:")), None)
        if name is None:
            assert not re.search(r"\d", ap + apr + cost)
            continue
        title = DECISIONS[name]
        for cell, column in ((ap, 0), (apr, 1)):
            mean = scores[title][1 + column].split()[0]
            gain = gains[title][column].split()[0]
            assert cell.strip() == f"{mean} ({gain})"
        fall = re.search(r"APf falls by (\d+\.\d)", cost)
        change = gains[title][3].split()[0]
        assert change == f"-{fall[1]}" if fall else change.startswith("+")
        compared.add(name)
    assert compared == set(DECISIONS)


@pytest.mark.e2e
def test_a_run_without_results_is_refused(tmp_path):
    done = report(tmp_path)
    assert done.returncode == 2
    assert "there is no finished run" in done.stderr


@pytest.mark.e2e
def test_a_document_without_the_markers_is_refused(tmp_path):
    (tmp_path / "empty.md").write_text("nothing here")
    done = report(ROOT / "docs" / "runs" / "quickstart.json", "--into", tmp_path / "empty.md")
    assert done.returncode == 2
    assert "<!-- report: quickstart -->" in done.stderr


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_stored_measurements_name_no_machine_and_no_folder(path):
    for record in json.loads(path.read_text()):
        assert record["command"].startswith("python tools/benchmark.py ")
        assert "/home" not in json.dumps(record) and platform.node() not in json.dumps(record)


def test_the_reference_of_keys_is_generated_from_the_options():
    page = (ROOT / "docs" / "CONFIGURATION.md").read_text(encoding="utf-8")
    assert f"<!-- report: keys -->\n\n{key_reference()}\n\n<!-- /report -->" in page

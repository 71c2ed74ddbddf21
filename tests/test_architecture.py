"""The floors and walks that docs/ARCHITECTURE.md draws are those of the code."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import balms_det

PACKAGE = Path(balms_det.__file__).parent
ROOT = PACKAGE.parent
PAGE = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
CLASSIFIER_TOOLS = ("train_classifier.py", "compare_classifiers.py", "classifier_throughput.py")


def floors_of(page: str) -> list[list[str]]:
    """Return the parts on each floor of the block between the markers, the highest floor first.

    A floor is a line of parts, separated by commas, then two spaces and a description.
    """
    block = re.search(r"<!-- floors -->\n```\n(.*?)```\n<!-- /floors -->", page, re.DOTALL)
    assert block is not None, "docs/ARCHITECTURE.md has no block of floors"
    lines = [line for line in block[1].splitlines() if line.strip(" │↓|")]
    return [re.split(r"\s{2,}", line)[0].split(", ") for line in lines]


def levels_of(page: str) -> tuple[dict[str, int], set[str]]:
    """Return the level of each part of the package, 0 the lowest, and the parts with °."""
    tools, *floors = floors_of(page)
    assert tools == ["tools", "tools/lab"], "the tools are the highest floor"
    parts = [part for floor in floors for part in floor]
    assert len(parts) == len({part.removesuffix("°") for part in parts}), "a part is there twice"
    level = {
        part.removesuffix("°"): height
        for height, floor in enumerate(reversed(floors))
        for part in floor
    }
    return level, {part.removesuffix("°") for part in parts if part.endswith("°")}


# A part may import from lower levels, and from itself; those of the second never from Detectron2.
LEVEL, PURE = levels_of(PAGE)


def imported_modules(source: str) -> set[str]:
    """Return the absolute names of all imports in `source`, also those inside functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layers"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def violations(part: str, source: str) -> list[str]:
    """Return the imports of `source`, a module of `part`, that break the rules."""
    wrong = []
    for name in imported_modules(source):
        top, _, rest = name.partition(".")
        if top == "balms_det" and rest and rest != "__version__":
            other = rest.split(".")[0]
            if other != part and LEVEL[other] >= LEVEL[part]:
                wrong.append(name)
        elif top in ("tools", "lab") or (top == "detectron2" and part in PURE):
            wrong.append(name)
    return wrong


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        if relative.parts[0] != "__init__.py":
            yield relative.parts[0].removesuffix(".py"), path


def test_every_module_has_a_level():
    assert {part for part, _ in modules()} == set(LEVEL)


def test_imports_point_downwards():
    found = {
        str(path): wrong
        for part, path in modules()
        if (wrong := violations(part, path.read_text()))
    }
    assert found == {}


def test_the_rules_can_be_broken():
    assert violations("losses", "import detectron2.layers")
    assert violations("losses", "def f():\n    from detectron2 import config")
    assert violations("data", "from balms_det.modeling import PRECISIONS")
    assert violations("modeling", "import balms_det.evaluation.lvis")
    assert violations("evaluation", "from balms_det import engine")
    assert violations("class_stats", "from balms_det.data import catalog")
    assert violations("classification", "import balms_det.engine")
    assert violations("classification", "import detectron2.engine")
    assert violations("runtime", "import balms_det.losses")
    assert violations("losses", "import balms_det.calibration")
    assert violations("engine", "from lab import markdown")
    assert not violations("engine", "from balms_det.data import register_dataset")
    assert not violations("class_stats", "from balms_det.annotations.file import AnnotationFile")


def test_a_page_that_disagrees_with_the_imports_fails():
    swapped = PAGE.replace("losses° ", "runtime° ", 1)
    assert swapped != PAGE
    with pytest.raises(AssertionError, match="twice"):
        levels_of(swapped)
    with pytest.raises(AssertionError, match="no block"):
        levels_of(PAGE.replace("<!-- floors -->", ""))
    without, _ = levels_of(PAGE.replace("losses° ", "tosses° ", 1))
    assert set(without) != {part for part, _ in modules()}


def test_floors_name_the_parts_that_never_import_detectron2():
    always = {"losses", "annotations", "calibration", "bilevel", "classification", "runtime"}
    assert always <= PURE
    assert {"engine", "modeling", "evaluation", "data"}.isdisjoint(PURE)


def steps_of(page: str) -> list[str]:
    """Return the dotted names of functions and classes in the walks."""
    walks = page[page.index("## Three walks") :]
    return re.findall(r"`((?:\w+\.)+\w+)`", walks)


def step_exists(step: str) -> bool:
    """Whether `step` names something in the package, with `balms_det.` left out."""
    *path, _ = names = step.split(".")
    for depth in range(len(path), 0, -1):
        module = ".".join(["balms_det", *names[:depth]])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        for name in names[depth:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


def test_every_step_of_a_walk_exists():
    steps = [step for step in steps_of(PAGE) if not step.endswith((".json", ".py"))]
    assert len(steps) > 20
    assert [step for step in steps if not step_exists(step)] == []
    assert not step_exists("losses.balanced.unbalanced_loss")
    assert not step_exists("no_part.function")


def test_pure_modules_and_the_classifier_run_where_detectron2_is_not():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for part, path in modules()
        if part in PURE
    ]
    imports = [f"import {name}" for name in names]
    tools = [f"runpy.run_path({str(ROOT / 'tools' / name)!r})" for name in CLASSIFIER_TOOLS]
    path = f"sys.path.insert(0, {str(ROOT / 'tools')!r})"
    code = "; ".join(
        ["import runpy, sys", path, "sys.modules['detectron2'] = None", *imports, *tools]
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, balms_det; assert not {'torch', 'numpy', 'detectron2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def oversized(source: str) -> list[str]:
    """Return what is too long in a file: itself above 350 lines, a function above 60.

    A comment ``# Long: reason`` at the top of the file, or right above the function, allows it.
    """
    lines = source.splitlines()
    found = []
    if len(lines) > 350 and not any(line.startswith("# Long: ") for line in lines[:20]):
        found.append("file")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            has_reason = lines[first - 2].lstrip().startswith("# Long: ")
            if node.end_lineno - node.lineno + 1 > 60 and not has_reason:
                found.append(node.name)
    return found


def test_no_file_or_function_is_long_without_a_reason():
    paths = [
        path for part in ("balms_det", "tools", "datasets") for path in ROOT.glob(f"{part}/**/*.py")
    ]
    found = {str(path): long for path in paths if (long := oversized(path.read_text()))}
    assert found == {}
    body = "    x = 1\n" * 60
    assert oversized(f"x = 1\ndef f():\n{body}") == ["f"]
    assert oversized(f"# Long: a table\ndef f():\n{body}") == []
    assert oversized("x = 1\n" * 351) == ["file"]

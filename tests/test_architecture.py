"""Imports point downwards only.

tools, tools/lab -> engine -> data | modeling | evaluation | classification -> pure
modules. Neither these nor classification know Detectron2.
"""

import ast
import subprocess
import sys
from pathlib import Path

import balms_det

PACKAGE = Path(balms_det.__file__).parent
ROOT = PACKAGE.parent

PURE = {
    "annotations",
    "bilevel",
    "calibration",
    "class_stats",
    "classifier",
    "config",
    "decouple",
    "losses",
    "options",
    "runtime",
    "synthetic",
}
CLASSIFIER_TOOLS = ("train_classifier.py", "compare_classifiers.py", "classifier_throughput.py")
# Level by part of the package; a part may import from lower levels, and from itself.
LEVEL = {
    **dict.fromkeys(PURE, 0),
    "data": 1,
    "modeling": 1,
    "evaluation": 1,
    "classification": 1,
    "engine": 2,
    "commands": 3,
    "__main__": 4,
}


def imported_modules(source: str) -> set[str]:
    """Absolute names of all that `source` imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layers"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def violations(part: str, source: str) -> list[str]:
    """What `source`, a module of `part`, imports against the rules."""
    wrong = []
    for name in imported_modules(source):
        top, _, rest = name.partition(".")
        if top == "balms_det" and rest and rest != "__version__":
            other = rest.split(".")[0]
            if other != part and LEVEL[other] >= LEVEL[part] and LEVEL[part] + LEVEL[other] > 0:
                wrong.append(name)
        elif top == "detectron2" and part in (*PURE, "classification"):
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
    assert not violations("engine", "from balms_det.data import register_dataset")
    assert not violations("class_stats", "from balms_det.annotations.file import AnnotationFile")


def test_pure_modules_and_the_classifier_run_where_detectron2_is_not():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for part, path in modules()
        if part in (*PURE, "classification")
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

"""Find the commands of documents, and tell why one would not run."""

import argparse
import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from balms_det.classification import load_config as load_classifier_config
from balms_det.config import config_files
from balms_det.engine import load_config
from balms_det.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", ".github/**/*.md", "configs/**/*.md", "datasets/*.md", "docs/**/*.md")
    for path in ROOT.glob(pattern)
)
PROGRAMS = ("python", "make", "pip", "balms-det", "source", "pre-commit")
# The first lines of blocks that show a directory tree or a drawing.
DRAWINGS = ("$DETECTRON2_DATASETS/", "tools, tools/lab ")
KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")
PLACEHOLDERS = ("…", "...", "KEY", "VALUE")


def split(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the prose of a document, and the language and content of each fenced block."""
    prose: list[str] = []
    found: list[tuple[str, list[str]]] = []
    inside = False
    for line in text.splitlines(keepends=True):
        if line.startswith("```"):
            if not inside:
                found.append((line[3:].strip(), []))
            inside = not inside
        elif inside:
            found[-1][1].append(line)
        else:
            prose.append(line)
    return "".join(prose), [(language, "".join(lines)) for language, lines in found]


def blocks(text: str, *languages: str) -> list[str]:
    """Return the contents of the fenced blocks in these languages."""
    return [content for language, content in split(text)[1] if language in languages]


def commands(text: str) -> Iterator[str]:
    """Yield the commands of a document: lines of its blocks, and code in its sentences."""
    for block in blocks(text, "", "bash", "sh"):
        if not block.startswith(DRAWINGS):
            yield from filter(None, map(str.strip, block.replace("\\\n", " ").splitlines()))
    for code in re.findall(r"`([^`]+)`", split(text)[0]):
        code = " ".join(code.split())
        if code.split()[0] in PROGRAMS and " " in code:
            yield code


def fault(command: str) -> str | None:
    """Return why a command would not run, or None."""
    words = shlex.split(command, comments=True)
    program, arguments = words[0], words[1:]
    checks = {"python": _python, "make": _make, "balms-det": _console_script}
    if program in checks:
        return checks[program](arguments)
    known = (["pip", "install", "."], ["source", ".venv/bin/activate"], ["pre-commit", "install"])
    extra = re.fullmatch(r"\.\[(\w+)\]", words[-1])
    if words[:-1] == ["pip", "install"] and extra:
        setup = (ROOT / "setup.py").read_text(encoding="utf-8")
        return None if f'"{extra[1]}": [' in setup else f"setup.py has no extra {extra[1]}"
    return None if words in known else f"{command!r} is no command that this test knows"


def _make(arguments: Sequence[str]) -> str | None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    wanted = {word for word in arguments if "=" not in word and word not in PLACEHOLDERS}
    return None if wanted <= targets else f"make has no target {wanted - targets}"


def _python(arguments: Sequence[str]) -> str | None:
    if arguments[0] == "-c":
        ast.parse(arguments[1])
        return None
    if arguments[0] == "-m":
        found = importlib.util.find_spec(arguments[1])
        return None if found else f"there is no module {arguments[1]}"
    if not (ROOT / arguments[0]).is_file():
        return f"there is no script {arguments[0]}"
    return _script((str(ROOT / arguments[0]),), Path(arguments[0]).stem, arguments[1:])


def _console_script(arguments: Sequence[str]) -> str | None:
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    entry = re.search(r"balms-det *= *([\w.]+):(\w+)", setup)
    if entry is None:
        return "setup.py has no command balms-det"
    start = f"from {entry[1]} import {entry[2]} as main; raise SystemExit(main())"
    if not arguments or arguments[0].startswith("-"):
        return _script(("-c", start), "", arguments)
    return _script(("-c", start, arguments[0]), arguments[0], arguments[1:])


def _script(start: tuple[str, ...], name: str, arguments: Sequence[str]) -> str | None:
    status, text = _help(start)
    if status != 0:
        return f"{name} --help fails: {text}"
    for flag in (word.split("=")[0] for word in arguments if word.startswith("-")):
        if not re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", text):
            return f"{name} has no flag {flag}"
    for word in _chosen(name, arguments):
        if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text):
            return f"{name} --help does not name {word}"
    return _configuration_fault(name, arguments)


def _chosen(name: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments that name one of several things, which the help lists."""
    chosen = []
    flag = "" if name in ("benchmark", "compare_classifiers") else None
    for word in arguments:
        if word.startswith("--"):
            flag = word
        elif flag in ("", "--suite", "--methods", "--ablation"):
            chosen.append(word)
    return chosen


@lru_cache
def _help(start: tuple[str, ...]) -> tuple[int, str]:
    command = [sys.executable, "-W", "ignore", *start, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


def _configuration_fault(name: str, arguments: Sequence[str]) -> str | None:
    """Return what the configuration of a command refuses: its file, a key or a value."""
    flags, overrides = _flags_and_overrides(arguments)
    if name.startswith("compare") and overrides:
        flags["config_file"] = f"{arguments[0]}+softmax"
    file = flags.get("config_file")
    if file is None:
        return f"{name} has overrides but no configuration" if overrides else None
    if Path(file).name == "config.yaml":  # a run writes it
        file = "rcnn_fpn+balsig"
    try:
        if any("classification" in path for path in config_files(file)):
            load_classifier_config(file, overrides)
        else:
            load_config(
                argparse.Namespace(
                    **{**flags, "config_file": file, "opts": overrides, "dataset": []}
                )
            )
    except InputError as error:
        return str(error)
    return None


def _flags_and_overrides(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split a command line into its flags with one value, and KEY VALUE ... at its end."""
    flags = {}
    for at, word in enumerate(arguments):
        if word.startswith("--"):
            flags[word[2:].replace("-", "_")] = next(iter(arguments[at + 1 : at + 2]), "")
        elif KEY.fullmatch(word) and word not in PLACEHOLDERS and _begins_overrides(arguments, at):
            return flags, [word for word in arguments[at:] if word not in PLACEHOLDERS]
    return flags, []


def _begins_overrides(arguments: Sequence[str], at: int) -> bool:
    """Whether the rest is KEY VALUE pairs, and the word before not a flag of another kind."""
    before = arguments[at - 1] if at else ""
    rest = [word for word in arguments[at:] if word not in PLACEHOLDERS]
    return len(rest) % 2 == 0 and (
        not before.startswith("--") or before in ("--opts", "--eval-only")
    )

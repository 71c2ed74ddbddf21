"""The command line `balms-det`, from a clone and from an installed wheel."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from balms_det.commands.cli import COMMANDS, usage

ROOT = Path(__file__).resolve().parents[1]


def balms_det(*arguments, cwd=None, env=None):
    command = [sys.executable, "-W", "ignore", "-m", "balms_det", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        check=False,
    )


def test_help_has_one_line_for_each_command():
    lines = usage().splitlines()
    for name, meaning in COMMANDS.items():
        assert sum(line.split()[:1] == [name] and meaning in line for line in lines) == 1
    assert max(map(len, lines)) <= 100


def test_help_imports_nothing_heavy(run_python):
    run_python(
        "import sys\n"
        "from balms_det.commands import cli\n"
        "cli.main(['--help'])\n"
        "assert not {'torch', 'numpy', 'detectron2', 'cv2'} & set(sys.modules)\n"
    )


def test_an_unknown_command_is_one_sentence_with_the_nearest():
    done = balms_det("stat")
    assert done.returncode == 2
    assert done.stderr == "error: there is no command 'stat'; did you mean stats?\n"
    done = balms_det("xyz")
    assert "choose one of train, demo" in done.stderr


@pytest.mark.e2e
def test_a_command_without_detectron2_says_how_to_install_it(run_python):
    run_python(
        "import sys\n"
        "sys.modules['detectron2'] = None\n"
        "from balms_det.commands import cli\n"
        "from balms_det.runtime.errors import InputError\n"
        "needed = {'demo': ['--input', 'i', '--output', 'o']}\n"
        "for name in ('train', 'demo', 'calibrate'):\n"
        "    sys.argv = [name, '--config-file', 'c', *needed.get(name, [])]\n"
        "    try:\n"
        "        cli.run_command(name)\n"
        "    except InputError as error:\n"
        "        assert 'balms-det install-detectron2' in str(error)\n"
        "    else:\n"
        "        raise AssertionError(name)\n"
    )


@pytest.mark.parametrize("name", ["train", "demo", "calibrate", "stats", "check"])
def test_the_help_of_a_command_imports_nothing_heavy(run_python, name):
    run_python(
        "import sys\n"
        "from balms_det.commands import cli\n"
        f"try:\n    cli.main(['{name}', '--help'])\n"
        "except SystemExit:\n    pass\n"
        "assert not {'torch', 'detectron2', 'cv2', 'matplotlib'} & set(sys.modules)\n"
    )


@pytest.mark.e2e
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_under_its_own_name(name):
    done = balms_det(name, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: balms-det {name}")


@pytest.mark.parametrize(
    "path",
    [*ROOT.glob("tools/*.py"), ROOT / "datasets" / "make_glyphs.py"],
    ids=lambda path: path.stem,
)
def test_scripts_of_commands_are_thin_faces(path):
    text = path.read_text(encoding="utf-8")
    if "from balms_det.commands" in text:
        assert len(text.splitlines()) <= 8


@pytest.fixture(scope="module")
def wheel_site(tmp_path_factory):
    """A directory into which the package's wheel is unpacked, far from the clone."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("balms_det", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.e2e
def test_the_wheel_holds_the_package_and_nothing_else(wheel_site):
    assert {path.name.split("-")[0] for path in wheel_site.iterdir()} == {"balms_det"}
    assert (wheel_site / "balms_det" / "configs" / "lvis_r50_balsig.yaml").is_file()
    assert (wheel_site / "balms_det" / "py.typed").is_file()
    (entry_points,) = wheel_site.glob("*.dist-info/entry_points.txt")
    assert "balms-det = balms_det.commands.cli:main" in entry_points.read_text()


@pytest.mark.e2e
def test_an_installed_wheel_generates_checks_trains_and_predicts(wheel_site, tmp_path):
    """Outside of the clone, with a configuration that is named by its file alone."""

    def run(*arguments):
        done = balms_det(*arguments, cwd=tmp_path, env={"PYTHONPATH": str(wheel_site)})
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    where = "import balms_det; print(balms_det.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", where],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(wheel_site)},
        check=True,
    )
    assert done.stdout.startswith(str(wheel_site))
    glyphs = ["--classes", 10, "--train-images", 12, "--val-images", 4, "--size", 64]
    run("make-glyphs", "--out", "data", *glyphs, "--min-scale", 0.2)
    assert "10 classes" in run("stats", "data/glyphs_train.json", "--json", "stats.json")
    assert "faults: 0" in run("check", "data/glyphs_train.json", "data")
    assert "LOSS.FOCAL.GAMMA" in run("keys", "MODEL.LONG_TAIL.LOSS.FOCAL")
    config = ["--config-file", "glyphs_quickstart.yaml"]
    tiny = ["SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0]
    tiny += ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64, "OUTPUT_DIR", "run"]
    train = ["--dataset", "glyphs_train", "data/glyphs_train.json", "data"]
    val = ["--dataset", "glyphs_val", "data/glyphs_val.json", "data"]
    run("train", *config, *train, *val, *tiny)
    assert (tmp_path / "run" / "inference" / "lvis_results.json").is_file()
    weights = ["--weights", "run/model_final.pth"]
    run("demo", *config, *weights, "--input", "data/val", "--output", "drawn")
    assert len(list((tmp_path / "drawn").glob("*.jpg"))) == 4

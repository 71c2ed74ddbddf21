"""Setting up: what goes wrong there is one sentence with a remedy."""

import csv
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from balms_det.commands import install_detectron2

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def load(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_env = load("make_env")


def run_install(**environment):
    command = [sys.executable, TOOLS / "install_detectron2.py"]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def fake_detectron2(folder, content):
    package = folder / "detectron2"
    (package / "modeling").mkdir(parents=True)
    (package / "modeling" / "__init__.py").touch()
    (package / "__init__.py").write_text(content)
    return {"PYTHONPATH": str(folder)}


def test_an_importable_detectron2_is_used_as_it_is(tmp_path):
    done = run_install(**fake_detectron2(tmp_path, "__version__ = '0.6'"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Detectron2 0.6 is already installed and is used as it is" in done.stdout


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("raise ImportError('undefined symbol: _ZN2at')", "undefined symbol: _ZN2at"),
        ("__version__ = '0.5'", "is 0.5, 0.6 or newer is needed"),
    ],
)
def test_a_broken_or_old_detectron2_is_named_with_the_remedy(tmp_path, content, reason):
    done = run_install(**fake_detectron2(tmp_path, content))
    assert done.returncode != 0
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and reason in line and "pip uninstall detectron2" in line


def test_without_network_the_remedy_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(SystemExit, match="could not be downloaded .* connect this machine"):
        install_detectron2.download(tmp_path)


def test_another_file_than_expected_is_refused(tmp_path, monkeypatch):
    (tmp_path / "sal_detectron2-0.7.2-cp310-none-any.whl").write_bytes(b"something else")
    monkeypatch.setattr(sys, "executable", "true")  # pip is not what is tested
    with pytest.raises(SystemExit, match="SHA-256"):
        install_detectron2.download(tmp_path)


def test_the_repacked_wheel_is_pure_python_and_consistent(tmp_path):
    source = tmp_path / "sal_detectron2-0.7.2-cp310-none-any.whl"
    info = "sal_detectron2-0.7.2.dist-info"
    with zipfile.ZipFile(source, "w") as wheel:
        wheel.writestr("detectron2/__init__.py", "__version__ = '0.7.2'\n")
        wheel.writestr("detectron2/_C.cpython-310-x86_64-linux-gnu.so", b"compiled")
        wheel.writestr("tools/train_net.py", "stray")
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: sal-detectron2\nVersion: 0.7.2\n"
            "Requires-Dist: numpy<2\nRequires-Dist: black\nRequires-Dist: yacs>=0.1.8\n",
        )
        wheel.writestr(f"{info}/WHEEL", "Tag: cp310-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    repacked = install_detectron2.repack(source, tmp_path)
    assert repacked.name == "detectron2-0.7.2-py3-none-any.whl"
    with zipfile.ZipFile(repacked) as wheel:
        names = set(wheel.namelist())
        info = "detectron2-0.7.2.dist-info"
        assert names == {"detectron2/__init__.py"} | {
            f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD")
        }
        metadata = wheel.read(f"{info}/METADATA").decode()
        assert "Name: detectron2\n" in metadata
        assert "Requires-Dist: numpy\n" in metadata and "black" not in metadata
        for name, digest, size in csv.reader(wheel.read(f"{info}/RECORD").decode().splitlines()):
            if digest:
                assert len(wheel.read(name)) == int(size)
                assert install_detectron2._record_hash(wheel.read(name)) == digest
    assert hashlib.sha256(source.read_bytes()).hexdigest() != install_detectron2.SOURCE_SHA256


@pytest.mark.parametrize("version", [(3, 8, 1), (3, 14, 0)])
def test_a_wrong_python_is_named_with_the_remedy(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(sys, "argv", ["make_env.py"])
    number = f"{version[0]}.{version[1]}"
    with pytest.raises(SystemExit, match=f"Python {number} .*needs Python 3.11 to 3.13; install"):
        make_env.main()


def test_a_failing_installation_ends_with_the_remedy(monkeypatch, capfd):
    failing = [sys.executable, "-c", "raise SystemExit(1)"]
    with pytest.raises(SystemExit, match="error: connect this machine"):
        make_env.run(failing, "connect this machine")


def test_every_requirement_is_pinned():
    constraints = Path(make_env.CONSTRAINTS).read_text()
    pins = {name.lower() for name in re.findall(r"^([\w.-]+)==", constraints, re.MULTILINE)}
    setup = (TOOLS.parent / "setup.py").read_text()
    required = {name.lower() for name in re.findall(r'"([\w.-]+)[<>]=?[\d.]', setup)}
    assert {"torch", "hotcoco", "setuptools", "pytest"} <= required
    assert required <= pins


@pytest.mark.e2e
def test_an_installed_package_brings_its_configurations(tmp_path):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", tmp_path / "site", "."]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(TOOLS.parent / name, source)
    for name in ("balms_det", "configs"):
        shutil.copytree(TOOLS.parent / name, source / name)
    subprocess.run(command, check=True, cwd=source)
    code = "from balms_det.config import config_file; print(config_file('lvis_r50_balsig.yaml'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )
    found = Path(done.stdout.strip())
    assert found.is_relative_to(tmp_path / "site")
    assert (found.parent / "bases" / "rcnn_fpn.yaml").is_file()
    assert (found.parent / "classification" / "bases" / "digits_lt.yaml").is_file()

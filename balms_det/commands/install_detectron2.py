"""Install Detectron2 into the running interpreter's environment, unless one is there already.

Detectron2 is not on PyPI. The wheel ``sal-detectron2`` there holds Detectron2's Python files of
April 2024; its compiled extension fits only one Python and CUDA version. Nothing that Mask and
Cascade R-CNN need lives in that extension (ROIAlign and NMS come from torchvision), so this script
repacks the wheel without it, as a pure Python ``detectron2``. Users with a Detectron2 built from
source keep theirs: an importable Detectron2 of version 0.6 or newer is left as it is.
"""

import argparse
import base64
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

SOURCE = "sal-detectron2==0.7.2"
SOURCE_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
VERSION = "0.7.2"
OLDEST_USABLE = (0, 6)
# The pins of a clone; an installed package has none.
CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
SOURCE_INSTRUCTIONS = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"


def installed_version() -> str | None:
    """Return the importable Detectron2's version, or None where there is none.

    Raises:
        SystemExit: with a remedy, when a Detectron2 is there but broken or too old.
    """
    if importlib.util.find_spec("detectron2") is None:
        return None
    # A fresh process, because a failing import leaves half-initialised modules behind.
    probe = subprocess.run(
        [sys.executable, "-c", "import detectron2, detectron2.modeling as _; "
                               "print(detectron2.__version__)"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    remedy = (
        f"remove it (`{sys.executable} -m pip uninstall detectron2`) and run this again, "
        f"or reinstall it from source ({SOURCE_INSTRUCTIONS})"
    )
    if probe.returncode != 0:
        reason = probe.stderr.strip().splitlines()[-1] if probe.stderr.strip() else "no reason"
        sys.exit(f"error: the installed Detectron2 cannot be imported ({reason}); {remedy}")
    version = probe.stdout.strip().splitlines()[-1]
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_USABLE:
        sys.exit(f"error: the installed Detectron2 is {version}, 0.6 or newer is needed; {remedy}")
    return version


def download(folder: Path) -> Path:
    """Fetch the wheel into `folder` and return its path, once its SHA-256 has been verified."""
    # The wheel is tagged for CPython 3.10; what is kept of it runs on any.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder)]
    command += ["--no-deps", "--only-binary=:all:", "--python-version", "3.10", SOURCE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("sal_detectron2-*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        sys.exit(
            f"error: {SOURCE} could not be downloaded ({reason}); connect this machine to a "
            f"Python package index, or install Detectron2 from source ({SOURCE_INSTRUCTIONS}), "
            "and run this again"
        )
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != SOURCE_SHA256:
        sys.exit(
            f"error: {wheels[0].name} has SHA-256 {digest}, expected {SOURCE_SHA256}; "
            "the package index served another file: use another index and run this again"
        )
    return wheels[0]


def repack(source: Path, folder: Path) -> Path:
    """Write the pure Python wheel made of `source` into `folder` and return its path."""
    dist_info = f"detectron2-{VERSION}.dist-info"
    contents: dict[str, bytes] = {}
    with zipfile.ZipFile(source) as wheel:
        for name in wheel.namelist():
            top, _, rest = name.partition("/")
            if top == "detectron2" and not name.endswith(".so"):
                contents[name] = wheel.read(name)
            elif top.endswith(".dist-info") and rest not in ("", "RECORD", "WHEEL"):
                contents[f"{dist_info}/{rest}"] = wheel.read(name)

    metadata = contents[f"{dist_info}/METADATA"].decode()
    metadata = metadata.replace("Name: sal-detectron2", "Name: detectron2", 1)
    # It runs on NumPy 2, and black is a development tool.
    metadata = metadata.replace("Requires-Dist: numpy<2\n", "Requires-Dist: numpy\n", 1)
    metadata = metadata.replace("Requires-Dist: black\n", "", 1)
    contents[f"{dist_info}/METADATA"] = metadata.encode()
    contents[f"{dist_info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: balms_det\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = [f"{name},{_record_hash(data)},{len(data)}" for name, data in contents.items()]
    record.append(f"{dist_info}/RECORD,,")
    contents[f"{dist_info}/RECORD"] = ("\n".join(record) + "\n").encode()

    target = folder / f"detectron2-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in contents.items():
            wheel.writestr(name, data)
    return target


def _record_hash(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"sha256={digest}"


def install(wheel: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        *(("-c", str(CONSTRAINTS)) if CONSTRAINTS.is_file() else ()),
        str(wheel),
    ]
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit("error: pip could not install Detectron2 (its message is above)")


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    version = installed_version()
    if version is not None:
        print(f"Detectron2 {version} is already installed and is used as it is.")
        return
    with tempfile.TemporaryDirectory() as folder:
        install(repack(download(Path(folder)), Path(folder)))
    version = installed_version()
    if version is None:
        sys.exit("error: Detectron2 was installed but cannot be found; is another environment on?")
    print(f"Installed Detectron2 {version}.")

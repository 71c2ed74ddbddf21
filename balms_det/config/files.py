"""The shipped configuration files, and how a base and a method join into one configuration.

A configuration is named by a file, or by a base and a method with a plus sign between them:

    configs/lvis_r50_balsig.yaml
    lvis_r101+seesaw            configs/bases/lvis_r101.yaml, then configs/methods/seesaw.yaml
    glyphs_quickstart+eql       any configuration of a detector, then a method

Each base and each method is written once, and any base goes with any method. In a file, a list of
files under ``_BASE_`` does the same; the later ones win, and balms_det.config.bases checks them.
"""

from functools import partial
from pathlib import Path
from typing import Any

from balms_det.config.bases import check_file, first_base
from balms_det.config.checks import merge_config
from balms_det.config.values import fitted_file
from balms_det.runtime.errors import InputError

_BASE_DIRECTORIES = (".", "bases", "classification/bases")
_METHOD_DIRECTORIES = ("methods", "second_stages")
_STAGE_2 = "_stage2"


def config_directory() -> Path:
    """Return the directory of the shipped files, in a clone or an installation."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"  # where setup.py installs them
    return installed if installed.is_dir() else package.parent / "configs"


def config_file(name: str) -> str:
    """Return the path of a shipped file, e.g. "lvis_r50_balsig.yaml" or "methods/seesaw.yaml".

    Raises:
        InputError: no file of that name is shipped.
    """
    directory = config_directory()
    path = directory / name
    if not path.is_file():
        known = sorted(str(p.relative_to(directory)) for p in directory.rglob("*.yaml"))
        raise InputError(f"there is no configuration {name!r}; choose one of: {', '.join(known)}")
    return str(path)


def config_files(name: str) -> list[str]:
    """Return the files that a configuration's name stands for; later ones win.

    Args:
        name: path of a file, name of a shipped file, or names joined by "+": a base, then methods.

    Raises:
        InputError: a part of the name is not a file and not shipped.
    """
    first, *methods = _parts(name)
    base = _find(first, [config_directory() / path for path in _BASE_DIRECTORIES])
    files = [base]
    for method in methods:
        # A classifier's bases lie beside its methods.
        family = base.parents[1] if base.parent.name == "bases" else config_directory()
        path = _find(method, [family / directory for directory in _METHOD_DIRECTORIES])
        if path.parent.name == "second_stages":
            files[0] = _second_stage_of(base, method)
        files.append(path)
    return [str(path) for path in files]


def merge_config_files(cfg: Any, name: str, **where: str) -> None:
    """Merge the files that a configuration's name stands for into `cfg`.

    ``{BASE}`` in MODEL.WEIGHTS and CALIBRATION.LOGIT_STATS becomes the name of the base, the first
    of the joined names or of the list under ``_BASE_``: a second stage starts from the first stage
    on the same base. Files are read as plain data: YAML tags that run Python are refused.

    Args:
        cfg: a CfgNode with all keys.
        name: as of :func:`config_files`.
        where: the further argument of :func:`merge_config`, ``reference``.

    Raises:
        InputError: a file is missing or not valid YAML, its ``_BASE_`` cannot be followed, or it
            has an unknown key or a bad value.
    """
    for index, path in enumerate(config_files(name)):
        check_file(path)
        merge_config(cfg, partial(_merge_file, cfg, path), path, **where)
        base = first_base(path) if index == 0 else _parts(name)[0]
        cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS.replace("{BASE}", Path(base).stem)
        calibration = cfg.MODEL.LONG_TAIL.get("CALIBRATION")  # A classifier has none.
        if calibration is not None:
            path = calibration.LOGIT_STATS.replace("{BASE}", Path(base).stem)
            calibration.LOGIT_STATS = path


def _merge_file(cfg: Any, path: str) -> None:
    content = cfg.load_yaml_with_base(path, allow_unsafe=False)
    if content.get("VERSION") == cfg.get("VERSION"):
        cfg.merge_from_other_cfg(type(cfg)(fitted_file(cfg, content)))
    else:  # Detectron2 renames the keys of earlier versions.
        cfg.merge_from_file(path, allow_unsafe=False)


def run_name(name: str) -> str:
    """Return what a run of a configuration is called, e.g. "lvis_r50_seesaw"."""
    return "_".join(Path(part).stem for part in _parts(name))


def _parts(name: str) -> list[str]:
    # The path of a file may contain plus signs: the longest path that exists is one part.
    pieces = name.split("+")
    parts = []
    while pieces:
        lengths = range(len(pieces), 1, -1)
        end = next((n for n in lengths if Path("+".join(pieces[:n])).is_file()), 1)
        parts.append("+".join(pieces[:end]))
        pieces = pieces[end:]
    return parts


def _find(name: str, directories: list[Path]) -> Path:
    if Path(name).is_file():
        return Path(name).resolve()
    file = f"{name.removeprefix('configs/').removesuffix('.yaml')}.yaml"
    for directory in directories:
        if (directory / file).is_file():
            return (directory / file).resolve()
    known = sorted({path.stem for directory in directories for path in directory.glob("*.yaml")})
    raise InputError(
        f"{name}: there is no such configuration file, and none of that name is shipped; name a "
        f"file, or one of {', '.join(known)}"
    )


def _second_stage_of(base: Path, method: str) -> Path:
    """Return the second stage beside a base: the method's own where it has one."""
    own = base.with_name(f"{base.stem}{_STAGE_2}_{Path(method).stem}.yaml")
    if own.is_file():
        return own
    path = base.with_name(f"{base.stem}{_STAGE_2}.yaml")
    if not path.is_file():
        raise InputError(f"{base}: there is no second stage beside it; add {path.name}")
    return path

"""The configuration files that the package ships."""

from pathlib import Path

from balms_det.runtime.errors import InputError


def config_file(name: str) -> str:
    """Path of a shipped configuration file, e.g. "lvis_r50_balsig.yaml".

    Works from a clone, an editable and a regular installation.

    Raises:
        InputError: there is no configuration of that name.
    """
    package = Path(__file__).resolve().parents[1]
    folder = package / "configs"  # where setup.py installs them
    if not folder.is_dir():
        folder = package.parent / "configs"  # in a clone
    path = folder / name
    if not path.is_file():
        known = ", ".join(sorted(str(p.relative_to(folder)) for p in folder.rglob("*.yaml")))
        raise InputError(f"there is no configuration {name!r}; choose one of: {known}")
    return str(path)


def find_config(name: str) -> str:
    """Return the path of a configuration file: `name` itself, or the shipped file of that name.

    Raises:
        InputError: there is neither.
    """
    if Path(name).is_file():
        return name
    shipped = Path(name.removeprefix("configs/"))
    try:
        return config_file(str(shipped))
    except InputError as error:
        raise InputError(
            f"{name}: there is no such configuration file, and none of that name is shipped; "
            "configs/README.md lists those that are"
        ) from error

"""A configuration file and the files under its ``_BASE_``, checked before they are merged."""

import os
from pathlib import Path
from typing import Any

import yaml

from balms_det.runtime.errors import InputError

_BASE = "_BASE_"


def check_file(path: str, above: tuple[str, ...] = ()) -> None:
    """Refuse a file that cannot be merged: it or one of its bases is not a local YAML mapping.

    Args:
        path: the file.
        above: files whose ``_BASE_`` leads to `path`, the first one first.

    Raises:
        InputError: a file is missing or not a mapping, or its ``_BASE_`` leads back to itself.
    """
    if above and not os.path.isfile(path):
        raise InputError(f"{above[-1]}: {_BASE} names {path}, but there is no such file")
    if any(os.path.samefile(path, file) for file in above):
        walk = " -> ".join((*above, path))
        raise InputError(f"{path}: {_BASE} leads back to this file ({walk}); remove one of these")
    for base in _bases(path, _read(path)):
        check_file(base, (*above, path))


def first_base(path: str) -> str:
    """Return the file on which the others of a file's list are put, or `path` without a list."""
    content = _read(path)
    return _bases(path, content)[0] if isinstance(content.get(_BASE), list) else path


def _read(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: this is not valid YAML ({reason})") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: a configuration holds KEY: VALUE settings, but this file holds "
            f"{'nothing' if content is None else repr(content)[:40]}"
        )
    return content


def _bases(path: str, content: dict[str, Any]) -> list[str]:
    if _BASE not in content:
        return []
    bases = content[_BASE] if isinstance(content[_BASE], list) else [content[_BASE]]
    if not bases or not all(isinstance(base, str) for base in bases):
        raise InputError(
            f"{path}: {_BASE} is {content[_BASE]!r}; set it to a file, or to a list of files"
        )
    remote = [base for base in bases if "://" in base]
    if remote:
        raise InputError(
            f"{path}: {_BASE} names {remote[0]}; download it and name the copy, because only "
            "local files are read"
        )
    # Relative paths are relative to the file, as Detectron2 reads them.
    return [os.path.join(os.path.dirname(path), os.path.expanduser(base)) for base in bases]

"""The reference of configuration keys, from the same options as the keys themselves."""

import inspect

from balms_det.config.keys import option_groups
from balms_det.options import Choices, Option, Options, options_of


def key_reference(prefix: str = "") -> str:
    """Return the reference of the keys that begin with `prefix`, in Markdown.

    A section for each group of options has its description and a table of keys. A key that several
    losses share stands with the first of them.
    """
    seen: set[str] = set()
    sections = []
    for path, options in option_groups():
        rows = []
        for item in options_of(options):
            key = f"{path}.{item.key}"
            if key not in seen and key.startswith(prefix):
                rows.append(_row(key, item))
            seen.add(key)
        if rows:
            sections.append(_section(options, rows))
    return "\n\n".join(sections)


def _section(options: type[Options], rows: list[str]) -> str:
    title, _, rest = inspect.cleandoc(options.__doc__ or "").partition("\n\n")
    title = title.replace("\n", " ").removesuffix(".").removeprefix("Options of ")
    title = title.removeprefix(":class:`").removesuffix("`")
    header = "| key | default | allowed | meaning | source |\n| --- | --- | --- | --- | --- |"
    parts = [f"### {title}", rest.replace("\n", " "), "\n".join([header, *rows])]
    return "\n\n".join(part for part in parts if part)


def _row(key: str, item: Option) -> str:
    if isinstance(item.allowed, Choices):
        allowed = ", ".join(f"`{name}`" for name in item.allowed.names)
    else:
        allowed = item.allowed.allowed if item.allowed else ""
    cells = (f"`{key}`", f"`{item.default!r}`", allowed, item.meaning, item.source)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

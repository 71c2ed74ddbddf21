"""Tables in Markdown documents."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from balms_det.runtime.atomic_file import atomic_file
from balms_det.runtime.errors import InputError


def table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)
) -> str:
    """Return a table, columns aligned to the right but for those whose indices `left` names."""
    rules = ["---" if column in left else "---:" for column in range(len(headers))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headers, rules, *rows))


def update_blocks(document: Path, contents: Mapping[str, str]) -> None:
    """Replace what stands between the markers of each name in a document.

    The markers are the comments ``<!-- report: name -->`` and ``<!-- /report -->``.

    Raises:
        InputError: the markers of a name are not there; the document is as it was.
    """
    text = document.read_text(encoding="utf-8")
    for name, content in contents.items():
        pattern = rf"(<!-- report: {re.escape(name)} -->\n).*?(<!-- /report -->)"
        literal = content.replace("\\", r"\\")
        text, count = re.subn(pattern, rf"\1\n{literal}\n\n\2", text, flags=re.DOTALL)
        if count != 1:
            raise InputError(
                f"{document} has {count} blocks <!-- report: {name} --> ... <!-- /report -->, "
                "expected one; add the two comments where the table shall stand"
            )
    with atomic_file(document) as file:
        file.write(text.encode())

"""Tables in Markdown documents."""

import re
from collections.abc import Collection, Sequence

from balms_det.errors import InputError


def table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)
) -> str:
    """A table, columns aligned to the right but for those whose indices `left` names."""
    rules = ["---" if column in left else "---:" for column in range(len(headers))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headers, rules, *rows))


def replace_block(document: str, name: str, content: str) -> str:
    """`document` with `content` between the markers of `name`.

    The markers are the comments ``<!-- report: name -->`` and ``<!-- /report -->``.

    Raises:
        InputError: the markers are not there.
    """
    pattern = re.compile(rf"(<!-- report: {re.escape(name)} -->\n).*?(<!-- /report -->)", re.DOTALL)
    replaced, count = pattern.subn(lambda m: f"{m[1]}\n{content}\n\n{m[2]}", document)
    if count != 1:
        raise InputError(
            f"the document has {count} blocks <!-- report: {name} --> ... <!-- /report -->, "
            "expected one; add the two comments where the table shall stand"
        )
    return replaced

"""Explain the configuration keys: defaults, allowed values, meaning and source, in Markdown.

PREFIX chooses keys, as in MODEL.LONG_TAIL.LOSS.SEESAW; without it all are listed, as in
docs/CONFIGURATION.md.
"""

import argparse
from collections.abc import Sequence

from balms_det.runtime.errors import InputError


def main(argv: Sequence[str] | None = None) -> None:
    """Print the reference of keys."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prefix", nargs="?", default="", metavar="PREFIX")
    args = parser.parse_args(argv)
    from balms_det.config.reference import key_reference  # seconds to import

    reference = key_reference(args.prefix)
    if not reference:
        raise InputError(
            f"no key of this package begins with {args.prefix!r}; run `balms-det keys` to list all"
        )
    print(reference)

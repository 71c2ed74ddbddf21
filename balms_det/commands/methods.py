"""List the methods: paper, formula, what each needs, and where its published number comes from.

NAME chooses one, as in `balms-det methods seesaw`. Numbers are in percent on LVIS v1 val, Mask
R-CNN: mask AP, or mask AP over all, rare, common and frequent classes, and box AP.

In formulas, z is a row's logits, p their softmax (of sigmoid losses, their sigmoids), y the row's
class, t_j one where j = y, n_j the training count of class j, n their sum, k the number of classes
and b the background. A formula is the loss of a row unless it says otherwise.
"""

import argparse
from collections.abc import Sequence

from balms_det.options import closest
from balms_det.runtime.errors import InputError


def main(argv: Sequence[str] | None = None) -> None:
    """Print the description of all methods or of one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", metavar="NAME")
    args = parser.parse_args(argv)
    # Seconds to import, which help does not need.
    from balms_det.config.method_list import METHODS
    from balms_det.config.methods import describe_methods

    methods = [method for method in METHODS if args.name in (None, method.name)]
    if not methods:
        names = [method.name for method in METHODS]
        close = closest(args.name, names)
        remedy = f"did you mean {close}?" if close else f"choose one of {', '.join(names)}"
        raise InputError(f"there is no method {args.name!r}; {remedy}")
    print(describe_methods(methods))

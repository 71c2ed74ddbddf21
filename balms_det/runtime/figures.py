"""Figures on disk, drawn without a display."""

import os

from matplotlib.figure import Figure

from balms_det.runtime.errors import InputError


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 110) -> None:
    """Write a figure, the same bytes for the same drawing.

    Args:
        figure: made by ``Figure(...)`` rather than by pyplot, which would keep it.
        path: its suffix says the format.
        dpi: of formats that have pixels.

    Raises:
        InputError: the folder is not there, or the format is none.
    """
    # The file must not depend on the release of matplotlib that drew it.
    metadata = {"Software": None} if str(path).endswith(".png") else None
    try:
        figure.savefig(path, dpi=dpi, metadata=metadata)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: the plot cannot be written ({error}); give a .png, .svg or .pdf in a folder "
            "that exists"
        ) from error

"""The faults that a check of a data set reports."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Fault:
    """One fault of a data set.

    Attributes:
        kind: what it is, in snake_case.
        where: the record, with its id, and the file where there is one.
        message: what is wrong, with the value.
        severity: a "warning" is worth knowing, but may be meant so.
    """

    kind: str
    where: str
    message: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.severity}: {self.kind}: {self.where}: {self.message}"


def where_of(annotation: dict[str, Any]) -> str:
    """Return the place of an annotation, for :attr:`Fault.where`."""
    return f"annotation {annotation['id']} of image {annotation['image_id']}"

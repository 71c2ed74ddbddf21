"""How fast this package is beside its peers: one registry of works, measured in one way.

A work is a generator function of a device and, by keyword, of its sizes; it yields one or several
:class:`Comparison`. To add one: write the function, and name it in ``WORKS``.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from lab.benchmark.annotations import dataset_load, dataset_stats, lvis_evaluation
from lab.benchmark.detector import box_selection, image, mask_head, train_step
from lab.benchmark.exported import exported_image
from lab.benchmark.losses import loss_step
from lab.benchmark.measure import Comparison, measure
from lab.benchmark.meta import meta_step
from lab.provenance import environment

__all__ = ["WORKS", "Comparison", "records", "sizes_of"]

WORKS: dict[str, Callable[..., Iterator[Comparison]]] = {
    work.__name__: work
    for work in (
        box_selection,
        mask_head,
        image,
        exported_image,
        train_step,
        loss_step,
        meta_step,
        lvis_evaluation,
        dataset_load,
        dataset_stats,
    )
}  # fmt: skip


def sizes_of(name: str) -> dict[str, int]:
    """Return the sizes that a work can be asked for, with their defaults."""
    parameters = inspect.signature(WORKS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def records(
    name: str,
    *,
    device: str,
    repeat: int,
    sizes: Mapping[str, int] | None = None,
    operations: bool = False,
    with_peer: bool = True,
) -> Iterator[dict[str, Any]]:
    """Measure a work and yield a record of every comparison in it.

    Args:
        name: of the work, one of ``WORKS``.
        device: "cpu" or "cuda".
        repeat: how many times each side is timed.
        sizes: by name, in the place of the work's defaults; those that it does not have are left
            out.
        operations: whether PyTorch's operations are timed one by one, too.
        with_peer: whether the peer is run, too.
    """
    known = sizes_of(name)
    chosen = {**known, **{key: n for key, n in (sizes or {}).items() if key in known}}
    for comparison in WORKS[name](device, **chosen):
        if not with_peer:
            comparison = replace(comparison, peer=None)
        yield {
            "work": name,
            "variant": comparison.variant,
            "device": device,
            "dtype": comparison.dtype,
            "classes": chosen.get("classes"),
            "peer": comparison.peer_name,
            **measure(comparison, device=device, repeat=repeat, operations=operations),
            "sizes": {**chosen, **comparison.sizes},
            **environment(device, torch.get_num_threads()),
        }

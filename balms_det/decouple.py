"""Two-stage training: most of a trained detector is frozen and a few of its modules go on.

Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition",
arXiv:1910.09217, and the decoupled training of Ren et al., arXiv:2007.10740: features
learned from the data as they come are good, and it is the classifier that has to be balanced.
"""

import difflib
import functools
from collections.abc import Sequence

from torch import nn

from balms_det.losses.criterion import Criterion
from balms_det.runtime.errors import InputError


def freeze_except(model: nn.Module, train_modules: Sequence[str]) -> None:
    """Freeze all of `model` but the modules at the given paths, in place.

    A frozen parameter asks for no gradient. A frozen layer also stays in evaluation mode whatever
    ``model.train()`` says: the statistics of its batch normalisation do not move, and it drops
    nothing out. Parameters that the trained modules freeze themselves stay frozen.

    Args:
        model: as built, before it is distributed and before its optimizer is made.
        train_modules: exact paths, e.g. "roi_heads.box_predictor.cls_score".

    Raises:
        InputError: a path leads to no module, or to one without parameters.
    """
    modules = find_modules(model, train_modules, "MODEL.LONG_TAIL.DECOUPLE.TRAIN_MODULES")
    trained = {parameter for module in modules for parameter in module.parameters()}
    for parameter in model.parameters():
        if parameter not in trained:
            parameter.requires_grad_(False)
    for path, module in model.named_modules():
        leads_to_trained = any(f"{other}.".startswith(f"{path}.") for other in train_modules)
        if path and not leads_to_trained and not is_within(path, train_modules):
            # Detectron2's larger parts also ask `training` whether to give losses or predictions
            # (the RPN, the mask head), so those keep the model's mode, and their layers do not.
            # A backbone gives features either way. The criterion belongs to what is trained.
            is_layer = next(module.children(), None) is None and not isinstance(module, Criterion)
            if is_layer or is_within(path, ["backbone"]):
                module.eval()
                module.train = functools.partial(_stay_in_eval_mode, module)


def find_modules(model: nn.Module, paths: Sequence[str], key: str) -> list[nn.Module]:
    """Return the modules of `model` at exact paths.

    Args:
        key: the configuration key that the paths are from, for the error.

    Raises:
        InputError: a path leads to no module, or to one without parameters.
    """
    with_parameters = {
        path: module
        for path, module in model.named_modules()
        if path and any(True for _ in module.parameters())
    }
    for path in paths:
        if path not in with_parameters:
            close = difflib.get_close_matches(path, with_parameters, n=3, cutoff=0.5)
            remedy = f"did you mean {' or '.join(close)}?" if close else "see the printed model"
            raise InputError(
                f"{key} names {path!r}, but the model has no module with parameters there; {remedy}"
            )
    return [with_parameters[path] for path in paths]


def is_within(path: str, module_paths: Sequence[str]) -> bool:
    """Return whether `path`, of a module or parameter, is or lies below one of `module_paths`."""
    return any(f"{path}.".startswith(f"{other}.") for other in module_paths)


def _stay_in_eval_mode(module: nn.Module, mode: bool = True) -> nn.Module:
    """Replace ``module.train``: keep evaluation mode."""
    return module

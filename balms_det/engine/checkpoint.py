"""Checkpoints that carry their classes, and that are refused where they do not fit."""

import logging
import os
import pickle
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import Checkpointer

from balms_det.annotations.class_stats import ClassStats
from balms_det.decouple import is_within
from balms_det.engine.class_order import layers_of_classes, order_of_classes, reordered
from balms_det.engine.class_stats import CHECKPOINT_REMEDY, unreadable_checkpoint
from balms_det.engine.torchvision_resnet import from_torchvision, warn_of_another_input
from balms_det.runtime.errors import InputError

logger = logging.getLogger(__name__)

StateDict = dict[str, Any]
# A parameter's name, and its shape in the checkpoint and in the model.
Misfit = tuple[str, tuple[int, ...], tuple[int, ...]]

# What other releases save and this model has no use for: the meta-learner of the BALMS release,
# and the normalisation of pixels, which Detectron2 now takes from the configuration.
_UNUSED = re.compile(r"^(roi_heads\.box_predictor\.(\d+\.)?learner\..*|pixel_mean|pixel_std)$")
# A convolution of a Detectron2 ResNet, without those that only predict a deformation.
_RESNET_CONV = re.compile(r"(?:^|\.)(stem|res[2-5]\.\d+)\.(?:conv[123]|shortcut)\.weight$")


class LongTailCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which neither skips misfits in silence nor forgets class names.

    Detectron2 leaves a layer of another shape at its random initialisation with no more than a
    warning; a detector evaluated so scores zero. Here it is an error, unless `reinit_mismatched`
    asks for it.

    Beside what Detectron2 reads, it reads torchvision's ResNets as they are.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        save_dir: str = "",
        *,
        class_stats: ClassStats | None = None,
        reinit_mismatched: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            model: to load into and save from.
            save_dir: folder of the checkpoints.
            class_stats: saved along, so that a checkpoint tells its class names.
            reinit_mismatched: keep the initialisation of layers whose shape differs, and list them.
            kwargs: of :class:`DetectionCheckpointer`.
        """
        super().__init__(model, save_dir, **kwargs)
        self._class_stats = class_stats
        self._reinit_mismatched = reinit_mismatched
        self._reinit: Sequence[str] = ()
        self._missing: set[str] = set()  # parameters that the last checkpoint did not have
        self._path = ""

    def save(self, name: str, **kwargs: Any) -> None:
        if self._class_stats is not None:
            kwargs["class_stats"] = self._class_stats.to_dict()
        super().save(name, **kwargs)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return as Detectron2's.

        Raises:
            InputError: the file is missing, unreadable, or does not fit the model.
        """
        self._path = path
        if path and "://" not in path and not os.path.isfile(path.split("?")[0]):
            raise InputError(f"{path}: there is no such checkpoint; {CHECKPOINT_REMEDY}")
        try:
            return super().load(path, *args, **kwargs)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise unreadable_checkpoint(self._path, error) from error
        finally:
            self._parsed_url_during_load = None  # Detectron2 leaves it set after an error.

    def load_first_stage(self, path: str, *, reinit: Sequence[str]) -> None:
        """Load the model of a first stage of training, all but the modules that start afresh.

        Args:
            path: of the checkpoint.
            reinit: paths of modules that keep the initialisation that the model was built with;
                the checkpoint may hold them in any shape.

        Raises:
            InputError: as :meth:`load`, or the checkpoint lacks a frozen parameter, which would
                stay random for good.
        """
        self._reinit = reinit
        try:
            self.load(path, checkpointables=[])
        finally:
            self._reinit = ()
        if reinit:
            logger.info("Started afresh, as DECOUPLE.REINIT says: %s", ", ".join(reinit))
        frozen = [name for name, p in self.model.named_parameters() if not p.requires_grad]
        lacking = [name for name in frozen if name in self._missing]
        if lacking:
            raise InputError(
                f"{path}: the second stage freezes {lacking[0]} ({len(lacking)} such parameters), "
                "which this checkpoint does not have; set MODEL.WEIGHTS to the checkpoint of a "
                "detector that the first stage trained"
            )

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            checkpoint = super()._load_file(filename)
        except Exception as error:  # Unpickling a file of another kind can raise anything.
            raise unreadable_checkpoint(self._path, error) from error
        state = checkpoint["model"]
        if not (isinstance(state, dict) and state) or not all(
            isinstance(value, torch.Tensor | np.ndarray) for value in state.values()
        ):
            raise InputError(
                f"{self._path}: the file holds no state dict (parameters by name, or a dictionary "
                f"with them under 'model'); {CHECKPOINT_REMEDY}"
            )
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        ours = self.model.state_dict()
        state = _without_prefix(checkpoint["model"])
        unused = [name for name in state if name not in ours and _UNUSED.match(name)]
        if unused:
            logger.info("%s: left out, as not needed here: %s", self._path, ", ".join(unused))
        if "layer1.0.conv1.weight" in state:
            state = from_torchvision(state, ours)
            checkpoint["__author__"] = "torchvision"
        state = {
            name: value
            for name, value in state.items()
            if name not in unused and not is_within(name, self._reinit)
        }
        misfits = [
            (name, tuple(value.shape), tuple(ours[name].shape))
            for name, value in state.items()
            if name in ours and value.shape != ours[name].shape
        ]
        theirs = _class_stats_of(checkpoint)
        afresh = self._layers_to_start_afresh(misfits, state, theirs) if misfits else []
        if not misfits and theirs is not None and self._class_stats is not None:
            state, afresh = self._with_our_classes(state, theirs, self._class_stats)
        checkpoint["model"] = {n: value for n, value in state.items() if n not in afresh}

        incompatible = super()._load_model(checkpoint)
        missing, unexpected = incompatible.missing_keys, incompatible.unexpected_keys
        if state and len(unexpected) == len(state):
            raise InputError(
                f"{self._path}: none of its {len(state)} parameters has a name that this model "
                f"knows (the first is {unexpected[0]!r}); "
                "check that the configuration is the one that the checkpoint was trained with"
            )
        self._missing = set(missing)
        # That these are missing has been said already, and is meant.
        missing[:] = [n for n in missing if n not in afresh and not is_within(n, self._reinit)]
        self._refuse_another_resnet(missing, unexpected)
        if checkpoint.get("__author__") == "torchvision":
            warn_of_another_input(self._path, self.model)
        return incompatible

    def _with_our_classes(
        self, state: StateDict, theirs: ClassStats, ours: ClassStats
    ) -> tuple[StateDict, list[str]]:
        """Return the state with the classes in our order, and the names of what starts afresh.

        Raises:
            InputError: the checkpoint has other classes, and these layers may not start afresh.
        """
        if theirs.num_classes != ours.num_classes:
            return state, []
        try:
            order = order_of_classes(theirs, ours, self._path)
        except InputError:
            if not self._reinit_mismatched:
                raise
            afresh = layers_of_classes(list(state))
            logger.warning(
                "%s: started afresh, because the classes are others: %s",
                self._path,
                ", ".join(afresh),
            )
            return state, afresh
        if order is None:
            return state, []
        logger.warning(
            "%s: its classes have another order than the training set's, and are matched by name",
            self._path,
        )
        return reordered(state, order), []

    def _layers_to_start_afresh(
        self, misfits: list[Misfit], state: StateDict, theirs: ClassStats | None
    ) -> list[str]:
        """Return the names in `state` of the parameters of the layers that do not fit.

        A layer starts afresh as a whole: the bias of a weight that was not loaded means nothing.
        """
        listing = [
            f"{name} is {list(theirs)}, the model's {list(ours)}" for name, theirs, ours in misfits
        ]
        if not self._reinit_mismatched:
            more = f" and {len(listing) - 8} more" if len(listing) > 8 else ""
            keys = "MODEL.ROI_HEADS.NUM_CLASSES and MODEL.LONG_TAIL.LOSS.NAME"
            if any(_RESNET_CONV.search(name) for name, _, _ in misfits):
                keys = "MODEL.RESNETS.DEPTH"
            elif theirs is not None:
                keys += f" (it has {theirs.num_classes} classes; its run's config.yaml has both)"
            raise InputError(
                f"{self._path}: the checkpoint does not fit the model ({', '.join(listing[:8])}"
                f"{more}); {_background_hint(misfits)}set {keys} to what it was trained with, or "
                "MODEL.LONG_TAIL.REINIT_MISMATCHED True to start these layers afresh"
            )
        misfitting = [name for name, _, _ in misfits]
        # Detectron2's convolutions have their normalisation within.
        layers = {name.rpartition(".")[0] for name in misfitting if "." in name}
        layers |= {f"{layer}.norm" for layer in layers}
        rest = [n for n in state if n.rpartition(".")[0] in layers and n not in misfitting]
        along = f"; and with them {', '.join(rest)}" if rest else ""
        logger.warning(
            "%s: started afresh, for their shapes differ: %s%s",
            self._path,
            ", ".join(listing),
            along,
        )
        return misfitting + rest

    def _refuse_another_resnet(self, missing: Iterable[str], unexpected: Iterable[str]) -> None:
        """Refuse a ResNet of another depth: it fits by name in parts, and would be random in the
        others."""
        convs = [name for name in self.model.state_dict() if _RESNET_CONV.search(name)]
        stages = {_resnet_stage(name) for name in convs}
        lacking = [name for name in missing if name in convs]
        # Stages that the model leaves out, as a C4 backbone does, are not needed.
        without_place = [n for n in unexpected if _RESNET_CONV.search(n)]
        without_place = [n for n in without_place if _resnet_stage(n) in stages]
        if without_place or 0 < len(lacking) < len(convs):
            odd = (
                f"{without_place[0]} has no place in the model"
                if without_place
                else f"the model's {lacking[0]} is not in it"
            )
            raise InputError(
                f"{self._path}: the checkpoint's ResNet is another than the model's ({odd}); set "
                "MODEL.RESNETS.DEPTH to the checkpoint's, or MODEL.WEIGHTS to one of this depth"
            )


def _class_stats_of(checkpoint: dict[str, Any]) -> ClassStats | None:
    content = checkpoint.get("class_stats")
    return None if content is None else ClassStats.from_dict(content)


def _resnet_stage(name: str) -> str:
    """Return the stage, "stem" or "res2" to "res5", of a convolution that _RESNET_CONV finds."""
    match = _RESNET_CONV.search(name)
    assert match is not None
    return match[1].split(".")[0]


def _without_prefix(state: StateDict) -> StateDict:
    """Return the state without the prefix of a model that was distributed when it was saved."""
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _background_hint(misfits: list[Misfit]) -> str:
    """Return the likely reason of a classifier that differs by one column, or nothing."""
    for name, theirs, ours in misfits:
        if name.endswith("cls_score.bias") and abs(theirs[0] - ours[0]) == 1:
            with_background, without = (
                ("the checkpoint's", "the model's")
                if theirs[0] > ours[0]
                else ("the model's", "the checkpoint's")
            )
            return (
                f"{with_background} classifier has a column for the background, as softmax losses "
                f"need it, and {without} has none, as sigmoid losses do; "
            )
    return ""


def checkpoint_of_run(cfg: Any, *, resume: bool) -> str:
    """Return the path of the checkpoint that a run starts from.

    Args:
        cfg: with MODEL.WEIGHTS and OUTPUT_DIR.
        resume: whether the last checkpoint in OUTPUT_DIR, if there is one, goes before
            MODEL.WEIGHTS.
    """
    output = Checkpointer(torch.nn.Module(), cfg.OUTPUT_DIR, save_to_disk=False)
    if resume and output.has_checkpoint():
        return str(output.get_checkpoint_file())
    return str(cfg.MODEL.WEIGHTS)

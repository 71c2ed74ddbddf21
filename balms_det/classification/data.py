"""Data sets for classification: labels that are known at once, images that are read when needed.

Shapes and names used throughout:
    N: images. K: classes. C, H, W: channels, height and width.
    images: (N, C, H, W) uint8. labels: (N,) int64 in [0, K).
"""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets as tv_datasets
from torchvision.transforms import v2

from balms_det.classification.long_tail import IntArray, draw_subset, long_tailed_counts
from balms_det.classification.streams import Use, stream_seed
from balms_det.runtime.errors import InputError

# Digits of each class that are kept for testing.
_DIGITS_TEST = 50
# The augmentation of ImageNet-LT and Places-LT in the authors' release.
_PICTURE_SIZE = 224
_TRAIN_PICTURE = v2.Compose(
    [
        v2.RandomResizedCrop(_PICTURE_SIZE),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
    ]
)
_TEST_PICTURE = v2.Compose([v2.Resize(256), v2.CenterCrop(_PICTURE_SIZE)])


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled images.

    Attributes:
        labels: (N,).
        names: (K,) of the classes.
        read: from (B,) indices to their images; None for files that are too many to be kept.
        files: (N,) paths where `read` is None.
    """

    labels: IntArray
    names: list[str]
    read: Callable[[IntArray], Tensor] | None = None
    files: tuple[Path, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.names)

    def subset(self, indices: IntArray) -> "Examples":
        """Return the examples at `indices`, in that order."""
        read = self.read
        return Examples(
            self.labels[indices],
            self.names,
            None if read is None else lambda chosen: read(indices[chosen]),
            tuple(self.files[i] for i in indices) if self.files else (),
        )


@dataclass(frozen=True, eq=False)
class Split:
    """A training set, long-tailed unless its files are so already, and a balanced test set.

    Attributes:
        indices: of the training examples in the data set that they were drawn from.
    """

    train: Examples
    test: Examples
    indices: IntArray


def load_split(data: Any, imbalance: float, seed: int) -> Split:
    """Return the data that a DATA node names.

    Args:
        data: the node.
        imbalance: of the training subset; has no effect on data sets that are long-tailed already.
        seed: of the draw of the subset.

    Raises:
        InputError: the data set is not there, or its files are damaged.
    """
    if data.NAME == "image_list":
        train = _image_list(data.ROOT, data.TRAIN_LIST, data.NUM_CLASSES)
        test = _image_list(data.ROOT, data.TEST_LIST, data.NUM_CLASSES)
        return Split(train, test, np.arange(len(train.labels)))
    train, test = _BALANCED[data.NAME](data.ROOT)
    largest = int(np.bincount(train.labels).min())
    counts = long_tailed_counts(largest, train.num_classes, imbalance)
    indices = draw_subset(train.labels, counts, seed)
    return Split(train.subset(indices), test, indices)


class TensorBatches:
    """Batches of images that are all kept on the device."""

    def __init__(self, examples: Examples, device: torch.device) -> None:
        assert examples.read is not None
        self._images = examples.read(np.arange(len(examples.labels))).to(device)
        self._labels = torch.from_numpy(examples.labels).to(device)

    def __call__(
        self, index_batches: Iterable[Tensor], first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Return images and labels at each of the `index_batches`, which count from `first`."""
        for indices in index_batches:
            indices = indices.to(self._images.device)
            yield self._images.index_select(0, indices), self._labels[indices]


class FileBatches(Dataset[tuple[Tensor, int]]):
    """Batches of image files, read and brought to one size by worker processes.

    A training image is cropped, mirrored and jittered at random, as in the release; its random
    numbers follow from its place in the stream of batches, whichever worker reads it.
    """

    def __init__(
        self, examples: Examples, device: torch.device, *, num_workers: int, seed: int | None = None
    ) -> None:
        """
        Args:
            num_workers: processes; 0 reads in this one.
            seed: of the random changes of training; None for the fixed ones of testing.
        """
        self._examples = examples
        self._device = device
        self._num_workers = num_workers
        self._seed = seed

    def __call__(
        self, index_batches: Iterable[Tensor], first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Return images and labels at each of the `index_batches`, which count from `first`."""
        keys = (
            [(int(index), number, place) for place, index in enumerate(batch)]
            for number, batch in enumerate(index_batches, first)
        )
        loader = DataLoader(self, batch_sampler=keys, num_workers=self._num_workers)
        for images, labels in loader:
            yield images.to(self._device), labels.to(self._device)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, int]:
        index, number, place = key
        path = self._examples.files[index]
        try:
            with Image.open(path) as file:
                picture = v2.functional.pil_to_tensor(file.convert("RGB"))
        except OSError as error:
            raise InputError(
                f"{path}: the image cannot be read ({error}); check DATA.ROOT and the list file"
            ) from error
        if self._seed is None:
            picture = _TEST_PICTURE(picture)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(stream_seed(self._seed, Use.PICTURE, number, place))
                picture = _TRAIN_PICTURE(picture)
        return picture, int(self._examples.labels[index])


Batches = TensorBatches | FileBatches


def digits() -> tuple[Examples, Examples]:
    """Return scikit-learn's handwritten digits: 1,797 real images of 8 x 8 pixels, ten classes.

    The last 50 of each class are for testing.

    Returns:
        Training and test examples.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images * 15).to(torch.uint8)[:, None]  # 0 to 16
    labels = bunch.target.astype(np.int64)
    everything = Examples(
        labels, [str(d) for d in range(10)], lambda i: images[torch.from_numpy(i)]
    )
    members = [np.flatnonzero(labels == d) for d in range(10)]
    train = np.sort(np.concatenate([m[:-_DIGITS_TEST] for m in members]))
    test = np.sort(np.concatenate([m[-_DIGITS_TEST:] for m in members]))
    return everything.subset(train), everything.subset(test)


def cifar(name: str, root: str) -> tuple[Examples, Examples]:
    """Return CIFAR-10 or CIFAR-100, from where torchvision puts it, or from JPEG copies.

    Args:
        name: "cifar10" or "cifar100".
        root: torchvision's folder, or an .npz file as :func:`jpeg_copies` reads it.

    Returns:
        Training and test examples.

    Raises:
        InputError: the data set is not there; nothing is downloaded.
    """
    if root.endswith(".npz"):
        return jpeg_copies(root)
    dataset = {"cifar10": tv_datasets.CIFAR10, "cifar100": tv_datasets.CIFAR100}[name]
    try:
        parts = [dataset(root, train=train, download=False) for train in (True, False)]
    except RuntimeError as error:
        raise InputError(
            f"DATA.ROOT {root!r} does not have {dataset.__name__}; download it with: python -c "
            f'"from torchvision.datasets import {dataset.__name__}; '
            f"{dataset.__name__}('{root}', download=True)\", or give the path of an .npz file"
        ) from error
    return tuple(_cifar_part(part) for part in parts)  # type: ignore[return-value]


def _cifar_part(part: Any) -> Examples:
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2)
    labels = np.array(part.targets, np.int64)
    return Examples(labels, list(part.classes), lambda i: images[torch.from_numpy(i)].contiguous())


def jpeg_copies(path: str) -> tuple[Examples, Examples]:
    """Return images of one size that are kept as JPEG files in an .npz archive.

    For each of the splits "train" and "test" the archive has ``{split}_jpeg``, the bytes of all
    files one after the other (uint8), ``{split}_offsets``, where each begins and the last ends
    (N + 1), and ``{split}_labels`` (N); ``class_names`` has the names of the K classes. JPEG is
    lossy, so that results differ a little from those on the original images.

    Returns:
        Training and test examples.

    Raises:
        InputError: the file is not such an archive.
    """
    try:
        with np.load(path) as archive:
            names = [str(name) for name in archive["class_names"]]
            parts = [
                _jpeg_part(
                    names, *(archive[f"{split}_{key}"] for key in ("jpeg", "offsets", "labels"))
                )
                for split in ("train", "test")
            ]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"DATA.ROOT {path}: this is not an archive of JPEG copies ({error}); its "
            "format is described in balms_det/classification/data.py (jpeg_copies)"
        ) from error
    return parts[0], parts[1]


def _jpeg_part(names: list[str], data: Any, offsets: Any, labels: Any) -> Examples:
    def read(indices: IntArray) -> Tensor:
        files = (data[offsets[i] : offsets[i + 1]].tobytes() for i in indices)
        images = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()

    return Examples(labels.astype(np.int64), names, read)


def _image_list(root: str, path: str, num_classes: int) -> Examples:
    """Return a list file of the release: in each line an image's path below `root`, and its label.

    Raises:
        InputError: the list is missing, or a line is not of this form.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(
            f"{path}: the list of images cannot be read ({error.strerror}); set DATA.TRAIN_LIST "
            "and DATA.TEST_LIST to files of 'path label' lines"
        ) from error
    files, labels = [], []
    for number, line in enumerate(lines, start=1):
        name, _, label = line.strip().rpartition(" ")
        if not (name and label.isdigit() and int(label) < num_classes):
            raise InputError(
                f"{path}: line {number} is {line!r}, expected a path and a label from 0 to "
                f"{num_classes - 1}; correct the file or DATA.NUM_CLASSES"
            )
        files.append(Path(root) / name)
        labels.append(int(label))
    names = [str(index) for index in range(num_classes)]
    return Examples(np.array(labels, np.int64), names, files=tuple(files))


_BALANCED: dict[str, Callable[[str], tuple[Examples, Examples]]] = {
    "digits": lambda root: digits(),
    "cifar10": lambda root: cifar("cifar10", root),
    "cifar100": lambda root: cifar("cifar100", root),
}
DATASETS = (*_BALANCED, "image_list")

"""The features of a frozen detector, computed once and kept on disk.

A second stage that trains the classifier alone (MODEL.LONG_TAIL.DECOUPLE) asks the frozen rest for
the same features again and again. Here they are computed once for each training image, of all its
proposals, and any classifier, loss, sampler of images and seed can be trained on them: each time an
image is drawn, its proposals are sampled anew, as in training. An image comes with the same
augmentation each time, or with one of DECOUPLE.FEATURE_VIEWS of them, and features are rounded to
half precision; nothing else differs. (Keeping no more proposals than training samples costs a rare
class its variety, for its few images are drawn again and again.)

Names and shapes used throughout:
    N: images of the training set, in its order. V: views, each an augmentation.
    slot: view * N + image, in [0, V * N).
    R: most rows of a slot, DECOUPLE.FEATURE_ROWS. D: features of a row.

On disk, below the given folder, a folder named after a digest of all that the features depend on:
the frozen weights, the configuration of the model's other parts and of its input, the annotations,
and size and time of every image. So features of another detector or of other data are never read.
A slot counts as there once its rows have reached the disk; an extraction that was cut short goes on
with the slots that are missing. If several runs ask for the same features at once, one
computes them and the others wait.
"""

from balms_det.engine.feature_cache.extraction import cache_key, cached_features
from balms_det.engine.feature_cache.loader import SampleOfProposals, build_feature_loader
from balms_det.engine.feature_cache.store import FeatureCache

__all__ = [
    "FeatureCache",
    "SampleOfProposals",
    "build_feature_loader",
    "cache_key",
    "cached_features",
]

"""The suites, frozen: data, schedule, and how predictions are scored.

Glyphs-LT has two sizes. ccp_lt_cpu is of real photographs, in three folds.

A stored run tells the version of its suite. Whatever changes a number here raises it, and runs of
another version are run again, never compared.
"""

from dataclasses import dataclass, replace

from balms_det.runtime.errors import InputError
from balms_det.synthetic import GlyphOptions
from lab.glyphs_lt.data import Photographs


@dataclass(frozen=True)
class Suite:
    """A benchmark: every method trains the same detector on the same data for the same time.

    Attributes:
        name: as given to ``tools/compare.py --suite``.
        version: of all that follows and of the configuration file.
        config: file in ``configs/`` with the detector, the schedule of joint training and, as
            TEST.DETECTIONS_PER_IMAGE, the cap that the main table is scored with.
        data: training set with LVIS v1's curve of counts, class-balanced validation set; or
            photographs, of which every fold is validated on once.
        pretraining: a balanced set of other classes, on which the detector that all runs start from
            was trained, as those for LVIS start from ImageNet; None to start from what the
            configuration names, or from scratch.
        pretraining_iters: its schedule.
        second_stage_iters: the schedule of runs that train nothing but the classifier.
        base: the method whose detector these runs freeze.
        joint: the methods that train the whole detector; the others are second stages.
        caps: detections of an image, of all classes together, that AP is reported for.
        stored: detections of an image that are kept to score from, at least the largest cap.
        class_budget: detections of a class over the whole validation set, for AP-Fixed.
        seeds: of the stored results.
        threads: of one training on a CPU; None for as many as there are cores. Sums in another
            number of threads are rounded otherwise.
    """

    name: str
    version: int
    config: str
    data: GlyphOptions | Photographs
    pretraining: GlyphOptions | None
    pretraining_iters: int
    second_stage_iters: int
    base: str
    joint: tuple[str, ...]
    caps: tuple[int, ...]
    stored: int
    class_budget: int
    seeds: tuple[int, ...] = (1, 2, 3)
    threads: int | None = None


_PICTURES = GlyphOptions(
    size=128,
    seed=0,
    min_objects=5,
    max_objects=11,
    min_scale=0.2,
    max_scale=0.45,
    not_exhaustive=0.1,
    tail="lvis_v1",
    val_tail="balanced",
    rare_at_most=10,  # LVIS's groups
    common_at_most=100,
)

GLYPHS_LT_CPU = Suite(
    name="glyphs_lt_cpu",
    version=1,
    config="glyphs_lt_cpu.yaml",
    data=replace(_PICTURES, classes=40, train_images=1500, val_images=320, negatives=8),
    pretraining=replace(
        _PICTURES,
        classes=80,
        first_class=40,
        train_images=2000,
        val_images=20,
        tail="exponential",
        imbalance=1.0,
    ),
    pretraining_iters=1500,
    second_stage_iters=2000,  # 10.7 epochs; cRT's authors: 10
    base="rfs",
    joint=("softmax", "rfs", "eql", "balsoftmax", "balsig"),
    caps=(5, 10, 20, 40, 100),
    stored=100,
    class_budget=160,
    threads=1,  # two trainings side by side do 1.7 times what one with two threads does
)

GLYPHS_LT_GPU = Suite(
    name="glyphs_lt_gpu",
    version=1,
    config="glyphs_lt_gpu.yaml",
    data=replace(_PICTURES, classes=1203, train_images=20_000, val_images=4000, negatives=8),
    pretraining=None,
    pretraining_iters=0,
    second_stage_iters=6250,  # 10 epochs
    base="rfs",
    joint=(
        *GLYPHS_LT_CPU.joint,
        "sigmoid",
        "sigmoid_rfs",
        "eqlv2",
        "seesaw",
        "fed",
    ),
    caps=(50, 100, 300, 600),
    stored=600,
    class_budget=2000,
)

CCP_LT_CPU = Suite(
    name="ccp_lt_cpu",
    version=1,
    config="ccp_lt_cpu.yaml",
    data=Photographs(classes=52, folds=3),
    pretraining=None,
    pretraining_iters=0,
    second_stage_iters=3300,  # 10 epochs of 660 images
    base="rfs",
    joint=GLYPHS_LT_CPU.joint,
    caps=(10, 20, 50, 300),
    stored=300,
    class_budget=500,
    seeds=(1, 2),
    threads=1,
)

SUITES = {suite.name: suite for suite in (GLYPHS_LT_CPU, GLYPHS_LT_GPU, CCP_LT_CPU)}


def suite_named(name: str) -> Suite:
    """Return the suite of that name.

    Raises:
        InputError: there is none.
    """
    if name not in SUITES:
        raise InputError(f"--suite is {name!r}; choose one of {', '.join(SUITES)}")
    return SUITES[name]

"""All cases, in the order in which a new user meets them."""

from lab.own_data.cases import (
    TRAINED,
    Case,
    below,
    corners,
    deep,
    deep_demo,
    demo,
    edit,
    kept_others,
    large,
    not_white,
    nothing,
    originals_stay,
    permuted,
    plain_log,
    raises,
    refused,
    same_classes,
    same_size,
    scale,
    short_screen,
    train,
    used,
    works,
)
from lab.own_data.data import change, runs_of

_EVAL = ("--eval-only",)
_WEIGHTS = ("MODEL.WEIGHTS", f"{TRAINED}/model_final.pth")
_LOSS = "import torch; from balms_det.losses import *; "

CASES = [
    Case(
        "overwriting", "demo into the directory of its input", nothing,
        [*demo()[:-4], "--output", "images", "--confidence-threshold", "0.0"],
        "refused, originals unchanged", originals_stay,
    ),
    Case("overwriting", "new run in a used OUTPUT_DIR", used, train(), **refused("--overwrite")),
    Case(
        "overwriting", "the same with --overwrite", used, train(flags=["--overwrite"]),
        **works(file="run/model_final.pth"),
    ),
    Case(
        "before iteration 0", "test set that is not registered", nothing,
        train("DATASETS.TEST", "('elsewhere',)"), **refused("elsewhere"),
    ),
    Case(
        "before iteration 0", "test set with another class",
        edit("val", lambda c: c["categories"][2].update(name="knife")), train(),
        **refused("'spoon'"),
    ),
    Case(
        "before iteration 0", "test set whose ids are permuted, names the same",
        edit("val", permuted), train(*_WEIGHTS, flags=_EVAL),
        "classes are matched by name", same_classes,
    ),
    Case(
        "before iteration 0", "missing test image",
        lambda f: (f / "images" / "0102.png").unlink(), train(), **refused("0102.png", "missing"),
    ),
    Case(
        "before iteration 0", "missing training image",
        lambda f: (f / "images" / "0003.png").unlink(), train(), **refused("0003.png", "missing"),
    ),
    Case(
        "before iteration 0", "negative area in the test set",
        edit("val", lambda c: c["annotations"][1].update(area=-1)), train(), **refused("'area'"),
    ),
    Case(
        "before iteration 0", "text as crowd flag in the test set",
        edit("val", lambda c: c["annotations"][1].update(iscrowd="0")), train(),
        **refused("'iscrowd'"),
    ),
    Case(
        "before iteration 0", "test object without a mask",
        edit("val", lambda c: c["annotations"][1].pop("segmentation")), train(),
        **refused("'segmentation'"),
    ),
    Case(
        "before iteration 0", "the same file as training and test set", nothing,
        train(val="train.json"), **works("are training images too"),
    ),
    Case(
        "before iteration 0", "evaluation without weights", nothing,
        train("MODEL.WEIGHTS", "", flags=_EVAL), **refused("MODEL.WEIGHTS"),
    ),
    Case(
        "before iteration 0", "weights of other classes",
        lambda f: [
            edit(split, lambda c: c["categories"][1].update(name="bowl"))(f)
            for split in ("train", "val")
        ],
        train(*_WEIGHTS), **refused("'bowl'"),
    ),
    Case(
        "valid data", "masks as uncompressed run lengths",
        lambda f: change(f, segmentation=runs_of), train(), **works("APr"),
    ),
    Case(
        "valid data", "boxes without masks", lambda f: change(f, segmentation=None), train(),
        **works("MASK_ON is set to False", "APr"),
    ),
    Case(
        "valid data", "no area and no crowd flag",
        lambda f: change(f, area=None, iscrowd=None), train(), **works("APr"),
    ),
    Case(
        "valid data", "byte order mark",
        lambda f: (f / "train.json").write_text("\ufeff" + (f / "train.json").read_text()),
        train(), **works("APr"),
    ),
    Case("valid data", "training on 16-bit PNG", deep, train(), **works("APr")),
    Case(
        "valid data", "demo of a 16-bit PNG", deep_demo, demo(inputs="deep"),
        "works, not drawn white", not_white,
    ),
    Case(
        "valid data", "demo of sub-directories", below, demo(inputs="deep"),
        **works(file="out/b/same.png"),
    ),
    Case(
        "valid data", "demo with an image of 200 megapixels", large, demo(),
        "that image is named, the others are drawn", kept_others,
    ),
    Case("check and training agree", "boxes as fractions", scale(1 / 64), train(),
         **refused("normalised_boxes")),
    Case(
        "check and training agree", "boxes as corners", lambda f: change(f, bbox=corners),
        train(), **refused("corner_boxes"),
    ),
    Case(
        "check and training agree", "polygon outside of the image",
        edit("train", lambda c: c["annotations"][0].update(segmentation=[[1, 1, 90, 1, 9, 9]])),
        train(), **works("mask_outside_image"),
    ),
    Case(
        "check and training agree", "two classes of one name",
        edit("train", lambda c: c["categories"][1].update(name="cup")), train(),
        **refused("duplicate_category_name"),
    ),
    Case(
        "check and training agree", "two annotations of one id",
        edit("train", lambda c: c["annotations"][1].update(id=1)), train(),
        **refused("duplicate_annotation_id"),
    ),
    Case(
        "check and training agree", "two images of one file",
        edit("train", lambda c: c["images"][1].update(file_name="0000.png")), train(),
        **works("shared_image_file"),
    ),
    Case(
        "check and training agree", "run lengths of another size",
        edit("train", lambda c: c["annotations"][0].update(
            segmentation={"size": [10, 10], "counts": [50, 50]})),
        train(), **refused("mask_size"),
    ),
    Case("own long tail", "frequency groups for a COCO set", nothing, train(),
         **works("APr", file="run/inference/lvis_per_class.json")),
    Case(
        "own long tail", "groups in thirds", nothing,
        train("MODEL.LONG_TAIL.GROUPS", "thirds"), **works("(2 rare, 1 common, 1 frequent)"),
    ),
    Case(
        "own long tail", "repeat threshold that repeats nothing", nothing,
        train("DATALOADER.REPEAT_THRESHOLD", "0.001"), **works("repeats no image"),
    ),
    Case(
        "losses in PyTorch", "Balanced Softmax of frequencies is that of counts", nothing,
        ["-c", _LOSS + "x = torch.randn(5, 3); y = torch.arange(5) % 3; "
         "n = torch.tensor([70., 20., 10.]); a = balanced_softmax_loss(y, x, n); "
         "b = balanced_softmax_loss(y, x, n / 100); assert torch.allclose(a, b), (a, b)"],
        **works(),
    ),
    Case(
        "losses in PyTorch", "margins of frequencies", nothing,
        ["-c", _LOSS + "balanced_sigmoid_margins(torch.tensor([.7, .2, .1]))"],
        **raises("class_counts"),
    ),
    Case(
        "losses in PyTorch", "labels of another length", nothing,
        ["-c", _LOSS + "balanced_softmax_loss(torch.zeros(4, dtype=int), torch.zeros(5, 3), "
         "torch.ones(3))"],
        **raises("labels"),
    ),
    Case(
        "own project", "config.yaml of a run evaluates without --dataset", nothing,
        ["train", "--config-file", f"{TRAINED}/config.yaml", "--eval-only", *_WEIGHTS,
         "OUTPUT_DIR", "run"],
        **works("APr"),
    ),
    Case(
        "messages", "integer for a float key", nothing,
        train("MODEL.LONG_TAIL.LOSS.MARGIN.TAU", "1"), **works(),
    ),
    Case("messages", "plain name for a tuple of names", nothing,
         train("DATASETS.TRAIN", "own_train"), **works()),
    Case("messages", "flag after KEY VALUE", nothing, train("--resume"), **refused("flags before")),
    Case("messages", "missing weights", nothing, train("MODEL.WEIGHTS", "gone.pth", flags=_EVAL),
         **refused("there is no such checkpoint")),
    Case("messages", "wrong NUM_CLASSES in a demo", nothing,
         demo("MODEL.ROI_HEADS.NUM_CLASSES", "7"), **refused("NUM_CLASSES 4")),
    Case("messages", "demo threshold above 1", nothing,
         [*demo()[:-1], "50"], **refused("--confidence-threshold is 50")),
    Case("messages", "score threshold above 1", nothing,
         train("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "5.0"), **refused("SCORE_THRESH_TEST")),
    Case("messages", "OUTPUT_DIR that is a file", lambda f: (f / "run").write_text(""), train(),
         **refused("cannot be written")),
    Case("messages", "demo output that is a file", lambda f: (f / "out").write_text(""), demo(),
         **refused("out")),
    Case("messages", "no iterations", nothing, train("SOLVER.MAX_ITER", "0"),
         **refused("MAX_ITER")),
    Case("messages", "no images in a batch", nothing, train("SOLVER.IMS_PER_BATCH", "0"),
         **refused("IMS_PER_BATCH")),
    Case("messages", "batch that processes cannot share", nothing,
         train("SOLVER.IMS_PER_BATCH", "3", flags=["--num-gpus", "2"]), **refused("processes")),
    Case("messages", "divergence", nothing,
         train("SOLVER.BASE_LR", "1e30", "SOLVER.MAX_ITER", "9", "SOLVER.WARMUP_ITERS", "0",
               "SOLVER.CLIP_GRADIENTS.ENABLED", "False"),
         "one sentence", lambda o: o.status == 2 and "diverged" in o.output
         and "Traceback" not in o.output),
    Case("screen", "lines before the first loss", nothing,
         train("SOLVER.MAX_ITER", "21"), "30 at most", short_screen),
    Case("screen", "color codes in log.txt", nothing, train(), "none", plain_log),
    Case("screen", "drawings have the coordinates of the image", nothing, demo(),
         "equal width", same_size),
]  # fmt: skip

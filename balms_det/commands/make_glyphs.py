"""Generate a long-tailed instance segmentation data set in LVIS v1 format; nothing to download.

    balms-det make-glyphs --out DIR --classes 10 --train-images 600 --imbalance 20

writes DIR/glyphs_train.json, DIR/glyphs_val.json, DIR/train/*.jpg and DIR/val/*.jpg. The image root
of both files is DIR. The same options give the same bytes; a finished folder is left as it is.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields

import orjson

from balms_det.synthetic import GlyphOptions, annotation_path, generate


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = GlyphOptions()

    def option(name: str, meaning: str, **settings: object) -> None:
        value = getattr(default, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(value),
            default=value,
            help=f"{meaning} (default: {value})",
            **settings,
        )

    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    option("classes", "number of classes, 1 to 1203", metavar="K")
    option("first_class", "characters to pass over, for classes of their own", metavar="N")
    option("train_images", "number of training images", metavar="N")
    option("val_images", "number of validation images", metavar="N")
    option("size", "side of the square images in pixels", metavar="S")
    option("seed", "other seeds give other images", metavar="N")
    option(
        "tail", "shape of the training counts by class", choices=["exponential", "zipf", "lvis_v1"]
    )
    option("imbalance", "exponential: most frequent class over rarest", metavar="X")
    option("zipf_exponent", "zipf: exponent of the rank", metavar="X")
    option("val_tail", "validation counts by class", choices=["balanced", "long_tailed"])
    option("min_objects", "fewest objects per image", metavar="N")
    option("max_objects", "most objects per image", metavar="N")
    option("min_scale", "shortest object, as a fraction of the image's side", metavar="X")
    option("max_scale", "longest object, as a fraction of the image's side", metavar="X")
    option("negatives", "verified absent classes per image", metavar="N")
    option("not_exhaustive", "fraction of images with an unlabelled object", metavar="X")
    option("rare_at_most", "most training images of a rare class", metavar="N")
    option("common_at_most", "most training images of a common class", metavar="N")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes that draw; no influence on the result (default: 1)",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    options = GlyphOptions(**{f.name: getattr(args, f.name) for f in fields(GlyphOptions)})
    is_new = generate(args.out, options, workers=args.workers, progress=True)
    print(f"{args.out}: " + ("written" if is_new else "already there, with the same options"))
    for split in ("train", "val"):
        path = annotation_path(args.out, split)
        content = orjson.loads(path.read_bytes())
        print(f"  {path.name}: {len(content['images'])} images, "
              f"{len(content['annotations'])} objects")  # fmt: skip
    groups = Counter(category["frequency"] for category in content["categories"])
    print(f"  {options.classes} classes: {groups['r']} rare, {groups['c']} common, "
          f"{groups['f']} frequent")  # fmt: skip

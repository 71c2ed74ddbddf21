"""A long-tailed instance segmentation data set in LVIS v1 format, drawn from glyphs.

Nothing is downloaded: the objects are characters of DejaVu Sans Bold, which Matplotlib ships,
textured, rotated, scaled and occluding one another on textured backgrounds. Each character is one
class. The same options give the same bytes, whatever the number of worker processes: every image
has a random generator of its own, seeded by (seed, split, image id).

Classes have the indices 0..K-1 here and the ids 1..K in the files.
"""

from balms_det.synthetic.class_counts import (
    balanced_counts,
    exponential_curve,
    long_tail_counts,
    lvis_v1_curve,
    zipf_curve,
)
from balms_det.synthetic.dataset import annotation_path, generate
from balms_det.synthetic.glyphs import MAX_CLASSES, class_name, glyph_characters
from balms_det.synthetic.options import GlyphOptions

__all__ = [
    "MAX_CLASSES",
    "GlyphOptions",
    "annotation_path",
    "balanced_counts",
    "class_name",
    "exponential_curve",
    "generate",
    "glyph_characters",
    "long_tail_counts",
    "lvis_v1_curve",
    "zipf_curve",
]

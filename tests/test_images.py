"""Images of every pixel format are read as Pillow decodes them."""

import numpy as np
import pytest
from PIL import ExifTags, Image

from balms_det.data import read_image
from balms_det.runtime.errors import InputError

HEIGHT, WIDTH = 12, 20
GENERATOR = np.random.default_rng(0)
COLOR = GENERATOR.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY = COLOR[..., 0]


def as_color(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def palette():
    return Image.fromarray(COLOR).quantize(16)


# Name -> (image, suffix, the RGB pixels that are expected). Only lossless formats.
FORMATS = {
    "RGB": (Image.fromarray(COLOR), "png", COLOR),
    "grey": (Image.fromarray(GREY), "png", as_color(GREY)),
    "black and white": (
        Image.fromarray(GREY > 127),
        "png",
        as_color(np.where(GREY > 127, 255, 0).astype(np.uint8)),
    ),
    "palette": (palette(), "png", np.asarray(palette().convert("RGB"))),
    "RGBA": (Image.fromarray(np.dstack([COLOR, GREY])), "png", COLOR),
    "grey with alpha": (Image.fromarray(COLOR[..., :2], mode="LA"), "png", as_color(GREY)),
    "16 bits, png": (Image.fromarray(GREY.astype(np.uint16) * 256 + 200), "png", as_color(GREY)),
    "16 bits, tiff": (Image.fromarray(GREY.astype(np.uint16) * 256 + 3), "tiff", as_color(GREY)),
    "CMYK": (
        Image.fromarray(COLOR).convert("CMYK"),
        "tiff",
        np.asarray(Image.fromarray(COLOR).convert("CMYK").convert("RGB")),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_pixels_are_those_of_the_image(tmp_path, name, order):
    image, suffix, expected = FORMATS[name]
    path = str(tmp_path / f"image.{suffix}")
    image.save(path)
    read = read_image(path, order)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read if order == "RGB" else read[..., ::-1], expected)


@pytest.mark.parametrize("name", ["RGB", "16 bits, png"])
def test_images_are_turned_as_their_exif_data_says(tmp_path, name):
    image, suffix, expected = FORMATS[name]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the camera was turned to the left
    image.save(tmp_path / "turned.png", exif=exif)
    read = read_image(str(tmp_path / "turned.png"), "RGB")
    np.testing.assert_array_equal(read, np.rot90(expected, -1))


def test_what_cannot_be_read_is_named(tmp_path):
    whole = tmp_path / "whole.png"
    Image.fromarray(COLOR).save(whole)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:-40])
    floats = tmp_path / "floats.tiff"
    Image.fromarray(GREY.astype(np.float32)).save(floats)
    for path, reason in (
        (cut, "the image cannot be read"),
        (floats, "floating-point numbers"),
        (tmp_path / "none.png", "there is no such image"),
    ):
        with pytest.raises(InputError, match=f"{path}: .*{reason}"):
            read_image(str(path), "RGB")


def test_an_image_of_200_megapixels_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (20_000, 10_000)).save(path)
    with pytest.raises(InputError, match=f"{path}: the image cannot be read .*decompression bomb"):
        read_image(str(path), "RGB")

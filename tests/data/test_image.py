"""Reading image files: every kind becomes (H, W, 3) uint8, and a file that cannot is named."""

import cv2
import numpy as np
import pytest
from PIL import Image

import sam_d2  # noqa: F401
from detectron2.data import detection_utils
from sam_d2.data.image import image_array, read_image
from sam_d2.errors import UserError

# Two pixels: red-ish and blue-ish, all six values different.
COLOURS = np.array([[[200, 20, 30], [1, 2, 250]]], dtype=np.uint8)


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def save(image, path):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)
    return path


def test_rgb_and_bgr(tmp_path):
    file = save(COLOURS, tmp_path / "a.png")
    assert read_image(file).tolist() == [[[200, 20, 30], [1, 2, 250]]]
    bgr = read_image(str(file), "BGR")
    assert bgr.tolist() == [[[30, 20, 200], [250, 2, 1]]]
    assert bgr.flags.c_contiguous and bgr.dtype == np.uint8


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"'YUV'.*RGB or BGR"):
        read_image(save(COLOURS, tmp_path / "a.png"), "YUV")


def test_grey_becomes_three_equal_channels(tmp_path):
    file = save(np.array([[0, 7], [128, 255]], dtype=np.uint8), tmp_path / "a.png")
    assert read_image(file).tolist() == [[[0] * 3, [7] * 3], [[128] * 3, [255] * 3]]


def test_one_bit_becomes_black_and_white(tmp_path):
    file = save(Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1"), tmp_path / "a.png")
    assert read_image(file).tolist() == [[[0] * 3, [255] * 3]]


def test_palette_becomes_its_colours(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert read_image(save(image, tmp_path / "a.png")).tolist() == [[[10, 20, 30], [40, 50, 60]]]


@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_alpha_is_dropped_and_not_blended(tmp_path, alpha):
    rgba = np.dstack([COLOURS, np.full((1, 2), alpha, dtype=np.uint8)])
    assert read_image(save(rgba, tmp_path / "a.png")).tolist() == COLOURS.tolist()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # 255 / 2000 x (0, 100, 400, 2000) = (0, 12.75, 51, 255)
        ([0, 100, 400, 2000], [0, 13, 51, 255]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        # the maximum itself is the scale, also for one that fits into 8 bits: 255 / 51 = 5
        ([0, 1, 10, 51], [0, 5, 50, 255]),
    ],
)
def test_sixteen_bit_is_scaled_by_its_maximum(tmp_path, values, expected):
    for name in ("a.png", "a.tif"):
        file = save(np.array([values], dtype=np.uint16), tmp_path / name)
        assert read_image(file).tolist() == [[[value] * 3 for value in expected]]


@pytest.mark.parametrize("bands", [3, 4])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_colours_of_sixteen_bits_have_one_scale(tmp_path, kind, bands):
    """As sensors of 12 bits have them: Pillow would keep the upper 8 of 16, and show them black."""
    file = tmp_path / f"a.{kind}"
    values = np.array([[[0, 100, 400], [2000, 1000, 0]]], dtype=np.uint16)
    alpha = np.full((1, 2, bands - 3), 4000, dtype=np.uint16)  # is dropped before the maximum is looked for
    cv2.imwrite(str(file), np.concatenate([values[:, :, ::-1], alpha], axis=2))
    expected = [[[0, 13, 51], [255, 128, 0]]]  # 255 / 2000 x (100, 400, 1000) = (12.75, 51, 127.5)
    assert read_image(file).tolist() == expected
    with Image.open(file) as opened:
        assert image_array(opened, "BGR").tolist() == [[pixel[::-1] for pixel in expected[0]]]
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(UserError, match=rf"a\.{kind}: not a readable image"):
        read_image(file)


def test_they_are_turned_too(tmp_path):
    cv2.imwrite(str(tmp_path / "a.tif"), np.array([[[0, 0, 0], [0, 0, 1000]]], dtype=np.uint16))
    with Image.open(tmp_path / "a.tif") as image:
        image.getexif()[0x0112] = 3  # by 180 degrees
        assert image_array(image).tolist() == [[[255, 0, 0], [0, 0, 0]]]


def test_a_large_image_is_made_rgb_in_parts(tmp_path, noise, monkeypatch):
    palette = Image.fromarray(noise).convert("P")
    whole = image_array(palette)
    monkeypatch.setattr("sam_d2.data.image._PIXELS_AT_ONCE", 60 * 7)  # of 40 rows: 5 parts of 7, and 5 rows
    np.testing.assert_array_equal(image_array(palette), whole)
    np.testing.assert_array_equal(image_array(Image.fromarray(noise)), noise)


def test_all_of_a_tall_image_has_one_scale(tmp_path):
    values = np.zeros((600, 2), dtype=np.uint16)
    values[[0, 300, 599], 1] = [100, 400, 2000]  # as above; the maximum is in the last rows
    read = read_image(save(values, tmp_path / "a.png"))[:, :, 0]
    assert read[[0, 300, 599], 1].tolist() == [13, 51, 255] and read.sum() == 13 + 51 + 255


def test_float_and_wide_integers(tmp_path):
    # NaN and negative values count as 0; 255 / 0.5 x 0.1 = 51
    floats = np.array([[np.nan, -3, 0.1, 0.5]], dtype=np.float32)
    assert read_image(save(floats, tmp_path / "f.tif"))[0, :, 0].tolist() == [0, 0, 51, 255]
    wide = np.array([[0, 70_000, 350_000]], dtype=np.int32)
    assert read_image(save(wide, tmp_path / "i.tif"))[0, :, 2].tolist() == [0, 51, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_exif_orientation_is_applied_as_detectron2_does(tmp_path, noise, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"a.{kind}"
    Image.fromarray(noise).save(file, exif=exif)
    image = read_image(file)
    assert image.shape == ((40, 60, 3) if orientation < 5 else (60, 40, 3))
    np.testing.assert_array_equal(image, detection_utils.read_image(str(file), "RGB"))
    if kind == "png" and orientation == 6:  # the camera lay on its side: turned clockwise by 90 degrees
        np.testing.assert_array_equal(image, np.rot90(noise, -1))


def test_wide_values_are_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # by 180 degrees
    Image.fromarray(np.array([[0, 1000]], dtype=np.uint16)).save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [255, 0]


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.png: no such image file"):
        read_image(tmp_path / "nothing.png")


def test_folder_and_text_with_the_name_of_an_image(tmp_path):
    (tmp_path / "text.png").write_text("not found")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    for name in ("text", "empty", "folder"):
        with pytest.raises(UserError, match=rf"{name}\.png: not a readable image .*Replace the file or leave it out"):
            read_image(tmp_path / f"{name}.png")


@pytest.mark.parametrize("kind", ["png", "jpg", "tif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_an_error_and_not_half_an_image(tmp_path, noise, kind, share):
    whole = save(noise, tmp_path / f"whole.{kind}").read_bytes()
    file = tmp_path / f"cut.{kind}"
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=rf"cut\.{kind}: not a readable image"):
        read_image(file)


def test_too_many_pixels(tmp_path, noise, monkeypatch):
    file = save(noise, tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match=r"a\.png: .*2400 pixels"):
        read_image(file)

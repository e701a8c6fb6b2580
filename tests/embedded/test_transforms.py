import numpy as np
import pytest

from detectron2.data import transforms as T


@pytest.fixture
def image():
    return np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def test_resize_scales_each_axis_of_coordinates_and_boxes():
    # 4 x 6 to 8 x 3: y doubles, x halves
    resize = T.ResizeTransform(4, 6, 8, 3)
    np.testing.assert_allclose(resize.apply_coords(np.array([[2.0, 1.0], [6.0, 4.0]])), [[1, 2], [3, 8]])
    np.testing.assert_allclose(resize.apply_box(np.array([[2.0, 1.0, 6.0, 4.0]])), [[1, 2, 3, 8]])
    np.testing.assert_allclose(resize.apply_polygons([np.array([[4.0, 3.0]])])[0], [[2, 6]])


def test_resize_bilinear_doubles_a_gradient():
    # Output pixel centres lie at -0.25, 0.25, 0.75, 1.25 input pixels: 0, 25, 75, 100, with PIL and torch alike.
    row = np.array([[0, 100]], dtype=np.uint8)
    resize = T.ResizeTransform(1, 2, 1, 4)
    np.testing.assert_array_equal(resize.apply_image(row), [[0, 25, 75, 100]])
    np.testing.assert_allclose(resize.apply_image(row.astype(np.float32)), [[0, 25, 75, 100]])


def test_resize_of_labels_takes_the_nearest_and_invents_none():
    labels = np.array([[1, 7]], dtype=np.uint8)
    np.testing.assert_array_equal(T.ResizeTransform(1, 2, 2, 4).apply_segmentation(labels), [[1, 1, 7, 7]] * 2)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(shape, dtype) for shape in [(4, 6), (4, 6, 1), (4, 6, 3)] for dtype in (np.uint8, np.float32)]
    + [((4, 6, 2, 3), np.float32)],  # PIL has no images of four axes
)
def test_resize_keeps_channels(shape, dtype):
    resized = T.ResizeTransform(4, 6, 5, 9).apply_image(np.ones(shape, dtype))
    assert resized.shape == (5, 9, *shape[2:])
    assert resized.dtype == dtype
    assert (resized == 1).all()


def test_resize_takes_flipped_views_and_refuses_other_sizes(image):
    resize = T.ResizeTransform(4, 6, 4, 6)
    flipped = image.astype(np.float32)[:, ::-1]
    np.testing.assert_array_equal(resize.apply_image(flipped), flipped)
    with pytest.raises(AssertionError):
        resize.apply_image(image[:3])


def test_resize_inverse_restores_coordinates():
    resize = T.ResizeTransform(4, 6, 11, 13)
    coords = np.array([[0.5, 3.25], [6.0, 4.0]])
    np.testing.assert_allclose(resize.inverse().apply_coords(resize.apply_coords(coords.copy())), coords)


def test_extent_cuts_out_and_scales(image):
    # The rectangle x 2-6, y 0-4 at its own size is a crop.
    extent = T.ExtentTransform((2, 0, 6, 4), (4, 4))
    np.testing.assert_array_equal(extent.apply_image(image), image[:, 2:])
    # (3, 1) lies (1, 1) into it; at half size at (0.5, 0.5).
    half = T.ExtentTransform((2, 0, 6, 4), (2, 2))
    np.testing.assert_allclose(half.apply_coords(np.array([[3.0, 1.0]])), [[0.5, 0.5]])


def test_extent_outside_of_the_image_is_black():
    result = T.ExtentTransform((-2, 0, 2, 2), (2, 4), fill=9).apply_image(np.full((2, 2, 1), 200, np.uint8))
    np.testing.assert_array_equal(result[:, :, 0], [[0, 0, 200, 200]] * 2)


def test_rotation_by_90_degrees_is_rot90(image):
    rotation = T.RotationTransform(4, 6, 90)
    np.testing.assert_array_equal(rotation.apply_image(image), np.rot90(image))
    # The right edge's middle (6, 2) comes to the top edge's middle (2, 0).
    np.testing.assert_allclose(rotation.apply_coords([[6.0, 2.0], [0.0, 0.0]]), [[2, 0], [0, 6]], atol=1e-9)


def test_rotation_without_expand_keeps_the_canvas_and_the_centre():
    rotation = T.RotationTransform(4, 6, 30, expand=False)
    assert rotation.apply_image(np.zeros((4, 6, 3), np.uint8)).shape == (4, 6, 3)
    np.testing.assert_allclose(rotation.apply_coords([[3.0, 2.0]]), [[3, 2]])
    with pytest.raises(NotImplementedError):
        rotation.inverse()


def test_rotation_inverse_restores_coordinates():
    rotation = T.RotationTransform(100, 150, 27)
    coords = np.array([[10.0, 20.0], [140.0, 90.0], [75.0, 50.0]])
    back = T.TransformList([rotation, rotation.inverse()]).apply_coords(coords.copy())
    np.testing.assert_allclose(back, coords, atol=1)  # the crop is of whole pixels


def test_rotation_by_a_full_turn_or_of_nothing_changes_nothing(image):
    assert T.RotationTransform(4, 6, 360).apply_image(image) is image
    assert T.RotationTransform(4, 6, 30).apply_coords([]).shape == (0,)


def test_rotation_of_labels_invents_none():
    labels = np.where(np.arange(40)[None] < 20, 3, 200).astype(np.uint8).repeat(40, axis=0)
    assert set(np.unique(T.RotationTransform(40, 40, 20).apply_segmentation(labels))) == {0, 3, 200}


def test_colour_transforms_leave_geometry_alone(image):
    invert = T.ColorTransform(lambda x: 255 - x)
    coords = np.array([[1.0, 2.0]])
    np.testing.assert_array_equal(invert.apply_image(image), 255 - image)
    assert invert.apply_coords(coords) is coords
    assert invert.apply_segmentation(image) is image
    assert isinstance(invert.inverse(), T.NoOpTransform)
    pil = T.PILColorTransform(lambda x: x.convert("L"))
    assert pil.apply_image(image).shape == (4, 6)
    with pytest.raises(ValueError):
        T.PILColorTransform("no function")


def test_lists_apply_in_order_and_invert_in_reverse():
    steps = T.TransformList([T.HFlipTransform(6), T.ResizeTransform(4, 6, 8, 12)])
    # x = 1 flips to 5 and doubles to 10
    np.testing.assert_allclose(steps.apply_coords(np.array([[1.0, 1.0]])), [[10, 2]])
    np.testing.assert_allclose(steps.inverse().apply_coords(np.array([[10.0, 2.0]])), [[1, 1]])


def test_all_names_of_fvcore_are_there():
    import fvcore.transforms.transform as fvcore_transforms

    for name in fvcore_transforms.__all__:
        assert getattr(T, name) is getattr(fvcore_transforms, name)

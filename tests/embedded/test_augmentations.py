import numpy as np
import pytest

from detectron2.data import transforms as T

HEIGHT, WIDTH = 40, 60


@pytest.fixture
def image():
    return np.random.RandomState(0).randint(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def drawn(make, image, times=50, **fields):
    """Return the transforms that an augmentation chooses."""
    np.random.seed(0)
    return [make(T.AugInput(image, **fields)) for _ in range(times)]


@pytest.mark.parametrize(
    ("height", "width", "short", "longest", "expected"),
    [
        (480, 640, 800, 1333, (800, 1067)),  # 640 * 800 / 480 = 1066.67
        (480, 640, 800, 1000, (750, 1000)),  # 1066.67 is too long: both times 1000 / 1066.67
        (640, 480, 800, 1333, (1067, 800)),
        (100, 100, 50, 1333, (50, 50)),
        (1, 5, 2, 7, (1, 7)),  # 10 is too long: 2 * 0.7 = 1.4
        (3, 5, 2, 9, (2, 3)),  # 5 * 2 / 3 = 3.33
        (2, 3, 3, 99, (3, 5)),  # 4.5 rounds up
    ],
)
def test_shortest_edge_shapes(height, width, short, longest, expected):
    assert T.ResizeShortestEdge.get_output_shape(height, width, short, longest) == expected


def test_shortest_edge_draws_from_the_range_or_the_choices(image):
    in_range = {t.new_h for t in drawn(T.ResizeShortestEdge((10, 12)), image)}
    assert in_range == {10, 11, 12}
    chosen = {t.new_h for t in drawn(T.ResizeShortestEdge([10, 20, 30], sample_style="choice"), image)}
    assert chosen == {10, 20, 30}
    assert isinstance(T.ResizeShortestEdge(0).get_transform(image), T.NoOpTransform)
    with pytest.raises(AssertionError):
        T.ResizeShortestEdge([1, 2, 3])
    with pytest.raises(AssertionError):
        T.ResizeShortestEdge(3, sample_style="any")


def test_resize_to_fixed_and_to_listed_sizes(image):
    assert T.Resize(20).get_transform(image).apply_image(image).shape == (20, 20, 3)
    assert T.Resize((20, 30)).get_transform(image).apply_image(image).shape == (20, 30, 3)
    sizes = {(t.new_h, t.new_w) for t in drawn(T.RandomResize([(5, 6), (7, 8)]), image)}
    assert sizes == {(5, 6), (7, 8)}


def test_resize_scale_fits_into_the_scaled_target(image):
    # Scale 1 and target 80 x 80: the width decides, 80 / 60 = 4/3, and the height is 40 * 4/3 = 53.3.
    chosen = T.ResizeScale(1.0, 1.0, 80, 80).get_transform(image)
    assert (chosen.new_h, chosen.new_w) == (53, 80)


def test_flip_probability_and_direction(image):
    flips = drawn(T.RandomFlip(0.25), image, times=400)
    assert 70 <= sum(isinstance(t, T.HFlipTransform) for t in flips) <= 130
    vertical = T.RandomFlip(1.0, horizontal=False, vertical=True).get_transform(image)
    np.testing.assert_array_equal(vertical.apply_image(image), image[::-1])
    for both in (True, False):
        with pytest.raises(ValueError):
            T.RandomFlip(horizontal=both, vertical=both)


def test_random_apply(image):
    always, never = T.RandomApply(T.HFlipTransform(WIDTH), 1.0), T.RandomApply(T.HFlipTransform(WIDTH), 0.0)
    assert isinstance(always(T.AugInput(image)), T.HFlipTransform)
    assert isinstance(never(T.AugInput(image)), T.NoOpTransform)
    assert isinstance(always.get_transform(image), T.HFlipTransform)
    with pytest.raises(AssertionError):
        T.RandomApply(T.HFlipTransform(WIDTH), 1.5)


@pytest.mark.parametrize(
    ("kind", "size", "heights", "widths"),
    [
        ("relative", (0.5, 0.25), {20}, {15}),
        ("relative_range", (0.5, 0.9), range(20, 41), range(54, 61)),
        ("absolute", (10, 100), {10}, {60}),
        ("absolute_range", (30, 50), range(30, 41), range(30, 51)),
    ],
)
def test_crop_sizes_and_places(image, kind, size, heights, widths):
    crops = drawn(T.RandomCrop(kind, size), image)
    assert {c.h for c in crops} <= set(heights)
    assert {c.w for c in crops} <= set(widths)
    assert all(c.x0 >= 0 and c.y0 >= 0 and c.x0 + c.w <= WIDTH and c.y0 + c.h <= HEIGHT for c in crops)
    assert len({c.y0 for c in crops}) > 1


def test_crop_of_an_unknown_kind():
    with pytest.raises(AssertionError):
        T.RandomCrop("square", (1, 1))


def test_fixed_size_crop_cuts_and_pads(image):
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    data = T.AugInput(image, sem_seg=labels)
    T.FixedSizeCrop((50, 30), pad_value=7, seg_pad_value=9)(data)
    assert data.image.shape == (50, 30, 3)
    assert (data.image[HEIGHT:] == 7).all()
    assert (data.sem_seg[HEIGHT:] == 9).all() and (data.sem_seg[:HEIGHT] == 0).all()
    smaller = T.AugInput(image)
    T.FixedSizeCrop((50, 30), pad=False)(smaller)
    assert smaller.image.shape == (40, 30, 3)


def test_category_constraint_rejects_windows_of_one_label(image):
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:, 20:] = 1
    crops = drawn(T.RandomCrop_CategoryAreaConstraint("absolute", (10, 30), 0.7), image, sem_seg=labels)
    passed = sum(0.3 < (20 - c.x0) / 30 < 0.7 for c in crops)
    assert passed >= 46  # a window is in balance with a chance of 11/31; ten fail with one of 1 in 80
    free = drawn(T.RandomCrop("absolute", (10, 30)), image)
    assert sum(0.3 < (20 - c.x0) / 30 < 0.7 for c in free) < 30


def test_random_extent_size_follows_the_scale(image):
    chosen = T.RandomExtent((0.5, 0.5), (0, 0)).get_transform(image)
    assert chosen.output_size == (20, 30)
    np.testing.assert_allclose(chosen.src_rect, [15, 10, 45, 30])  # in the middle


def test_rotation_draws_angle_and_centre(image):
    angles = {t.angle for t in drawn(T.RandomRotation([10, 20], sample_style="choice"), image)}
    assert angles == {10, 20}
    assert isinstance(T.RandomRotation(360).get_transform(image), T.NoOpTransform)
    rotation = T.RandomRotation(5.0, expand=False, center=(0.5, 0.25)).get_transform(image)
    assert rotation.center == (30, 10)  # of the 60 x 40 image


def test_blends(image):
    np.testing.assert_array_equal(T.RandomBrightness(0, 0).get_transform(image).apply_image(image), 0)
    grey = T.RandomContrast(0, 0).get_transform(image).apply_image(image)
    np.testing.assert_array_equal(grey, int(image.mean()))
    unsaturated = T.RandomSaturation(0, 0).get_transform(image).apply_image(image)
    luma = (image @ [0.299, 0.587, 0.114]).astype(np.uint8)
    np.testing.assert_allclose(unsaturated, luma[:, :, None].repeat(3, axis=2), atol=1)  # it is cut in float32
    for same in (T.RandomBrightness(1, 1), T.RandomContrast(1, 1), T.RandomLighting(0)):
        np.testing.assert_array_equal(same.get_transform(image).apply_image(image), image)
    for needs_colour in (T.RandomSaturation(1, 1), T.RandomLighting(1)):
        with pytest.raises(AssertionError):
            needs_colour.get_transform(image[:, :, :1])


def test_min_iou_crop_keeps_a_centre(image):
    boxes = np.array([[30, 20, 58, 38]], np.float32)
    crops = drawn(T.MinIoURandomCrop(), image, boxes=boxes)
    windows = [c for c in crops if isinstance(c, T.CropTransform)]
    assert 0 < len(windows) < 50
    for c in windows:
        assert c.x0 < 44 < c.x0 + c.w + 1 and c.y0 < 29 < c.y0 + c.h + 1  # the centre is (44, 29)
    assert isinstance(T.MinIoURandomCrop().get_transform(image, None), T.NoOpTransform)


def test_list_applies_each_to_the_result_of_the_one_before(image):
    boxes = np.array([[0.0, 0.0, 30.0, 20.0]])
    data = T.AugInput(image, boxes=boxes)
    augmentations = T.AugmentationList([T.Resize((20, 30)), T.RandomCrop("relative", (0.5, 1.0)), T.HFlipTransform(30)])
    transforms = augmentations(data)
    assert data.image.shape == (10, 30, 3)
    assert len(transforms) == 3
    # Halved to 15 x 10, moved up by the crop, flipped to x 15-30.
    top = transforms[1].y0
    np.testing.assert_allclose(data.boxes, [[15, -top, 30, 10 - top]])
    np.testing.assert_array_equal(transforms.apply_image(image), data.image)


def test_inputs_are_found_by_argument_name(image):
    class UsesBoxes(T.Augmentation):
        def get_transform(self, boxes, image):
            assert boxes.shape == (1, 4) and image.shape == (HEIGHT, WIDTH, 3)
            return T.NoOpTransform()

    class UsesDepth(T.Augmentation):
        def get_transform(self, image, depth):
            return T.NoOpTransform()

    class UsesAnything(T.Augmentation):
        def get_transform(self, image, *others):
            return T.NoOpTransform()

    class ReturnsNothing(T.Augmentation):
        def get_transform(self, picture):
            assert picture.shape == (HEIGHT, WIDTH, 3)

    data = T.AugInput(image, boxes=np.zeros((1, 4)))
    UsesBoxes()(data)
    with pytest.raises(AttributeError, match="depth"):
        UsesDepth()(data)
    with pytest.raises(TypeError):
        UsesAnything()(data)
    with pytest.raises(AssertionError, match="must return an instance of Transform"):
        ReturnsNothing()(data)


def test_own_augmentation_in_the_style_of_the_tutorial(image):
    class Shift(T.Augmentation):
        def __init__(self, ratio, name="shift"):
            self._init(locals())

        def get_transform(self, image):
            return T.CropTransform(0, 0, int(self._rand_range(self.ratio, self.ratio) * image.shape[1]), 5)

    assert repr(Shift(0.5)) == "Shift(ratio=0.5)"
    assert repr(T.ResizeShortestEdge(10, 20)) == "ResizeShortestEdge(short_edge_length=(10, 10), max_size=20)"
    assert str(T.AugmentationList([T.RandomFlip(), T.HFlipTransform(3)])) == (
        "AugmentationList[RandomFlip(), HFlipTransform(width=3)]"
    )
    result, transforms = T.apply_augmentations([Shift(0.5)], image)
    assert result.shape == (5, 30, 3)
    assert len(transforms) == 1


@pytest.mark.parametrize("wrong", [[[1, 2]], np.zeros(3), np.zeros((1, 2, 3, 4))])
def test_input_refuses_what_is_no_image(wrong):
    with pytest.raises(AssertionError):
        T.AugInput(wrong)

"""Every kind of finding: what it is called, and whether a mended copy can be free of it."""

from __future__ import annotations

from typing import Literal, NamedTuple

Severity = Literal["error", "warning"]


class Kind(NamedTuple):
    """A kind of finding.

    Attributes:
        severity: ``error`` where it cannot be interpreted, ``warning`` where it can be used.
        title: what is wrong, in words.
        mended: what ``--fix`` writes; "" where there is no one right answer.
    """

    severity: Severity
    title: str
    mended: str = ""


KINDS: dict[str, Kind] = {
    # the document
    "file-unreadable": Kind("error", "the file cannot be opened"),
    "file-empty": Kind("error", "the file is empty"),
    "encoding": Kind("error", "the file is not UTF-8"),
    "not-json": Kind("error", "the file is not JSON"),
    "cut-off": Kind("error", "the file is cut off"),
    "wrong-form": Kind("error", "the file is no dataset"),
    "not-strict-json": Kind("warning", "a value is no JSON"),
    "key-twice": Kind("warning", "a key of the file is there twice"),
    "missing-key": Kind(
        "error", "a key is missing", "annotation id: a new one; box: the mask's; image size: the file's"
    ),
    "wrong-type": Kind(
        "error",
        "a value is of the wrong type, or out of range",
        '7.0 or "7": 7; other annotation ids: new ones; box, area: the mask\'s; polygon not in a list: put into one; '
        "image size: the file's",
    ),
    # ids and names
    "no-images": Kind("error", "there are no images"),
    "no-categories": Kind("error", "there are no categories"),
    "image-id-twice": Kind("error", "an image id is used twice", "one of records that are the same in all"),
    "annotation-id-twice": Kind("error", "an annotation id is used twice", "all but the first get new ids"),
    "category-id-twice": Kind("error", "a category id is used twice", "one of records that are the same in all"),
    "unknown-image": Kind("error", "an annotation is of an image that is not there"),
    "unknown-category": Kind("error", "an annotation is of a category that is not there"),
    "category-ids-shifted": Kind("error", "all category ids are one off"),
    "category-name-twice": Kind("warning", "a category's name is used twice"),
    "category-unused": Kind("warning", "a category has no annotation"),
    "category-zero-unused": Kind("warning", "category 0 is an exporter's parent of the others"),
    "class-zero-unused": Kind("warning", "class indices begin at 1"),
    "annotation-id-zero": Kind("warning", "an annotation has the id 0", "a new id"),
    "id-above-32-bits": Kind("warning", "an id does not fit into 32 bits"),
    "file-name-twice": Kind("warning", "two images have one file name"),
    "annotation-twice": Kind(
        "warning", "an annotation is there twice", "the first of those that differ in their id alone"
    ),
    # masks
    "no-masks": Kind("error", "no annotation has a mask"),
    "mask-absent": Kind("warning", "an annotation has no mask"),
    "mask-empty": Kind("warning", "a mask has no pixel, or no area"),
    "polygon-odd": Kind("error", "a polygon has an odd count of numbers"),
    "polygon-nan": Kind("error", "a polygon has NaN or infinity"),
    "polygon-far": Kind("error", "a polygon has coordinates beyond a million pixels"),
    "polygon-long": Kind(
        "error", "outlines are longer than their image has room for", "what lies inside, where that has room"
    ),
    "polygon-short": Kind("warning", "a polygon has fewer than 3 points", "the polygon is left out"),
    "polygon-outside": Kind("warning", "a polygon reaches outside of its image", "what lies inside"),
    "polygon-all-outside": Kind("warning", "polygons lie outside of their image"),
    "polygon-crossing": Kind("warning", "an outline crosses itself"),
    "polygon-unchecked": Kind("warning", "an outline is too intricate to look for crossings"),
    "rle-size": Kind("error", "an RLE has another size than its image"),
    "rle-counts": Kind("error", "the counts of an RLE do not sum to its size"),
    # boxes, areas, crowd regions
    "box-nan": Kind("error", "a box has NaN or infinity", "the mask's bounds"),
    "box-form": Kind(
        "warning", "a box is XYXY where XYWH is expected, or the reverse", "the numbers of the right form"
    ),
    "box-form-likely": Kind("warning", "boxes may be XYXY where XYWH is expected"),
    "box-empty": Kind("warning", "a box has no area", "the mask's bounds"),
    "box-and-mask-empty": Kind("warning", "neither box nor mask has an area"),
    "box-outside": Kind("warning", "a box reaches outside of its image", "the part inside"),
    "box-all-outside": Kind("warning", "a box lies outside of its image"),
    "box-far": Kind("warning", "a box is far from its mask"),
    "iscrowd-absent": Kind("warning", "an annotation has no iscrowd", "0"),
    "area-absent": Kind("warning", "an annotation has no area", "the mask's"),
    "area-negative": Kind("warning", "an area is negative", "the mask's"),
    "area-nan": Kind("error", "an area is NaN or infinite", "the mask's"),
    "area-of-box": Kind("warning", "an area is that of the box", "the mask's"),
    "area-differs": Kind("warning", "an area is not that of the mask", "the mask's"),
    "coordinates-normalised": Kind("warning", "coordinates may be fractions of the image, not pixels"),
    # images
    "image-missing": Kind("error", "images are missing"),
    "path-leaves-root": Kind("error", "a path leaves the image folder"),
    "image-unreadable": Kind("error", "an image cannot be read"),
    "image-truncated": Kind("error", "an image is cut off"),
    "image-size": Kind(
        "error", "an image is of another size than the file says", "the image's, where all annotations fit it alone"
    ),
    "image-too-large": Kind("warning", "an image has more pixels than Pillow's limit"),
    "image-refused": Kind("error", "an image has more pixels than can be read"),
    "image-exif": Kind("warning", "an image is turned by its EXIF orientation"),
    "image-alpha": Kind("warning", "an image has an alpha channel"),
    "image-16-bit": Kind("warning", "an image has more than 8 bits"),
    "image-grey": Kind("warning", "an image is grey"),
    "image-twice": Kind("warning", "two images have the same pixels"),
    # the dataset
    "image-in-both": Kind("warning", "an image is in two splits, such as train and test"),
    "classes-differ": Kind("error", "the files have different classes"),
    "class-not-trained": Kind("warning", "a class is tested and not trained"),
    "no-annotations": Kind("warning", "there are no annotations"),
    "all-crowd": Kind("warning", "all annotations are crowd regions"),
    "foreign-value": Kind("warning", "a domain or a provenance is of another form, and ignored"),
    "class-imbalance": Kind("warning", "some classes have a hundredth of another's instances"),
    "many-instances": Kind("warning", "an image has more than 100 instances"),
}
"""By name, in the order of the documentation."""

"""Results that are known beforehand."""

import pytest

from sam_d2.errors import UserError
from sam_d2.evaluation.expected import check_expected, published_results

FOUND = {"bbox": {"AP": 42.95}, "segm": {"AP": 38.6}}


def test_published_ap_belongs_to_a_file_and_to_coco():
    rows = published_results("somewhere/model_final_a3ec72.pkl", "coco_2017_val")
    # three decimals are exact but for kernels; one decimal may be rounded by 0.05 as well
    assert rows == [("bbox", "AP", 42.932, 0.05), ("segm", "AP", 38.634, 0.05)]
    check_expected(rows, FOUND)
    assert published_results("model_final_f10217.pkl", "coco_2017_val")[1] == ("segm", "AP", 37.2, 0.1)
    assert published_results("model_final_a3ec72.pkl", "nuts_test") == []
    assert published_results("R-50.pkl", "coco_2017_val") == published_results("x.pth", "coco_2017_val") == []


def test_off_by_more_than_the_tolerance_ends_the_program(caplog):
    with pytest.raises(SystemExit) as caught:
        check_expected([["segm", "AP", 38.8, 0.1]], FOUND)
    assert caught.value.code == 1


def test_nothing_is_expected_by_default_and_outside_of_the_main_process():
    check_expected([], FOUND)
    check_expected([["segm", "AP", 1, 0]], {})


@pytest.mark.parametrize("row", [["segm", "AP", 1], ["keypoints", "AP", 1, 1], ["segm", "AP", "x", 1]])
def test_rows_of_another_form(row):
    with pytest.raises(UserError, match=r"train.expected_results: .* is not \[task, metric, value, tolerance\]"):
        check_expected([row], FOUND)

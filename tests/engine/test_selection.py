"""Which checkpoints hold weights that scores on the run's test images have chosen."""

import pytest
import yaml

from sam_d2.engine.checkpoint import RECORD
from sam_d2.engine.selection import selected_on


def saved(iteration, patience=None, **keys):
    config = {
        "train": {"max_iter": 6, "early_stop": {"patience": patience}},
        "dataloader": {"test": {"dataset": {"names": "cells_test"}}},
    }
    return {"iteration": iteration, RECORD: {"config": yaml.safe_dump(config)}, **keys}


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("run/model_best.pth", saved(1, best={"segm/AP": 50.0}), "cells_test"),
        ("run/renamed.pth", saved(1, best={"segm/AP": 50.0}), "cells_test"),
        ("run/model_final.pth", saved(3, patience=1), "cells_test"),  # step 4 of 6
        ("run/model_final.pth", saved(5, patience=1), ""),  # step 6 of 6: it ended by itself
        ("run/model_0000003.pth", saved(3, patience=1), ""),  # a step like any other
        ("run/model_final.pth", saved(3), ""),
        ("sam_vit_b.pth", {}, ""),
        ("run/model_best.pth", {"best": {"segm/AP": 50.0}}, ""),  # by what it was chosen is not known
    ],
)
def test_selected_on(file, content, expected):
    assert selected_on(file, content) == expected

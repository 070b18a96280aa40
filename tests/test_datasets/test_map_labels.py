"""Label maps renumbered where there are some: in inference there are none."""

import numpy as np
import pytest

pytest.importorskip("mmcv")

from vig_mm.datasets.transforms import MapLabels


def test_inference_has_no_label_map():
    results = dict(img=np.zeros((2, 2, 3)))
    assert MapLabels({255: 1})(results) is results and set(results) == {"img"}


def test_label_map_that_is_not_loaded_yet():
    with pytest.raises(ValueError, match="put it behind"):
        MapLabels({255: 1})(dict(img=np.zeros((2, 2, 3)), seg_map_path="a.png"))

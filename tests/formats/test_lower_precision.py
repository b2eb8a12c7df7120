"""What exports in lower precisions share: the advice of their message, and the calibration images."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from rtdetr_tool.catalog import LAYOUTS
from rtdetr_tool.data.pixels import RGB
from rtdetr_tool.formats.lower_precision import CalibrationFeeds, remedy
from rtdetr_tool.formats.table import FORMATS
from rtdetr_tool.spec import ExportSpec

CALIBRATE = "Calibrate on images like those of the task"


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("openvino", "INT8", f"{CALIBRATE}, use FP16, or raise max_cost."),
        ("openvino", "BF16", "Use FP16, or raise max_cost."),
        ("tflite", "FP16", "Use FP32, or raise max_cost."),
        ("executorch", "INT8", f"{CALIBRATE}, use FP32, or raise max_cost."),
        ("coreml", "FP16", "Use FP32, or raise max_cost."),
        ("mnn", "INT8", "Use FP16, or raise max_cost."),
    ],
)
def test_the_advice_is_what_the_format_has(name, precision, expected):
    assert remedy(FORMATS[name], getattr(ExportSpec(), name), precision) == expected


def test_images_that_fill_the_last_batch_do_not_count():
    images = np.random.default_rng(0).integers(0, 255, (5, 3, 8, 8), dtype=np.uint8)
    feeds = CalibrationFeeds(
        SimpleNamespace(
            section=ExportSpec(), format=FORMATS["tflite"], batch=2, calibration=images, dataset=None, size=(8, 8),
            pixels=RGB, model=SimpleNamespace(layout=LAYOUTS["tao"]),
        )
    )  # fmt: skip
    batches = list(feeds)
    assert [batch.shape for batch in batches] == [(2, 3, 8, 8)] * 3 and feeds.images == 5
    np.testing.assert_array_equal(batches[2][1], batches[2][0])
    np.testing.assert_allclose(batches[2][0], images[4] / 255, atol=1e-6)

"""Write tests/formats/tiny.tflite, a detector without weights, with litert-torch; needs the extra `tflite`.

    python tests/formats/tiny_tflite.py

The default tests run the file with the interpreter, which works next to every PyTorch; the converter does not.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FILE = Path(__file__).with_name("tiny.tflite")
SIZE, CHANNELS = (64, 96), 4


class Tiny(nn.Module):
    """One query per 32 x 32 pixels: the mean of each channel is the logit of a class and a coordinate of the box."""

    input_name, output_names = "inputs", ("pred_logits", "pred_boxes")
    detector = SimpleNamespace(num_channels=CHANNELS)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        means = F.avg_pool2d(images, 32).flatten(2).mT
        return means[..., :3] * 4 - 2, means


def main() -> None:
    from rtdetr_tool.formats.description import describe
    from rtdetr_tool.formats.tflite.convert import convert
    from rtdetr_tool.formats.tflite.file import append_description
    from rtdetr_tool.spec import spec_from_dict, spec_to_dict

    model = {"num_channels": CHANNELS, "num_queries": 6, "num_select": 6}
    spec = spec_to_dict(spec_from_dict({"model": model, "dataset": {"num_classes": 3}}, None))
    classes = [{"index": index, "id": index + 1, "name": name} for index, name in enumerate(("cat", "dog", "cow"))]
    meta = {"version": "test", "classes": classes, "spec": {name: spec[name] for name in ("model", "dataset")}}
    FILE.write_bytes(convert(Tiny().eval(), SIZE, 2))
    append_description(FILE, describe(meta, SIZE, "tiny"))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()

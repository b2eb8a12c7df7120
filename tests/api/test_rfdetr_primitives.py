"""What callbacks and loops get from `RFDETRModule`, as in Roboflow's package."""

from __future__ import annotations

import json
import shutil

from pytorch_lightning.callbacks import Callback

import rtdetr_tool.rfdetr as names
from rtdetr_tool.ops.structures import Detections, Target
from tests.api.small import SIDE, SMALL_RFDETR, Sample


class Collect(Callback):
    def __init__(self) -> None:
        self.outputs: list = []

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        self.outputs.append(outputs)


def test_validation_gives_results_and_targets_and_prediction_dictionaries(tmp_path):
    sample = Sample(tmp_path / "sample")
    for split in ("train", "valid"):
        shutil.copytree(sample.images, tmp_path / "data" / split)
        (tmp_path / "data" / split / "_annotations.coco.json").write_text(json.dumps(sample.coco))
    fields = {name: value for name, value in SMALL_RFDETR.items() if name != "dim_feedforward"}
    model = names.RFDETRNanoConfig(pretrain_weights=None, num_classes=2, device="cpu", **fields)
    train = names.TrainConfig(dataset_dir=str(tmp_path / "data"), output_dir=str(tmp_path / "output"), batch_size=4,
                              num_workers=0, tensorboard=False)  # fmt: skip
    module, datamodule = names.RFDETRModule(model, train), names.RFDETRDataModule(model, train)
    collect = Collect()
    trainer = names.build_trainer(train, model, accelerator="cpu", logger=False, callbacks=[collect])
    trainer.validate(module, datamodule, verbose=False)
    assert [set(output) for output in collect.outputs] == [{"results", "targets"}] * len(collect.outputs)
    results = [detections for output in collect.outputs for detections in output["results"]]
    targets = [target for output in collect.outputs for target in output["targets"]]
    assert len(results) == len(targets) == 6
    assert all(isinstance(row, Detections) for row in results) and all(isinstance(row, Target) for row in targets)
    batches = trainer.predict(module, datamodule.val_dataloader())
    rows = [row for batch in batches for row in batch]
    assert len(rows) == 6
    for row in rows:
        assert set(row) == {"scores", "labels", "boxes"} and len(row["scores"]) == len(row["boxes"]) > 0
        assert float(row["boxes"][:, 2].max()) <= SIDE + 1e-3  # pixels of the original image

"""Configuration files for DeepStream."""

import yaml

from rtdetr_tool.formats.onnx.deepstream import label_lines, write_side_files
from rtdetr_tool.ops.classes import ClassEntry, ClassMap


def test_the_configuration_follows_the_model(tmp_path):
    classes = ClassMap([ClassEntry(0, 1, "red cell"), ClassEntry(1, 2, "white cell")], 2)
    labels, config = write_side_files(tmp_path / "model.onnx", classes, (544, 960), True, 300, 0.4)
    assert labels.read_text() == "red cell\nwhite cell\n"
    result = yaml.safe_load(config.read_text())
    assert result["class-attrs-all"] == {"pre-cluster-threshold": 0.4, "topk": 300}
    assert result["property"] == {
        "gie-unique-id": 1,
        "onnx-file": "model.onnx",
        "labelfile-path": "labels.txt",
        "net-scale-factor": 0.00392156862745098,
        "offsets": "0;0;0",
        "infer-dims": "3;544;960",
        "model-color-format": 0,
        "network-type": 0,
        "network-mode": 0,
        "cluster-mode": 4,
        "num-detected-classes": 2,
        "maintain-aspect-ratio": 1,
        "symmetric-padding": 0,
        "output-blob-names": "pred_logits;pred_boxes",
        "output-tensor-meta": 1,
        "workspace-size": 1048576,
        "parse-bbox-func-name": "NvDsInferParseCustomDDETRTAO",
        "custom-lib-path": "/opt/nvidia/deepstream/deepstream/lib/libnvds_infercustomparser_tao.so",
    }
    assert config.read_text().startswith("class-attrs-all:"), "keys are sorted"


def test_every_output_has_a_line_also_those_without_a_class():
    classes = ClassMap([ClassEntry(1, 1, "cat"), ClassEntry(3, 3, "dog\nbig")], 4)
    assert label_lines(classes) == ["background", "cat", "unused_2", "dog big"]

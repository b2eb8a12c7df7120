"""The formats in which a detector runs: PyTorch, ONNX, TFLite and TensorRT, one package each, and shared parts.

In: a path and a `LoadedSpec`. Out: an `OpenedModel`, a `Runtime` (`predict(images) -> Predictions`) and its spec.

    table                            one row per format: suffixes, abilities, required packages (no torch)
    <format>/file                    `read`: the file and what it records (`base.FileModule`)
    <format>/runtime                 `build_runtime`: run the file (`base.RuntimeModule`)
    <format>/export                  `export`: write the file and verify it (`export_request.ExportModule`)
    opening                          open a file of any format: read it, resolve spec and classes, build the runtime
    resolve, requested_size          which value applies: the user's, the file's or the default
    detection_loop, batching         the one loop of evaluate and inference; batches of the sizes that a graph supports
    graph_file, graph_interface      a deployed file in memory; the names of its inputs and outputs
    export_model, description        the detector as exported, with or without top-k; the metadata of its file
    verification, comparison, images compare the detections of the file and of PyTorch on real images
    calibration, precision/          images for INT8; select the nodes that run in FP16 or INT8, by measurement

May import `families`, `data`, `models`, `checkpoints` and the layers below; never `training` or `workflows`.
"""

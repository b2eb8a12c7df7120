"""What a detector runs as: torch, ONNX, TFLite and TensorRT, one package each, and the parts that they share.

In: a path and a `LoadedSpec`. Out: an `OpenedModel`, a `Runtime` (`predict(images) -> Predictions`) and its spec.

    table                            one row per format: suffixes, abilities, required packages (no torch)
    <format>/file                    `read`: the file and what it records (`base.FileModule`)
    <format>/runtime                 `build_runtime`: what predicts (`base.RuntimeModule`)
    <format>/export                  `export`: write the file and verify it (`export_request.ExportModule`)
    opening                          a file of any format: read it, resolve spec and classes, build the runtime
    resolve, requested_size          which value applies: the user's, the file's or the default
    detection_loop, batching         the one loop of evaluate and inference; batches of the sizes a graph takes
    graph_file, graph_interface      a deployed file that has been read; the names of its inputs and outputs
    export_model, description        the detector as it is exported, with or without top-k; what its file records
    verification, comparison, images detections of the file and of torch on real images, compared as sets
    calibration, precision/          images for INT8; which nodes of a graph run in FP16 or INT8, by measurement

May import `families`, `data`, `models`, `checkpoints` and the layers below; never `training` or `workflows`.
"""

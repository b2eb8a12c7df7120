"""What a detector runs as: torch, ONNX, TFLite and TensorRT, one package each.

In: a path and a `LoadedSpec`. Out: an `OpenedModel`, a `Runtime` (`predict(images) -> Predictions`) and its spec.

    opening                          a file by its suffix: read it, resolve spec and classes, build the runtime
    resolve, requested_size          which value applies: the user's, the file's or the default
    detection_loop, batching         the one loop of evaluate and inference; batches of the sizes a graph takes
    <format>/file, export, runtime   reading and writing the file, writing the model, running it
    export_model                     the detector as it is exported, with or without top-k
    verification, comparison, images detections of the file and of torch on real images, compared as sets
    description, graph_interface     what files record, and the names of inputs and outputs
    precision/                       which nodes of a graph run in FP16 or INT8, decided by measurement

May import `families`, `data`, `models`, `checkpoints` and the layers below; never `training` or `workflows`.
"""

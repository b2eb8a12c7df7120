"""Weights files: reading those of every supported program, writing ours.

In: a path or a published name. Out: a `DetectorFile`, weights by our names with metadata in our form.

    detector_file, identify          which program wrote a file, and everything known about it
    family_weights                   the contract of `families/<name>/weights.py`
    weights_exist                    a missing file is reported without torch
    io, safe_unpickle, limits        the only `torch.load` and `torch.save`; limits on untrusted files
    metadata, recorded_fields        the metadata of our files, and its comparison with a spec
    loading, class_rows              copying weights into a module, class rows by name, with a report
    published, download              weights by their public name
    backbone_names, timm_weights, dinov2, renames   tensor names of backbones
    transformers_names, transformers_files, transformers_metadata, official_names   formats that several families share

Our file is a Lightning checkpoint plus `tao_model: "rtdetr"` and `rtdetr_tool: {version, spec, classes, weights,
metrics}`; its `state_dict` has TAO's prefix `model.model.`. Nothing in a file is used before it is checked:
its paths are removed and its sizes compared with its tensors. May import `spec` and the layers below.
"""

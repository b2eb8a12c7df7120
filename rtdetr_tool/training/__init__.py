"""Training a detector with Lightning. This is the only package that imports it.

    module, datamodule, trainer     the three objects of a run; each of them works on its own
    fit, fit_result                 a whole run from a spec, as in `rtdetr train`
    distill, teacher                a module with another training step, and the teacher it compares with
    feature_hooks                   captures the outputs of modules by name
    epoch_scores                    scores validation and test epochs
    resume_checks, checkpointing    whether a run can resume from a checkpoint; checkpoint files and links
    roboflow_resume                 makes checkpoints of RF-DETR's own training resumable
    initial_weights, freezing       where a new run starts from, and what it does not train
    optim, schedule                 parameter groups, optimizers, learning rates
    gradient_clipping, step_guard   clipping, and steps whose loss or gradient is not finite
    auto_batch_size                 `dataset.batch_size: auto`
    batch_norm_check                finds norms that cannot compute a variance
    out_of_memory                   says which settings to lower
    devices, distributed, sharding  accelerators, ranks, and what does not work with sharded strategies
    sync_batchnorm                  batch norm over processes, also on CPUs
    loggers, lightning_output       CSV and services, none of which can end a run; Lightning's own messages
    callbacks/                      one module per Lightning callback

The names below are imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

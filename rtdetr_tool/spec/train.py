"""The `train` section: schedule, optimizer, precision, devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rtdetr_tool.spec.checkpointer import CheckpointerSpec
from rtdetr_tool.spec.fields import INF, field
from rtdetr_tool.spec.supernet import SupernetSpec

SCHEDULERS = ("MultiStep", "StepLR", "Cosine", "FlatCosine")
PRECISIONS = ("bf16", "fp32", "fp16")
OPTIMIZER_PREFIX, SCHEDULER_PREFIX = "torch.optim.", "torch.optim.lr_scheduler."  # of classes by dotted name


@dataclass(frozen=True)
class CudnnSpec:
    """cuDNN settings."""

    benchmark: bool = field(False, "Let cuDNN time its algorithms and use the fastest.")
    deterministic: bool = field(True, "Use only deterministic cuDNN algorithms.")


@dataclass(frozen=True)
class EmaSpec:
    """Exponential moving average of the weights."""

    decay: float = field(0.999, "Share of the old average that each update keeps.", above=0.0, max=1.0, automl=True)
    every_n_steps: int = field(1, "Steps between updates.", min=1, max=INF, unit="steps")
    validate_original_weights: bool = field(False, "Validate with the weights being trained instead of the average.")
    cpu_offload: bool = field(False, "Keep the average in host memory.")
    tau: float | None = field(
        None,
        "How fast the decay d increases to `decay` at the start: update t has d = decay * (1 - exp(-t / tau)), as in "
        "RF-DETR (100 there, with decay 0.993); 0 = decay from the start, as in TAO; null = min(decay, (1 + t) / (10 +"
        " t)).",
        min=0.0,
        max=INF,
        unit="updates",
        origin="ours",
    )
    validate_both: bool = field(
        False,
        "Validate both the weights being trained (val/mAP_50_95) and the average (val/ema_mAP_50_95), keep the best "
        "checkpoint of each, and save the better of the two as rtdetr_model_best.pth. Each image is then scored twice.",
        origin="ours",
    )


@dataclass(frozen=True)
class EarlyStoppingSpec:
    """Stop a run when its validation score no longer improves."""

    enabled: bool = field(False, "Stop when val/mAP_50_95 has not improved for `patience` validations.", origin="ours")
    patience: int = field(10, "Validations without improvement.", min=1, unit="validations", origin="ours")
    min_delta: float = field(0.001, "Minimum increase that counts as an improvement.", min=0.0, max=1.0, origin="ours")
    use_ema: bool = field(
        False, "With ema.validate_both: the score of the average counts, not the better of both.", origin="ours"
    )


@dataclass(frozen=True)
class OptimSpec:
    """Optimizer and learning-rate schedule."""

    optimizer: str = field(
        "AdamW",
        "Optimizer; others of torch by dotted name, such as torch.optim.RAdam.",
        options=("AdamW", "SGD"),
        prefix=OPTIMIZER_PREFIX,
        parameter_groups=True,
    )
    optimizer_kwargs: dict[str, Any] = field(
        {}, "Further keyword arguments of the optimizer, such as {eps: 1.0e-7}.", origin="ours"
    )
    monitor_name: str = field(
        "val_loss",
        "Accepted for old specs; ReduceLROnPlateau follows lr_scheduler_monitor.",
        options=("val_loss", "train_loss"),
        unused="MultiStep and StepLR follow no metric, and ReduceLROnPlateau follows lr_scheduler_monitor",
    )
    lr: float = field(1e-4, "Learning rate of everything except the backbone.", above=0.0, automl=True)
    lr_backbone: float = field(1e-5, "Learning rate of the backbone.", above=0.0, automl=True)
    momentum: float = field(0.9, "SGD: momentum. AdamW: beta1.", above=0.0, max=1.0, automl=True)
    weight_decay: float = field(1e-4, "Weight decay; biases and normalization weights have none.", min=0.0, automl=True)
    decay_vectors: bool = field(
        False,
        "Decay the biases, normalization weights and layer scales as well, except biases, normalization weights and "
        "embeddings of the backbone. RF-DETR: true.",
        origin="ours",
        parameter_groups=True,
    )
    lr_scheduler: str = field(
        "MultiStep",
        "MultiStep: multiply by lr_decay at each epoch in lr_steps. StepLR: multiply by lr_decay every lr_step_size "
        "epochs. Cosine: half a cosine down to lr_min_factor at the last step. FlatCosine (DEIM, arXiv:2412.04234): "
        "constant for lr_flat_epochs, half a cosine down to lr_min_factor, constant for lr_final_epochs. Others of "
        "torch by dotted name, such as torch.optim.lr_scheduler.OneCycleLR.",
        options=SCHEDULERS,
        prefix=SCHEDULER_PREFIX,
    )
    lr_scheduler_kwargs: dict[str, Any] = field(
        {}, "Keyword arguments of a schedule by dotted name, such as {gamma: 0.9}.", origin="ours"
    )
    lr_scheduler_interval: str = field(
        "step",
        "When a schedule by dotted name advances; ReduceLROnPlateau always advances per validated epoch.",
        options=("step", "epoch"),
        origin="ours",
    )
    lr_scheduler_monitor: str = field(
        "val/loss", "The metric that torch.optim.lr_scheduler.ReduceLROnPlateau follows.", origin="ours"
    )
    lr_steps: list[int] = field(
        [1000], "MultiStep: epochs at which the learning rate is multiplied by lr_decay.", min=0, unit="epochs"
    )
    lr_step_size: int = field(1000, "StepLR: epochs between decays.", min=1, unit="epochs", automl=True)
    lr_decay: float = field(0.1, "Factor of each decay.", above=0.0, automl=True)
    warmup_steps: int = field(
        0, "Steps over which the learning rate increases linearly from zero.", min=0, max=INF, unit="steps"
    )
    lr_linear_proj_mult: float = field(
        1.0,
        "Factor on the learning rate of the parameters in model.linear_proj_names.",
        above=0.0,
        origin="seed",
        parameter_groups=True,
    )
    warmup_epochs: float = field(
        0.0,
        "The same as warmup_steps, in epochs; only one of the two can be set.",
        min=0.0,
        max=INF,
        unit="epochs",
        origin="ours",
    )
    lr_min_factor: float = field(
        0.0,
        "Cosine, FlatCosine: final learning rate as a share of the initial one. DEIM: 0.5.",
        min=0.0,
        max=1.0,
        origin="ours",
    )
    lr_flat_epochs: float = field(
        0.0,
        "FlatCosine: epochs before the learning rate decays, including the warm-up.",
        min=0.0,
        max=INF,
        unit="epochs",
        origin="ours",
    )
    lr_final_epochs: float = field(
        0.0,
        "FlatCosine: epochs at the end with the final learning rate.",
        min=0.0,
        max=INF,
        unit="epochs",
        origin="ours",
    )
    lr_layer_decay: float = field(
        1.0,
        "Factor on the learning rate per layer of the backbone, from its end to its stem. RF-DETR: 0.8.",
        above=0.0,
        max=1.0,
        origin="ours",
        parameter_groups=True,
    )
    lr_component_decay: float = field(
        1.0,
        "Factor on the learning rate of the decoder's layers, and its square on that of the backbone. RF-DETR: 0.7.",
        above=0.0,
        max=1.0,
        origin="ours",
        parameter_groups=True,
    )


@dataclass(frozen=True)
class TrainSpec:
    """Training settings."""

    num_gpus: int = field(1, "Devices per node; without a GPU, processes on the CPU.", min=1)
    gpu_ids: list[int] = field([0], "Indices of the GPUs; as many as num_gpus.", min=0)
    num_nodes: int = field(1, "Number of machines; more than one are started by torchrun or SLURM.", min=1)
    seed: int = field(1234, "Seed of all random numbers; negative = random.", min=-1, max=INF)
    cudnn: CudnnSpec = field(CudnnSpec, "cuDNN settings.")
    num_epochs: int = field(10, "Epochs to train.", min=1, max=INF, unit="epochs", automl=True)
    checkpoint_interval: int = field(1, "Epochs (or steps) between checkpoints; the last epoch is always saved.", min=1)
    checkpoint_interval_unit: str = field("epoch", "Unit of checkpoint_interval.", options=("epoch", "step"))
    checkpointer: CheckpointerSpec = field(CheckpointerSpec, "The best checkpoints by a metric.")
    validation_interval: int = field(1, "Epochs between validations.", min=1, unit="epochs")
    resume_training_checkpoint_path: str | None = field(
        None,
        "Checkpoint to resume from; null = the latest one in the results folder, if there is one.",
        path="read",
    )
    results_dir: str | None = field(
        None, "Folder of this command's results; null = <results_dir>/train.", path="results"
    )
    freeze: list[str] | None = field(
        [], "Modules to freeze, by dotted name: backbone, encoder, decoder.decoder.", parameter_groups=True
    )
    pretrained_model_path: str | None = field(None, "Weights of a complete detector to start from.", path="read")
    clip_grad_norm: float = field(0.1, "Maximum L2 norm of the gradient; 0 = no clipping.", min=0.0)
    class_weights: dict[str, float] | None = field(
        None,
        "Weights of classes in the class loss, by name: {wbc: 2.0}. Classes without one have weight 1.",
        above=0.0,
        max=INF,
        origin="ours",
    )
    non_finite_loss: str = field(
        "stop",
        "What to do about a step with a NaN or infinite loss or gradient, which never changes the weights. stop: save "
        "information about the cause and end the run; skip: continue.",
        options=("stop", "skip"),
        origin="ours",
    )
    is_dry_run: bool = field(False, "Check and build everything and run one batch, without training or saving.")
    enable_ema: bool = field(False, "Maintain an exponential moving average of the weights.")
    ema: EmaSpec = field(EmaSpec, "Exponential moving average.")
    optim: OptimSpec = field(OptimSpec, "Optimizer and learning-rate schedule.")
    preset: str = field(
        "tao",
        "Values of the fields that the spec does not set. tao: TAO's, which are reproducible and save memory. fast: "
        "precision auto, tf32 on, activation_checkpoint false, cudnn.deterministic false and cudnn.benchmark true.",
        options=("tao", "fast"),
        origin="ours",
    )
    precision: str = field(
        "fp32",
        "fp32, or mixed precision with bf16 or fp16 (fp16 needs a GPU). auto: fp32 on a CPU; on a GPU bf16 if it "
        "computes bf16 natively, else fp16.",
        options=(*PRECISIONS, "auto"),
    )
    tf32: str = field(
        "auto",
        "What a GPU since Ampere computes in TF32 (float32 with 10 bits of mantissa). auto: convolutions, and in mixed "
        "precision the matrix products that stay in float32. on: all matrix products as well. off: nothing.",
        options=("auto", "on", "off"),
        origin="ours",
    )
    compile: bool = field(
        False,
        "Compile the backbone and the encoder with torch.compile: the first steps take minutes, later ones have fewer "
        "kernels.",
        origin="ours",
    )
    distributed_strategy: str = field(
        "ddp", "With several devices: ddp copies the model to each, fsdp shards it.", options=("ddp", "fsdp")
    )
    activation_checkpoint: bool = field(
        True, "Recompute the backbone in the backward pass: less memory, more time, same result."
    )
    recompute_norms: bool = field(
        False,
        "Recompute norms, activations and concatenations in the backward pass, for which only the inputs of norms are "
        "stored: less memory, a little more time, same result. Not for parts that activation_checkpoint recomputes.",
        origin="ours",
    )
    verbose: bool = field(False, "Log every change of the learning rate.", origin="seed")
    grad_accum_steps: int = field(
        1, "Batches per optimizer step, whose gradients are accumulated.", min=1, max=INF, unit="batches", origin="ours"
    )
    effective_batch_size: int = field(
        16,
        "With dataset.batch_size auto: images per optimizer step on all devices together; batches that do not fit are "
        "accumulated.",
        min=1,
        max=INF,
        unit="images",
        origin="ours",
    )
    drop_path_schedule: str = field(
        "constant",
        "When the model's drop_path applies. early: in the first drop_path_epochs epochs; "
        "early_linear: falling to 0 over them; late: after them.",
        options=("constant", "early", "early_linear", "late"),
        origin="ours",
    )
    drop_path_epochs: int = field(0, "See drop_path_schedule.", min=0, max=INF, unit="epochs", origin="ours")
    best_metric: str = field(
        "mAP",
        "The score that decides the best checkpoint and early stopping, of masks or keypoints if the model "
        "predicts them.",
        options=("mAP", "mAR"),
        origin="ours",
    )
    skip_best_epochs: int = field(
        0,
        "First epochs that can neither be the best one nor count for early stopping.",
        min=0,
        max=INF,
        unit="epochs",
        origin="ours",
    )
    best_score_smoothing: float = field(
        0.0,
        "Weight of earlier scores in the moving average, which starts at 0, of the scores of the trained weights that "
        "decides the best epoch. Scores of averaged weights (ema) are used as they are. In RF-DETR: smooth_alpha.",
        min=0.0,
        max=0.999,
        origin="ours",
    )
    num_sanity_val_steps: int = field(
        0, "Validation batches to run before training, to find errors early.", min=0, unit="batches", origin="ours"
    )
    early_stopping: EarlyStoppingSpec = field(
        EarlyStoppingSpec, "Stop a run when its validation score no longer improves."
    )
    compute_val_loss: bool = field(True, "Also compute the losses in validation.", origin="ours")
    compute_test_loss: bool = field(True, "Also compute the losses when Lightning tests.", origin="ours")
    log_per_class_metrics: bool = field(False, "Log the AP of each class as val/AP/<class>.", origin="ours")
    sync_bn: bool = field(
        True, "With several devices: compute batch norms over the images of all devices.", origin="ours"
    )
    tensorboard: bool = field(True, "Log to TensorBoard in addition to the CSV file.", origin="ours")
    report: bool = field(
        True,
        "Write report.html, and refresh it after each validation: curves of losses, scores and learning rate, and the "
        "evaluation in detail with its best and worst images.",
        origin="ours",
    )
    save_dataset_grids: bool = field(
        False,
        "Save images of the first augmented training batches and validation batches with their boxes in dataset_grids.",
        origin="ours",
    )
    notes: str | None = field(
        None, "Any text; stored in checkpoints, and in ONNX files without export.notes.", origin="ours"
    )
    supernet: SupernetSpec = field(SupernetSpec, "Sub-detectors that share their weights.")
    accelerator: str = field(
        "auto",
        "Device type; auto = a CUDA GPU if there is one, otherwise the CPU; mps = the GPU of an Apple computer.",
        options=("auto", "gpu", "cpu", "mps"),
        origin="ours",
    )

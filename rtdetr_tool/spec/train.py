"""The `train` section: schedule, optimizer, precision, devices."""

from __future__ import annotations

from dataclasses import dataclass

from rtdetr_tool.spec.fields import INF, field


@dataclass(frozen=True)
class CudnnSpec:
    """cuDNN settings."""

    benchmark: bool = field(False, "Let cuDNN time its algorithms and take the fastest.")
    deterministic: bool = field(True, "Use only deterministic cuDNN algorithms.")


@dataclass(frozen=True)
class EmaSpec:
    """Exponential moving average of the weights."""

    decay: float = field(0.999, "Share of the old average that each update keeps.", above=0.0, max=1.0, automl=True)
    every_n_steps: int = field(1, "Steps between updates.", min=1, max=INF, unit="steps")
    validate_original_weights: bool = field(False, "Validate with the weights being trained instead of the average.")
    cpu_offload: bool = field(False, "Keep the average in host memory.")


@dataclass(frozen=True)
class OptimSpec:
    """Optimizer and learning-rate schedule."""

    optimizer: str = field("AdamW", "Optimizer.", options=("AdamW", "SGD"))
    monitor_name: str = field(
        "val_loss", "Accepted for old specs; neither schedule watches a metric.", options=("val_loss", "train_loss")
    )
    lr: float = field(1e-4, "Learning rate of everything but the backbone.", above=0.0, automl=True)
    lr_backbone: float = field(1e-5, "Learning rate of the backbone.", above=0.0, automl=True)
    momentum: float = field(0.9, "SGD: momentum. AdamW: beta1.", above=0.0, max=1.0, automl=True)
    weight_decay: float = field(1e-4, "Weight decay; biases and normalisation weights have none.", min=0.0, automl=True)
    lr_scheduler: str = field(
        "MultiStep",
        "MultiStep: multiply by lr_decay at each epoch of lr_steps. StepLR: every lr_step_size epochs.",
        options=("MultiStep", "StepLR"),
    )
    lr_steps: list[int] = field([1000], "MultiStep: epochs at which the rate drops.", min=0, unit="epochs")
    lr_step_size: int = field(1000, "StepLR: epochs between drops.", above=0, unit="epochs", automl=True)
    lr_decay: float = field(0.1, "Factor of a drop.", above=0.0, automl=True)
    warmup_steps: int = field(0, "Steps over which the rate rises linearly from zero.", min=0, max=INF, unit="steps")
    lr_linear_proj_mult: float = field(
        1.0, "Factor on the learning rate of the parameters named in model.linear_proj_names.", above=0.0, origin="seed"
    )


@dataclass(frozen=True)
class TrainSpec:
    """How to train."""

    num_gpus: int = field(1, "Devices per node; without a GPU, processes on the CPU.", min=1)
    gpu_ids: list[int] = field([0], "Which GPUs; as many as num_gpus.", min=0)
    num_nodes: int = field(1, "Machines; started by torchrun or SLURM when more than one.", min=1)
    seed: int = field(1234, "Seed of every random number; negative = none fixed.", min=-1, max=INF)
    cudnn: CudnnSpec = field(CudnnSpec, "cuDNN settings.")
    num_epochs: int = field(10, "Epochs to train.", min=1, max=INF, unit="epochs", automl=True)
    checkpoint_interval: int = field(1, "Epochs (or steps) between checkpoints; the last epoch is always saved.", min=1)
    checkpoint_interval_unit: str = field("epoch", "Unit of checkpoint_interval.", options=("epoch", "step"))
    validation_interval: int = field(1, "Epochs between validations.", min=1, unit="epochs")
    resume_training_checkpoint_path: str | None = field(
        None, "Checkpoint to go on from; null goes on from the latest one in the results folder, if there is one."
    )
    results_dir: str | None = field(None, "Folder of this command's results; null = <results_dir>/train.")
    freeze: list[str] | None = field([], "Modules not to train, by dotted name: backbone, encoder, decoder.decoder.")
    pretrained_model_path: str | None = field(None, "Weights of a whole detector to start from.")
    clip_grad_norm: float = field(0.1, "Largest L2 norm of the gradient; 0 = not clipped.", min=0.0)
    non_finite_loss: str = field(
        "stop",
        "A step whose loss or gradient is NaN or infinite never reaches the weights; then stop saves and ends the run "
        "with what is needed to find the cause, skip goes on.",
        options=("stop", "skip"),
        origin="ours",
    )
    is_dry_run: bool = field(False, "Check and build everything, run one batch, train and save nothing.")
    enable_ema: bool = field(False, "Keep an exponential moving average of the weights.")
    ema: EmaSpec = field(EmaSpec, "Exponential moving average.")
    optim: OptimSpec = field(OptimSpec, "Optimizer and learning-rate schedule.")
    precision: str = field(
        "fp32", "fp32, or mixed precision with bf16 or fp16 (fp16 needs a GPU).", options=("bf16", "fp32", "fp16")
    )
    distributed_strategy: str = field(
        "ddp", "Several devices: ddp copies the model to each, fsdp shards it.", options=("ddp", "fsdp")
    )
    activation_checkpoint: bool = field(
        True, "Recompute the backbone in the backward pass: less memory, more time, same result."
    )
    verbose: bool = field(False, "Log every change of the learning rate.", origin="seed")
    accelerator: str = field(
        "auto", "auto takes a GPU if there is one, else the CPU.", options=("auto", "gpu", "cpu"), origin="ours"
    )

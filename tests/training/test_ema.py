"""The moving average on a small module with batch norm, compared with averages computed here."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from rtdetr_tool.training.callbacks.ema import ExponentialMovingAverage


class _Small(pl.LightningModule):
    """Records its state after each step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.seen: list[dict[str, torch.Tensor]] = []
        self.validated_with: list[torch.Tensor] = []

    def training_step(self, batch, index):
        return self.net(batch).square().mean() + self.net[0].weight.sum()

    def on_train_batch_end(self, *args):
        self.seen.append({name: tensor.clone() for name, tensor in self.state_dict().items()})

    def validation_step(self, batch, index):
        self.validated_with.append(self.net[0].weight.detach().clone())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _run(ema: ExponentialMovingAverage, epochs: int = 2, **trainer_kwargs) -> tuple[_Small, dict]:
    module = _Small()
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    data = DataLoader(torch.arange(24.0).reshape(12, 2) / 24, batch_size=4)
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=[ema],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **trainer_kwargs,
    )
    trainer.fit(module, data, data)
    return module, start


def _expected(module: _Small, start: dict, decay, every: int = 1) -> dict:
    average, update = dict(start), 0
    for step, state in enumerate(module.seen, 1):
        if step % every:
            continue
        update += 1
        d = decay(update)
        average = {n: d * average[n] + (1 - d) * t if t.is_floating_point() else t for n, t in state.items()}
    return average


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("every", [1, 2])
def test_weights_and_batch_norm_statistics_are_averaged(every, offload):
    ema = ExponentialMovingAverage(decay=0.9, every_n_steps=every, cpu_offload=offload, tau=0)
    module, start = _run(ema)
    expected = _expected(module, start, lambda n: 0.9, every)
    assert set(ema.averages) == set(expected) and "net.1.running_var" in expected
    for name, tensor in ema.averages.items():
        torch.testing.assert_close(tensor, expected[name], msg=name)
    assert not torch.allclose(ema.averages["net.1.running_mean"], module.seen[-1]["net.1.running_mean"])


def test_integer_buffers_are_copied():
    ema = ExponentialMovingAverage(decay=0.9)
    _run(ema)
    assert ema.averages["net.1.num_batches_tracked"] == 6


def test_the_ramp_lets_short_runs_forget_their_initial_weights():
    ema = ExponentialMovingAverage(decay=0.999)
    module, start = _run(ema)
    expected = _expected(module, start, lambda n: min(0.999, (1 + n) / (10 + n)))
    torch.testing.assert_close(ema.averages["net.0.weight"], expected["net.0.weight"])
    assert ema.decay_at(1) == 2 / 11 and ema.decay_at(10**6) == 0.999


def test_validation_uses_the_average_and_training_the_weights():
    ema = ExponentialMovingAverage(decay=0.9, tau=0)
    module, start = _run(ema, epochs=1)
    expected = _expected(module, start, lambda n: 0.9)
    torch.testing.assert_close(module.validated_with[-1], expected["net.0.weight"])
    plain, _ = _run(ExponentialMovingAverage(decay=0.5), epochs=2)
    other, _ = _run(ExponentialMovingAverage(decay=0.9, validate_original_weights=True), epochs=2)
    assert all(torch.equal(a[n], b[n]) for a, b in zip(plain.seen, other.seen, strict=True) for n in a)


def test_validate_original_weights_validates_the_trained_weights():
    module, _ = _run(ExponentialMovingAverage(decay=0.9, validate_original_weights=True), epochs=1)
    torch.testing.assert_close(module.validated_with[-1], module.seen[-1]["net.0.weight"])


def test_accumulated_batches_count_as_one_step():
    ema = ExponentialMovingAverage(decay=0.9)
    _run(ema, epochs=2, accumulate_grad_batches=3)
    assert ema.updates == 2


def test_the_module_ends_with_the_average():
    ema = ExponentialMovingAverage(decay=0.9)
    module, _ = _run(ema)
    torch.testing.assert_close(module.net[0].weight.detach(), ema.averages["net.0.weight"])

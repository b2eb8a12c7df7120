from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rtdetr_tool.errors import UserError
from rtdetr_tool.ops.batch_norm import FixedBatchNorm2d, count_batch, count_together, fix_batch_norms
from rtdetr_tool.ops.layers import (
    ACTIVATIONS,
    MLP,
    ConvNorm,
    CSPRepLayer,
    RepVggBlock,
    build_activation,
    fold_batch_norms,
    fuse_reparameterized,
)


def disturb(module: nn.Module) -> nn.Module:
    """Randomize statistics and scales of norms, in eval mode."""
    for norm in module.modules():
        if isinstance(norm, (nn.BatchNorm2d, FixedBatchNorm2d)):
            with torch.no_grad():
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
                norm.weight.uniform_(-1.5, 1.5)
                norm.bias.normal_()
    return module.eval()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_builds_and_keeps_the_shape(name):
    assert build_activation(name)(torch.randn(2, 3)).shape == (2, 3)


def test_an_unknown_activation_is_an_error_that_lists_the_known():
    with pytest.raises(UserError, match=r"'swish' is invalid; expected one of relu, gelu, silu"):
        build_activation("swish")


@pytest.mark.parametrize("kernel,stride,expected", [(1, 1, 8), (3, 1, 8), (3, 2, 4)])
def test_conv_norm_keeps_the_size_divided_by_its_stride(kernel, stride, expected):
    assert ConvNorm(3, 5, kernel, stride)(torch.rand(2, 3, 8, 8)).shape == (2, 5, expected, expected)


@pytest.mark.parametrize("expansion", [0.5, 1.0])
def test_fused_fusion_blocks_give_the_same_output(expansion):
    torch.manual_seed(0)
    layer = disturb(CSPRepLayer(8, 4, 3, expansion, "silu"))
    x = torch.randn(2, 8, 6, 5)
    with torch.no_grad():
        before = layer(x)
        fuse_reparameterized(layer)
        once = layer(x)
        fuse_reparameterized(layer)  # a second call has no effect
        fold_batch_norms(layer)
    torch.testing.assert_close(once, before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer(x), before, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in layer.modules())
    assert not any(name.startswith("bottlenecks") and "conv1" in name for name in layer.state_dict())


def test_a_repvgg_block_is_the_sum_of_its_branches():
    block = disturb(RepVggBlock(3, 3, None))
    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(block(x), block.conv1(x) + block.conv2(x))


def fixed(width: int) -> FixedBatchNorm2d:
    return FixedBatchNorm2d(nn.BatchNorm2d(width))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, fixed])
@pytest.mark.parametrize("bias", [True, False])
def test_folded_norms_give_the_same_output(norm, bias):
    net = disturb(nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), norm(4), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 1))))
    x = torch.randn(2, 3, 6, 6)
    before = net(x).detach()
    fold_batch_norms(net)
    assert isinstance(net[1], nn.Identity)
    torch.testing.assert_close(net(x), before, atol=1e-5, rtol=1e-5)


def test_a_fixed_norm_is_a_batch_norm_in_eval_mode_with_the_same_names():
    norm = disturb(nn.Sequential(nn.BatchNorm2d(4, eps=1e-3)))[0]
    constant = FixedBatchNorm2d(norm)
    assert set(norm.state_dict()) - set(constant.state_dict()) == {"num_batches_tracked"}
    assert not list(constant.parameters())
    x = torch.randn(2, 4, 5, 6).to(memory_format=torch.channels_last)
    y = constant.train()(x)
    torch.testing.assert_close(y, norm(x))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_a_fixed_norm_stays_in_the_precision_of_its_input_and_keeps_no_map_for_the_backward_pass():
    constant, kept = fixed(4), []
    x = torch.randn(2, 4, 5, 6, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        y = constant(x)
    assert y.dtype == torch.bfloat16
    assert max(kept) == 4


def test_a_norm_that_does_not_follow_a_convolution_stays():
    net = disturb(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)))
    fold_batch_norms(net)
    assert isinstance(net[2], nn.BatchNorm2d)


def test_an_mlp_has_an_activation_between_its_layers_only():
    mlp = MLP(2, 8, 3, depth=3)
    assert [tuple(layer.weight.shape) for layer in mlp.layers] == [(8, 2), (8, 8), (3, 8)]
    with torch.no_grad():
        mlp.layers[-1].bias.fill_(-100)
        assert (mlp(torch.rand(4, 2)) < 0).all()


def random_norm(channels: int = 8) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    return norm.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fixed_norm_stays_in_the_dtype_of_its_input_and_keeps_nothing_of_it(dtype):
    norm = random_norm()
    fixed, x = FixedBatchNorm2d(norm), torch.randn(2, 8, 4, 4).to(dtype).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        result = fixed(x)
    assert result.dtype == dtype and max(kept, default=0) <= 8
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.02}
    torch.testing.assert_close(result.float(), norm(x.float()), **tolerance)


def test_a_fixed_norm_follows_its_buffers():
    first, second = random_norm(), random_norm()
    fixed, x = FixedBatchNorm2d(first), torch.randn(2, 8, 4, 4)
    with torch.inference_mode():
        fixed(x)
    fixed.load_state_dict(second.state_dict(), strict=False)
    torch.testing.assert_close(fixed(x), second(x))
    with torch.no_grad():
        fixed.bias.add_(1.0)
    torch.testing.assert_close(fixed(x), second(x) + 1.0)
    copied = copy.deepcopy(fixed).double()
    torch.testing.assert_close(copied(x.double()).float(), second(x) + 1.0)
    replaced = torch.func.functional_call(fixed, {"bias": first.bias.detach()}, (x,))
    torch.testing.assert_close(replaced, second(x) + (first.bias - second.bias)[:, None, None])


def test_norms_counted_together_compute_and_count_as_before():
    torch.manual_seed(0)
    alone = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.BatchNorm2d(8))
    together = copy.deepcopy(alone)
    count_together(together)
    together[2].eval(), alone[2].eval()
    for _ in range(3):
        x = torch.randn(2, 3, 4, 4)
        torch.testing.assert_close(together(x), alone(x))
        count_batch(together)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, together.state_dict()[name]), name
    assert together[1].num_batches_tracked == 3 and together[2].num_batches_tracked == 0
    assert fix_batch_norms(together) == 2


def test_a_norm_receives_its_gradient_in_channels_last_behind_a_concatenation():
    torch.manual_seed(0)
    layout = {"memory_format": torch.channels_last}
    norm, x = nn.BatchNorm2d(8), torch.randn(2, 8, 6, 5).contiguous(**layout)
    other, weight = torch.randn(2, 8, 6, 5), torch.randn(2, 16, 6, 5)
    found = []
    for counted_together in (False, True):
        if counted_together:
            count_together(norm)
        source, layouts = x.clone().requires_grad_(), []
        output = norm(source)
        output.register_hook(lambda g, layouts=layouts: layouts.append(g.is_contiguous(**layout)))
        (torch.cat([output, other], dim=1).contiguous(**layout) * weight).sum().backward()
        assert layouts == [counted_together]
        found.append((source.grad, *(parameter.grad.clone() for parameter in norm.parameters())))
        norm.zero_grad()
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)

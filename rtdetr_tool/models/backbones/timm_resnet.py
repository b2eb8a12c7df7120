"""ResNet and ResNet-d (He et al. 2015, arXiv:1512.03385; He et al. 2018, arXiv:1812.01187) with timm's blocks.

Submodules have timm's names (`conv1`, `bn1`, `layer1` ... `layer4`), which are also the names in TAO's checkpoints.
"""

from __future__ import annotations

from typing import Any

from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from rtdetr_tool.models.backbones.recompute import run_with_recompute
from rtdetr_tool.models.backbones.timm_network import TimmBackbone
from rtdetr_tool.ops.batch_norm import FixedBatchNorm2d, fold_into
from rtdetr_tool.ops.layers import fold_batch_norms

STAGES = ("layer1", "layer2", "layer3", "layer4")


class ResNetBackbone(TimmBackbone):
    """ResNets of timm, for example `resnet18d`; stages are recomputed one by one. See `TimmBackbone`."""

    conv1: nn.Conv2d | nn.Sequential  # a sequence in a ResNet-d
    bn1: nn.Module

    def adopt(self, network: Any) -> None:
        if isinstance(network.conv1, nn.Sequential):
            _project_first_shortcut(network.layer1[0])
        self.conv1, self.bn1, self.act1, self.maxpool = network.conv1, network.bn1, network.act1, network.maxpool
        self.stages = STAGES[: max(self.indices) + 1]
        for stage in self.stages:
            self.add_module(stage, getattr(network, stage))
        info = {entry["module"]: entry for entry in network.feature_info}
        self.channels = tuple(info[STAGES[index]]["num_chs"] for index in self.indices)
        self.strides = tuple(info[STAGES[index]]["reduction"] for index in self.indices)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.maxpool(self.act1(self.bn1(self.conv1(images))))
        maps = []
        for index, name in enumerate(self.stages):
            x = run_with_recompute(getattr(self, name), x, recompute=self.activation_checkpoint and self.training)
            if index in self.indices:
                maps.append(x)
        return maps

    @property
    def freezable_parts(self) -> tuple[tuple[str, ...], ...]:
        """Names of the modules of the stem and of each stage, in order."""
        return (("conv1", "bn1"), *((stage,) for stage in self.stages))

    def fold_batch_norms(self) -> None:
        """Fold every norm into its convolution, in place; for eval mode only."""
        if isinstance(self.conv1, nn.Sequential):  # the deep stem's last norm is outside of it
            last = self.conv1[-1]
            if isinstance(last, nn.Conv2d) and isinstance(self.bn1, (nn.BatchNorm2d, FixedBatchNorm2d)):
                fold_into(last, self.bn1)
                self.bn1 = nn.Identity()
        fold_batch_norms(self)


def _project_first_shortcut(block: nn.Module) -> None:
    """Add the projection shortcut of RT-DETR's R18 and R34 to the first block of a shallow ResNet-d.

    timm does not have it because size and width stay the same. It is initialized as the identity, so timm's weights
    remain valid, and named as in the deeper networks, whose first block always projects.
    """
    if not isinstance(block, BasicBlock) or block.downsample is not None:
        return
    assert isinstance(block.conv2, nn.Conv2d)  # as timm builds these blocks
    width = block.conv2.out_channels
    projection = nn.Conv2d(width, width, 1, bias=False)
    nn.init.dirac_(projection.weight)
    block.downsample = nn.Sequential(nn.Identity(), projection, nn.BatchNorm2d(width))

"""Backbones: images -> feature maps (`base.ImageBackbone`); those of timm, and our own."""

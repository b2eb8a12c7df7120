"""Small graphs of INT8 convolutions and products, as `rtdetr quantize` writes them, and the same ones in FP32."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, SCALE = 16, 0.03
STEP = np.float32(0.02 / WIDTH)  # of weights, mean over the channels


class Builder:
    """A graph with the input `x` [batch, WIDTH, 20, 20]; without `int8` in FP32, with the same weights."""

    def __init__(self, int8: bool = True) -> None:
        self.int8 = int8
        self.nodes: list = []
        self.constants = [numpy_helper.from_array(np.int8(0), "zero")]
        self.rng = np.random.default_rng(0)

    def constant(self, name, value):
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind, inputs, name, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def quantized(self, name):
        if not self.int8:
            return name
        scale = self.constant(f"{name}/scale", np.float32(SCALE))
        short = self.add("QuantizeLinear", [name, scale, "zero"], f"{name}/q")
        return self.add("DequantizeLinear", [short, scale, "zero"], f"{name}/dq")

    def weight(self, name, shape, axis):
        channels = shape[axis]
        values = self.rng.integers(-127, 128, shape).astype(np.int8)
        steps = (STEP * np.linspace(0.5, 1.5, channels)).astype(np.float32)
        if not self.int8:
            return self.constant(
                f"{name}/w", values * steps.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
            )
        numbers, scale = self.constant(f"{name}/w", values), self.constant(f"{name}/ws", steps)
        zeros = self.constant(f"{name}/wz", np.zeros(channels, np.int8))
        return self.add("DequantizeLinear", [numbers, scale, zeros], f"{name}/wdq", axis=axis)

    def convolution(self, x, name, inputs=WIDTH):
        """With a bias and an activation."""
        bias = self.constant(f"{name}/b", self.rng.normal(size=WIDTH).astype(np.float32))
        self.add("Conv", [x, self.weight(name, (WIDTH, inputs, 3, 3), 0), bias], name, pads=[1] * 4)
        return self.add("Mul", [name, self.add("Sigmoid", [name], f"{name}/sigmoid")], f"{name}/silu")

    def model(self, output, rank=4):
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH, 20, 20])
        y = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", *[None] * (rank - 1)])
        graph = helper.make_graph(self.nodes, "graph", [x], [y], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        onnx.checker.check_model(model)
        return model


def concatenated(int8=True):
    """Two convolutions, a concatenation, and a convolution that reads it."""
    net = Builder(int8)
    x = net.quantized("x")
    net.add("Concat", [net.convolution(x, "a"), net.convolution(x, "b")], "both", axis=1)
    return net.model(net.convolution(net.quantized("both"), "c", 2 * WIDTH))


def residual(int8=True):
    net = Builder(int8)
    x = net.quantized("x")
    net.add("Add", [net.convolution(x, "a"), net.quantized(net.convolution(x, "b"))], "sum")
    return net.model(net.convolution(net.quantized("sum"), "c"))


def linear(int8=True):
    """A product with a matrix. Its activation stays signed."""
    net = Builder(int8)
    tokens = net.add("Transpose", [net.convolution(net.quantized("x"), "a")], "tokens", perm=[0, 2, 3, 1])
    return net.model(net.add("MatMul", [net.quantized(tokens), net.weight("m", (WIDTH, WIDTH), 1)], "product"))


def both(int8=True):
    """A concatenation that a convolution and a product read."""
    net = Builder(int8)
    x = net.quantized("x")
    net.add("Concat", [net.convolution(x, "a"), net.convolution(x, "b")], "both", axis=1)
    read = net.quantized("both")
    product = net.add("MatMul", [read, net.weight("m", (20, 20), 1)], "product")
    return net.model(net.add("Concat", [net.convolution(read, "c", 2 * WIDTH), product], "result", axis=1))


def pooled(int8=True):
    """A product along rows, and a convolution of the maximum of neighbors."""
    net = Builder(int8)
    product = net.add("MatMul", [net.quantized("x"), net.weight("m", (20, 20), 1)], "product")
    read = net.quantized(net.add("MaxPool", [product], "pool", kernel_shape=[3, 3], pads=[1] * 4))
    return net.model(net.convolution(read, "a"))


def selected(int8=True):
    """The best quarter of the pixels, and the concatenation of two convolutions of these that a third one reads."""
    net = Builder(int8)
    pixels = net.add("Reshape", [net.convolution(net.quantized("x"), "a"), net.constant("flat", [0, 0, 400])], "pixels")
    scores = net.add("ReduceMax", [pixels, net.constant("channels", [1])], "scores")
    net.nodes.append(helper.make_node("TopK", [scores, net.constant("count", [100])], ["best", "places"], axis=2))
    places = net.add("Expand", ["places", net.constant("shape", [1, WIDTH, 1])], "all_places")
    chosen = net.add("GatherElements", [pixels, places], "chosen", axis=2)
    read = net.quantized(net.add("Reshape", [chosen, net.constant("square", [0, 0, 10, 10])], "squares"))
    net.add("Concat", [net.convolution(read, "b"), net.convolution(read, "c")], "pair", axis=1)
    return net.model(net.convolution(net.quantized("pair"), "d", 2 * WIDTH))


def unbiased(int8=True, bias=None):
    """Convolutions without activation, their pixels one after the other, and a linear layer that reads them."""
    net = Builder(int8)
    x, pixels = net.quantized("x"), []
    for name in ("a", "b"):
        added = [] if bias is None else [net.constant(f"{name}/b", np.full(WIDTH, bias, np.float32))]
        net.add("Conv", [x, net.weight(name, (WIDTH, WIDTH, 1, 1), 0), *added], name)
        flat = net.add("Reshape", [name, net.constant(f"{name}/shape", [0, 0, 400])], f"{name}/flat")
        pixels.append(net.add("Transpose", [flat], f"{name}/pixels", perm=[0, 2, 1]))
    read = net.quantized(net.add("Concat", pixels, "pixels", axis=1))
    return net.model(net.add("MatMul", [read, net.weight("m", (WIDTH, WIDTH), 1)], "product"), rank=3)

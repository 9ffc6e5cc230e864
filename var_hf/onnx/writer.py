"""Writes one ONNX graph node by node, with weights stored in a chosen number format.

- `float32`: weights as they are.
- `float16`: weights in half precision, which become float32 when the graph is loaded.
- `int8`: weights of matrix products and convolutions in 8 bits with one scale for each output
  channel (symmetric, DequantizeLinear); all others as in `float16`.

All arithmetic is float32. Only operators of the standard are used, which every onnxruntime has,
that for browsers included.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from var_hf import __version__

Array: TypeAlias = NDArray[Any]
Shape: TypeAlias = Sequence[int | str]  # names are axes of variable length

_FEWEST = 1024  # values of a tensor worth storing in fewer bits
_IR_VERSION = 10  # onnxruntime reads it from 1.18 on
_OUTPUTS = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}


class Writer:
    """A graph under construction. Values are named by strings.

    Args:
        state_dict: The weights by name; any floating dtype, on any device.
        dtype: Number format of the stored weights.
    """

    def __init__(self, state_dict: Mapping[str, Any], dtype: str):
        self._state_dict, self.dtype = state_dict, dtype
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.num_bytes = 0

    def has(self, name: str) -> bool:
        """Whether there is a weight of this name."""
        return name in self._state_dict

    def state_dict(self, name: str) -> NDArray[np.float32]:
        """A weight as a float32 array."""
        return self._state_dict[name].float().cpu().numpy()

    # Inputs, outputs, constants

    def input(self, name: str, shape: Shape, kind: str = "float32") -> str:
        """An input of the graph."""
        self.inputs.append(helper.make_tensor_value_info(name, _OUTPUTS[kind], shape))
        return name

    def output(self, value: str, name: str, shape: Shape, kind: str = "float32") -> None:
        """An output of the graph."""
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, _OUTPUTS[kind], shape))

    def constant(self, name: str, array: Array) -> str:
        """An array that is stored as it is; a name that is known is not stored again."""
        if name not in self.initializers:
            array = np.asarray(array, order="C")
            self.initializers[name] = numpy_helper.from_array(array, name)
            self.num_bytes += array.nbytes
        return name

    def numbers(self, *values: int) -> str:
        """A vector of whole numbers, such as a shape."""
        return self.constant(f"numbers:{values}", np.array(values, np.int64))

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(f"number:{value}", np.array(value, np.float32))

    def table(self, name: str, array: NDArray[np.float32]) -> str:
        """A weight that is looked up or added, in at most half precision."""
        if self.dtype == "float32" or array.size < _FEWEST:
            return self.constant(name, array)
        if np.abs(array).max() > np.finfo(np.float16).max:
            raise ValueError(
                f"The weight {name} reaches {np.abs(array).max():.3g}, beyond the range of "
                "float16. Export with dtype float32."
            )
        stored = self.constant(f"{name}.float16", array.astype(np.float16))
        return self.op("Cast", stored, to=int(TensorProto.FLOAT))

    def weight(self, name: str, array: NDArray[np.float32], axis: int) -> str:
        """A weight of a product or convolution, whose output channels lie along `axis`."""
        if self.dtype != "int8" or array.size < _FEWEST:
            return self.table(name, array)
        others = tuple(each for each in range(array.ndim) if each != axis)
        largest = np.abs(array).max(axis=others, keepdims=True)
        scales = (np.where(largest > 0, largest, 127) / 127).astype(np.float32)
        codes = self.constant(f"{name}.int8", np.rint(array / scales).astype(np.int8))
        return self.op(
            "DequantizeLinear", codes, self.constant(f"{name}.scales", scales.ravel()), axis=axis
        )

    # Operators

    def op(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """The one output of an operator."""
        return self.ops(operator, 1, *inputs, **attributes)[0]

    def ops(self, operator: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """The outputs of an operator."""
        names = [f"{operator}_{len(self.nodes)}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names

    def reshape(self, value: str, *shape: int) -> str:
        """0 keeps a length, and -1 takes what is left."""
        return self.op("Reshape", value, self.numbers(*shape))

    def silu(self, value: str) -> str:
        """X * sigmoid(x)."""
        return self.op("Mul", value, self.op("Sigmoid", value))

    def gelu(self, value: str) -> str:
        """GELU by tanh, in the form that onnxruntime fuses to one operator."""
        cubic = self.op("Mul", self.op("Mul", value, value), self.number(0.044715))
        inner = self.op("Mul", value, self.number(0.7978845608028654))  # sqrt(2 / pi)
        tanh = self.op("Tanh", self.op("Mul", inner, self.op("Add", cubic, self.number(1.0))))
        half = self.op("Mul", value, self.number(0.5))
        return self.op("Mul", half, self.op("Add", tanh, self.number(1.0)))

    def linear(self, value: str, name: str) -> str:
        """The linear layer of this name, with or without a bias."""
        array = self.state_dict(f"{name}.weight").T
        product = self.op("MatMul", value, self.weight(f"{name}.weight", array, axis=1))
        if not self.has(f"{name}.bias"):
            return product
        bias = self.constant(f"{name}.bias", self.state_dict(f"{name}.bias"))
        return self.op("Add", product, bias)

    def conv(self, value: str, name: str, stride: int = 1, pads: Sequence[int] = ()) -> str:
        """The convolution of this name; `pads` are top, left, bottom, right."""
        array = self.state_dict(f"{name}.weight")
        side = array.shape[-1]
        weight = self.weight(f"{name}.weight", array, axis=0)
        bias = self.constant(f"{name}.bias", self.state_dict(f"{name}.bias"))
        pads = list(pads) or [side // 2] * 4
        return self.op("Conv", value, weight, bias, strides=[stride, stride], pads=pads)

    def group_norm(self, value: str, name: str, groups: int, eps: float, side: int) -> str:
        """The group norm of this name, of a square map."""
        weight, bias = (self.state_dict(f"{name}.{part}") for part in ("weight", "bias"))
        ones = self.constant(f"ones:{groups}", np.ones(groups, np.float32))
        zeros = self.constant(f"zeros:{groups}", np.zeros(groups, np.float32))
        grouped = self.reshape(value, 0, groups, -1)
        normed = self.op("InstanceNormalization", grouped, ones, zeros, epsilon=eps)
        normed = self.reshape(normed, 0, len(weight), side, side)
        scaled = self.op("Mul", normed, self.constant(f"{name}.weight", weight[:, None, None]))
        return self.op("Add", scaled, self.constant(f"{name}.bias", bias[:, None, None]))

    def model(self, name: str, opset: int) -> onnx.ModelProto:
        """The finished graph."""
        graph = helper.make_graph(
            self.nodes, name, self.inputs, self.outputs, list(self.initializers.values())
        )
        return helper.make_model(
            graph,
            producer_name="var-hf",
            producer_version=__version__,
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=_IR_VERSION,
        )

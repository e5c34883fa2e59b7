"""A thin graph builder: nodes, inputs and initializers of one ONNX model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgekit.export.store import Array, TensorStore, to_float16

if TYPE_CHECKING:
    import onnx

ActivationType = Literal["float32", "float16"]
CONTRIB = "com.microsoft"
"""ONNX Runtime's operator domain (docs/ContribOperators.md of that project)."""
_IR_VERSIONS = {21: 10, 24: 11}
"""ONNX's operator set -> the first version of its file format that has it."""


class Graph:
    """Collects the nodes of one graph; weights go to a shared `TensorStore`."""

    def __init__(self, store: TensorStore, activation: ActivationType, *, opset: int = 21) -> None:
        self.store = store
        self.activation = activation
        self.opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._stored: dict[str, None] = {}
        self._inline: list[onnx.TensorProto] = []

    def input(self, name: str, dtype: str, shape: list[int | str]) -> str:
        """Declare a graph input; strings in `shape` are free dimensions."""
        self._inputs.append(_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: str, shape: list[int | str]) -> None:
        """Declare a graph output."""
        self._outputs.append(_value_info(name, dtype, shape))

    def weight(self, name: str) -> str:
        """Use a tensor of the store as an initializer."""
        self._stored[name] = None
        return name

    def floats(self, name: str, array: Array) -> str:
        """A small floating-point tensor, stored in this graph's activation type.

        Raises `CheckpointError` where that is fp16 and does not hold it.
        """
        if self.activation == "float32":
            return self.weight(self.store.add_array(name, array.astype(np.float32)))
        return self.weight(self.store.add_array(f"{name}.fp16", to_float16(array, name)))

    def constant(self, name: str, array: Array) -> str:
        """A tiny tensor inside the graph file itself: shapes, axes, split sizes."""
        from onnx import numpy_helper

        self._inline.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(
        self,
        op: str,
        inputs: list[str],
        outputs: str | list[str],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Append a node named after its first output, which is returned."""
        from onnx import helper

        names = [outputs] if isinstance(outputs, str) else outputs
        main = next(name for name in names if name)
        self._nodes.append(
            helper.make_node(op, inputs, names, name=main, domain=domain, **attributes)
        )
        return main

    def save(self, path: Path, *, metadata: dict[str, str]) -> None:
        """Write the model file; the weights stay in the store's data file beside it."""
        from onnx import helper

        graph = helper.make_graph(
            self._nodes,
            "decoder",
            self._inputs,
            self._outputs,
            [*self._inline, *(self.store.initializer(name) for name in self._stored)],
        )
        imports = [helper.make_opsetid("", self.opset)]
        if any(node.domain == CONTRIB for node in self._nodes):
            imports.append(helper.make_opsetid(CONTRIB, 1))
        model = helper.make_model(
            graph,
            ir_version=_IR_VERSIONS[self.opset],
            opset_imports=imports,
            producer_name="edgekit",
        )
        helper.set_model_props(model, metadata)
        path.write_bytes(model.SerializeToString(deterministic=True))


def _value_info(name: str, dtype: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    from onnx import helper

    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape
    )

"""Writing a graph in each format."""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from balms_det.deploy.engines import import_engine
from balms_det.export.graphs import Graph

_PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",), "int8": ("nncf",)}
_OPSET = 17  # the first with everything that graphs use, and old enough for any runtime in use


def write_graph(graph: Graph, path: Path, form: str) -> None:
    """Write `graph` into the file at `path`, whose suffix is that of the format.

    Args:
        form: "onnx", "openvino" or "torchscript", of which :func:`check_format` knows.
    """
    write = {"onnx": _write_onnx, "openvino": _write_openvino, "torchscript": _write_torchscript}
    with torch.no_grad(), _quiet():
        write[form](graph, path)


def check_format(form: str, precision: str) -> None:
    """Refuse a format or precision whose packages are not installed.

    Raises:
        InputError: names the package that is missing.
    """
    for module in (*_PACKAGES.get(form, ()), *_PACKAGES.get(precision, ())):
        import_engine(module)


def _write_onnx(graph: Graph, path: Path) -> None:
    # Lengths of one name would have to be equal: each axis has a name of its own.
    axes = {
        name: {axis: f"{name}_axis_{axis}" for axis in varying}
        for name, varying in graph.dynamic.items()
    }
    torch.onnx.export(
        graph.module,
        tuple(graph.inputs.values()),
        str(path),
        input_names=list(graph.inputs),
        output_names=list(graph.outputs),
        dynamic_axes=axes,
        opset_version=_OPSET,
        dynamo=False,  # the other exporter refuses shapes that depend on data
    )


def openvino_model(graph: Graph) -> Any:
    """Return `graph` as an OpenVINO model, float32."""
    with torch.no_grad(), _quiet():
        return _converted(graph)


def _converted(graph: Graph) -> Any:
    openvino = importlib.import_module("openvino")
    shapes = [
        openvino.PartialShape(
            [-1 if axis in graph.dynamic[name] else edge for axis, edge in enumerate(tensor.shape)]
        )
        for name, tensor in graph.inputs.items()
    ]
    examples = tuple(graph.inputs.values())
    model = openvino.convert_model(_traced(graph), example_input=examples, input=shapes)
    for port, name in zip(
        [*model.inputs, *model.outputs], [*graph.inputs, *graph.outputs], strict=True
    ):
        port.get_tensor().set_names({name})
    return model


def _write_openvino(graph: Graph, path: Path) -> None:
    save_openvino(openvino_model(graph), path)


def save_openvino(model: Any, path: Path) -> None:
    """Write an OpenVINO model with its weights as they are."""
    importlib.import_module("openvino").save_model(model, path, compress_to_fp16=False)


def _write_torchscript(graph: Graph, path: Path) -> None:
    torch.jit.freeze(_traced(graph)).save(str(path))


def _traced(graph: Graph) -> Any:
    # A second trace, which the check would compare with, fails: modules keep nothing of the first.
    trace: Any = torch.jit.trace
    return trace(graph.module, tuple(graph.inputs.values()), check_trace=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what tracing says about modules that are known to be traced correctly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit._trace.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)
        yield

"""The engines that run graphs: each loads a file and returns a function of arrays.

Every engine is imported when a graph is loaded. Its arrays may be overwritten by the next call of
the same graph.
"""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from balms_det.runtime.errors import InputError

Graph = Callable[[Sequence[np.ndarray]], list[np.ndarray]]

# The suffix of each format's graphs.
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torchscript": ".pt"}
_OPENVINO_PRECISION = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}


def load_graph(path: Path, form: str, precision: str, threads: int | None) -> Graph:
    """Return the graph in the file at `path` as a function.

    Args:
        form: a key of `SUFFIXES`.
        precision: "float32", "bfloat16" or "int8".
        threads: of the engine; None leaves their number to it.

    Raises:
        InputError: the format is unknown, its engine is absent, or the file is.
    """
    if form not in SUFFIXES:
        raise InputError(
            f"{path}: the format {form!r} is unknown; export the model as {', '.join(SUFFIXES)}"
        )
    if not path.is_file():
        raise InputError(f"{path}: the graph is missing; export the model again")
    load = {"onnx": _load_onnx, "openvino": openvino_graph, "torchscript": _load_torchscript}
    return load[form](path, precision, threads)


def import_engine(module: str) -> Any:
    """Import an optional package.

    Raises:
        InputError: it is absent.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"the package {error.name or module!r} is not installed; run `pip install {module}`, "
            "or choose another format"
        ) from error


def _load_onnx(path: Path, precision: str, threads: int | None) -> Graph:
    onnxruntime = import_engine("onnxruntime")
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        path, options, providers=onnxruntime.get_available_providers()
    )
    names = [each.name for each in session.get_inputs()]

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        outputs: list[np.ndarray] = session.run(None, dict(zip(names, arrays, strict=True)))
        return outputs

    return run


def openvino_graph(model: Any, precision: str, threads: int | None) -> Graph:
    """Return an OpenVINO model, or the one in a file, as a function; arguments as of
    :func:`load_graph`."""
    openvino = import_engine("openvino")
    # Without the hint, processors with instructions for bfloat16 compute in it.
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _OPENVINO_PRECISION[precision],
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    request = openvino.compile_model(model, "CPU", config).create_infer_request()

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return list(request.infer(list(arrays), share_inputs=True, share_outputs=True).values())

    return run


def _load_torchscript(path: Path, precision: str, threads: int | None) -> Graph:
    torch = import_engine("torch")
    import_engine("torchvision")  # registers RoIAlign
    if threads is not None:
        torch.set_num_threads(threads)
    module = torch.jit.load(str(path), map_location="cpu").eval()

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = module(*map(torch.from_numpy, arrays))
        return [each.numpy() for each in (outputs if isinstance(outputs, tuple) else (outputs,))]

    return run

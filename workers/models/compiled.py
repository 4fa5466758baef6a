"""Networks compiled by OpenVINO for the CPU: torch's numbers in float32, sooner. Trains and explains nothing.

A network is traced once, when the model is loaded, and its weights travel in memory: nothing is read from
or written to disk, and nobody is told (`_keep_to_ourselves`). What needs gradients (the
heads behind Grad-CAM++) stays with torch. Refuses weights and pictures that are not finite: OpenVINO's
rectifiers make 0 of NaN, which would pass for a result.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from node.domain.errors import PermanentError
from workers.models.engine import Forward


def available() -> bool:
    """Whether OpenVINO is installed."""
    return find_spec("openvino") is not None


def compiled(network: nn.Module, function: Forward, shape: tuple[int, int, int]) -> Forward:
    """The function of a network in eval mode on the CPU, for any number of pictures at once.

    It answers as the function does, without what was None. Threads are torch's at this moment. Raises
    ImportError without OpenVINO, and PermanentError for weights, later for pictures, that are not finite.
    """
    _keep_to_ourselves()
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    for name, value in network.state_dict().items():
        if not torch.isfinite(value).all():
            raise PermanentError(
                "MODEL_INVALID", f"{name} of the weights holds NaN or infinity; train or install them anew"
            )
    traced = _Traced(network, function).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # OpenVINO takes nothing else as fast
        script = torch.jit.trace(traced, torch.zeros(1, *shape), check_trace=False)
        script = torch.jit.freeze(script, optimize_numerics=False)
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(script)  # must outlive the conversion
    model = frontend.load(decoder)
    (pictures,) = model.get_inputs()
    model.set_partial_shape(pictures, openvino.PartialShape([-1, *shape]))
    model.set_element_type(pictures, openvino.Type.f32)
    request = openvino.Core().compile_model(
        frontend.convert(model),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()},
    )

    def run(x: Tensor) -> Any:
        if not torch.isfinite(x).all():
            raise PermanentError(
                "MODEL_INPUT_INVALID",
                "the pictures for the network hold NaN or infinity; check the pixels of the series",
            )
        answer = request(np.ascontiguousarray(x.numpy()), share_inputs=True)
        tensors = tuple(torch.from_numpy(np.array(value)) for value in answer.to_tuple())
        return tensors if traced.several else tensors[0]

    return run


def _keep_to_ourselves() -> None:
    """Before OpenVINO is imported: it would tell Google Analytics so, under an identifier in the home folder.

    It does without the package that tells, where it finds none.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def named(kind: Callable[..., Any], forward: Forward) -> Forward:
    """The same function with its tensors as a `kind` of tuple."""

    def run(x: Tensor) -> Any:
        return kind(*forward(x))

    return run


class _Traced(nn.Module):
    """One function of a network as a module of its own, with None left out of what it answers."""

    def __init__(self, network: nn.Module, function: Forward) -> None:
        super().__init__()
        self.network = network
        self.function = function
        self.several = False

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        answer = self.function(x)
        if isinstance(answer, Tensor):
            return answer
        self.several = True
        return tuple(one for one in answer if one is not None)

"""Which device and precision run the networks, from what the settings ask for. Loads no model.

`auto` takes what is there and is quickest; what is asked for by name and is not there is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from node.domain.errors import PermanentError
from workers.models import compiled
from workers.models.engine import Engine

OPENVINO = "openvino"
DEVICES = rf"auto|cpu|cuda(:\d+)?|{OPENVINO}"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Wish:
    """What the settings ask for: `model.device`, `model.precision`, `model.compile`."""

    device: str = "auto"
    precision: str = "auto"
    compile: bool = False


@dataclass(frozen=True)
class Runtime:
    """What runs the networks: "openvino", "cpu" (torch) or "cuda"; its precision; compiled or not."""

    name: str
    precision: str = "float32"
    compile: bool = False

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.name == OPENVINO else self.name)

    @property
    def words(self) -> str:
        """For people: `cuda (NVIDIA H200), bfloat16`."""
        where = self.name
        if self.device.type == "cuda":
            where = f"{self.name} ({torch.cuda.get_device_name(self.device)})"
        return f"{where}, {self.precision}{', torch.compile' if self.compile else ''}"

    def engine(self) -> Engine:
        compiler = compiled.compiled if self.name == OPENVINO else None
        precision = PRECISIONS[self.precision]
        return Engine(self.device, precision, compiler=compiler, compiles=self.compile)


def choose_device(device: str = "auto") -> torch.device:
    """`auto` takes CUDA when there is a device.

    Raises PermanentError when `cuda` is asked for in vain, and for what is no device of ours.
    """
    if not re.fullmatch(DEVICES, device):
        raise _unavailable(f"there is no device {device!r}; set model.device to auto, cuda, openvino or cpu")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise _unavailable("no CUDA device here; set model.device to auto or cpu")
    return torch.device("cpu" if device == OPENVINO else device)


def choose_runtime(wish: Wish | None = None) -> Runtime:
    """The runtime for what is wished.

    `auto` takes CUDA when there is a device, else OpenVINO where it is installed, else torch; and bfloat16
    where a GPU computes in it. Raises PermanentError for what is not there, and for bfloat16 from OpenVINO.
    """
    wish = wish or Wish()
    name = _runtime_name(wish.device)
    if name == OPENVINO:
        if wish.precision == "bfloat16":
            raise _unavailable("openvino computes in float32 here; set model.precision to auto")
        return Runtime(name)
    return Runtime(name, _precision(name, wish.precision), wish.compile)


def _precision(name: str, wished: str) -> str:
    if wished == "float32" or not name.startswith("cuda"):
        return "float32" if wished == "auto" else wished
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    if wished == "bfloat16":
        raise _unavailable("this GPU does not compute in bfloat16; set model.precision to auto")
    return "float32"


def _runtime_name(device: str) -> str:
    chosen = choose_device(device)
    if device == OPENVINO and not compiled.available():
        raise _unavailable("openvino is not installed; pip install it, or set model.device to auto")
    if device == OPENVINO or (device == "auto" and chosen.type == "cpu" and compiled.available()):
        return OPENVINO
    return str(chosen)


def _unavailable(text: str) -> PermanentError:
    return PermanentError("DEVICE_UNAVAILABLE", text)

"""Load a pipeline once per process, from safetensors only and only if its digest is the one written down.

A sidecar JSON stands beside the weights: name, version, sha256, family, recipe, preprocessing,
thresholds, training data, metrics. Weights that differ from it, or that were trained with another
preprocessing, are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from node.domain.errors import PermanentError
from node.domain.findings import ModelIdentity
from workers.models import families
from workers.models.catalogue import entry
from workers.models.contract import Pipeline
from workers.models.device import Runtime, Wish, choose_runtime

State = Mapping[str, Tensor]


def load_pipeline(name_or_path: str | Path = "default", wish: Wish | str = "auto") -> Pipeline:
    """The pipeline of that catalogue name or sidecar path, the same object each time in one process.

    `wish`: what shall run it, or the device alone.
    """
    try:
        sidecar = entry(name_or_path).sidecar
    except KeyError as error:
        raise PermanentError("MODEL_NOT_FOUND", str(error.args[0])) from error
    wanted = Wish(wish) if isinstance(wish, str) else wish
    return _load(sidecar.resolve(), choose_runtime(wanted))


@lru_cache(maxsize=4)
def _load(sidecar: Path, runtime: Runtime) -> Pipeline:
    facts = read_sidecar(sidecar)
    try:
        tensors = read_weights(sidecar.parent / facts["weights"], facts["sha256"])
        return families.build(tensors, facts, runtime.engine())
    except KeyError as error:
        text = f"{sidecar} lacks {error}; `ichnode train` and `save_pipeline` write whole ones"
        raise PermanentError("MODEL_INVALID", text) from error


def read_sidecar(path: Path) -> dict[str, Any]:
    """The facts beside the weights. Raises PermanentError when there are none."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PermanentError("MODEL_NOT_FOUND", f"no model at {path}; check model.pipeline") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise PermanentError("MODEL_INVALID", f"{path} is not JSON: {error}") from error
    if not isinstance(facts, dict):
        raise PermanentError(
            "MODEL_INVALID", f"{path} is no sidecar; give the JSON that stands beside weights"
        )
    return facts


def read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """Tensors in float32, once the file's digest is the expected one."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise PermanentError("MODEL_NOT_FOUND", f"no weights at {path}; reinstall the model") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise PermanentError(
            "MODEL_DIGEST_MISMATCH",
            f"{path.name} has sha256 {found[:12]}…, its sidecar says {sha256[:12]}…; reinstall the model",
        )
    try:
        return {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in load(content).items()
        }
    except SafetensorError as error:
        raise PermanentError("MODEL_INVALID", f"{path.name} is not a safetensors file: {error}") from error


def _unreadable(path: Path, error: OSError) -> PermanentError:
    text = f"{path} cannot be read: {error.strerror}; give a file that the node's user may read"
    return PermanentError("MODEL_INVALID", text)


def save_pipeline(sidecar: Path, members: Sequence[State], facts: dict[str, Any]) -> ModelIdentity:
    """Write weights (float16) and sidecar; `facts` lack what follows from the weights themselves.

    Raises PermanentError MODEL_INVALID for a weight that is no number, or too large for float16.
    """
    sidecar.parent.mkdir(parents=True, exist_ok=True)
    weights = sidecar.with_suffix(".safetensors")
    tensors = {
        f"{index}.{name}": _compact(name, value)
        for index, member in enumerate(members)
        for name, value in member.items()
    }
    content = save(tensors)
    weights.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    written = {
        "name": facts["name"],
        "version": facts["version"],
        "family": facts["family"],
        "weights": weights.name,
        "sha256": digest,
        "members": len(members),
        **{key: value for key, value in facts.items() if key not in ("name", "version", "family")},
    }
    sidecar.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return ModelIdentity(facts["name"], facts["version"], digest)


def _compact(name: str, value: Tensor) -> Tensor:
    value = value.detach().cpu().contiguous()
    if not value.is_floating_point():
        return value
    half = value.half()
    if not torch.isfinite(half).all():
        raise PermanentError(
            "MODEL_INVALID", f"{name} is NaN, infinite or too large for float16; train with a lower rate"
        )
    return half

"""A second model for tests: the shipped one with a nudge to its weights, and so with another digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from node.domain.findings import ModelIdentity
from workers.models.catalogue import entry


def make_other_model(folder: Path, name: str = "other", version: str = "2.0.0") -> tuple[Path, ModelIdentity]:
    """Sidecar and identity of a model that says nearly what the shipped one does."""
    sidecar = entry("default").sidecar
    facts = json.loads(sidecar.read_text())
    tensors = load_file(sidecar.parent / facts["weights"])
    nudged = {
        key: tensor * 1.001 if tensor.is_floating_point() else tensor for key, tensor in tensors.items()
    }
    weights = folder / f"{name}.safetensors"
    save_file(nudged, weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    made = folder / f"{name}.json"
    made.write_text(
        json.dumps({**facts, "name": name, "version": version, "weights": weights.name, "sha256": digest})
    )
    return made, ModelIdentity(name, version, digest)

"""Weights into networks, and what they must agree on with the code around them. Reads no file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from node.domain.errors import PermanentError

Network = TypeVar("Network", bound=nn.Module)


def filled(network: Network, state: Mapping[str, Tensor], name: str) -> Network:
    """The network with these weights, of the model of that name. Raises PermanentError MODEL_INVALID."""
    try:
        network.load_state_dict(dict(state))
    except RuntimeError as error:
        raise PermanentError(
            "MODEL_INVALID", f"{name}: the weights do not fit the network: {error}"
        ) from error
    return network


def require_preprocessing(facts: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Raises PermanentError where a sidecar tells of another preprocessing than the `present` one."""
    if facts["preprocessing"] != present:
        raise PermanentError(
            "MODEL_PREPROCESSING_MISMATCH",
            f"{facts['name']}: these weights were trained with another preprocessing; train them anew",
        )

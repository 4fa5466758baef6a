"""Both receivers of the listener, for tests that hold for either. `pytest -k streaming` takes one of them."""

from __future__ import annotations

from typing import get_args

from node.settings import Scp

RECEIVERS: tuple[str, ...] = get_args(Scp.model_fields["receiver"].annotation)

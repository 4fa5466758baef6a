"""Which model is the active one: what the settings name, until an admin promotes another. Loads none.

A promotion stands as long as `[model] pipeline` reads as it did when it was made: whoever edits the settings
afterwards has chosen anew, and the promotion is set aside. So no model ever runs that nobody chose last.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.domain.findings import ModelIdentity


@dataclass(frozen=True)
class Promotion:
    """One entry of the history. `pipeline`: catalogue name, or absolute path of the sidecar.

    `settings_pipeline` is what `[model] pipeline` said then, `before` what was active until then.
    """

    id: int
    at: float
    who: str
    reason: str
    pipeline: str
    model: ModelIdentity
    settings_pipeline: str
    before_pipeline: str
    before: ModelIdentity

    @property
    def back_to_settings(self) -> bool:
        """It took an earlier promotion back: from then on the settings rule again."""
        return self.pipeline == self.settings_pipeline


@dataclass(frozen=True)
class Active:
    """What a worker is to load. With `promoted` only the very weights that were promoted will do."""

    pipeline: str
    promoted: Promotion | None = None
    set_aside: Promotion | None = None
    """The latest promotion, where the settings were changed after it."""

    @property
    def sha256(self) -> str:
        """Of the weights that must be; empty where the settings name the model, whatever its digest."""
        return self.promoted.model.sha256 if self.promoted else ""


def active(settings_pipeline: str, last: Promotion | None) -> Active:
    """By `[model] pipeline` and the latest promotion."""
    if last is None or (last.back_to_settings and last.settings_pipeline == settings_pipeline):
        return Active(settings_pipeline)
    if last.settings_pipeline != settings_pipeline:
        return Active(settings_pipeline, set_aside=None if last.back_to_settings else last)
    return Active(last.pipeline, promoted=last)

"""Which model is active: the one somebody chose last, by a promotion or by editing the settings."""

from __future__ import annotations

from node.domain.choice import Active, Promotion, active
from node.domain.findings import ModelIdentity

OLD, NEW = ModelIdentity("default", "1", "a" * 64), ModelIdentity("new", "2", "b" * 64)


def promoted(pipeline: str, model: ModelIdentity, settings: str = "default") -> Promotion:
    return Promotion(3, 1.0, "anna", "better", pipeline, model, settings, "default", OLD)


def test_without_a_promotion_the_settings_rule_whatever_the_digest() -> None:
    assert active("default", None) == Active("default")
    assert active("default", None).sha256 == ""


def test_a_promotion_stands_with_its_very_weights() -> None:
    found = active("default", promoted("/m/new.json", NEW))
    assert (found.pipeline, found.sha256) == ("/m/new.json", NEW.sha256)


def test_who_edits_the_settings_after_it_has_chosen_anew() -> None:
    last = promoted("/m/new.json", NEW)
    found = active("/m/third.json", last)
    assert (found.pipeline, found.promoted, found.set_aside) == ("/m/third.json", None, last)
    assert active("default", last).promoted is last, "edited back, it stands again"


def test_back_to_the_settings_means_whatever_they_name() -> None:
    back = promoted("default", OLD)
    assert active("default", back) == Active("default")
    assert active("/m/third.json", back) == Active("/m/third.json")

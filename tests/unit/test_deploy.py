"""What deploy/ ships can be used as it is."""

from __future__ import annotations

import configparser
from pathlib import Path

from node.settings import load

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_the_example_settings_are_valid_and_name_a_destination() -> None:
    settings = load(DEPLOY / "ichnode.toml")
    assert [d.name for d in settings.destination] == ["pacs"]
    assert settings.scp.calling_ae_titles == ("PACS",)


def test_the_unit_runs_up_as_its_own_user_and_leaves_it_time_to_stop() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "ichnode.service")
    service = unit["Service"]
    assert " up --config " in service["ExecStart"]
    assert service["User"] != "root"
    assert int(service["TimeoutStopSec"]) > 10

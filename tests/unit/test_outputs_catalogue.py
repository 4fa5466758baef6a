"""Every list of output names speaks of the same objects, and only the usual three come unasked."""

from __future__ import annotations

from node.outputs.catalogue import ALL_NAMES, NAMES, build_all
from node.outputs.context import Context
from node.outputs.source import Source
from node.scheduling import SENDING_ORDER, schedule, wanted_outputs
from node.settings import OUTPUT_NAMES, Destination
from node.store.jobs import NewObject
from tests.factories import MADE_AT, analysed, bleed, ct_series, hu_of

USUAL = {"sr", "seg", "sc"}


def test_settings_catalogue_and_sending_order_know_the_same_names() -> None:
    assert ALL_NAMES == ("seg", "seg-subtypes", "labelmap", "pm", "sc", "sr", "csr", "gsps", "kos")
    assert {*OUTPUT_NAMES, "csr"} == set(SENDING_ORDER) == set(ALL_NAMES)


def test_only_the_usual_three_come_unasked() -> None:
    assert set(NAMES) == set(Destination(name="pacs", ae_title="PACS").outputs) == USUAL
    assert set(wanted_outputs(())) == USUAL
    series, masks = ct_series(), bleed(6, 64)
    findings = analysed(series, {"any": 0.9}, masks=masks)
    context = Context(findings, Source.ordered(series, findings, hu_of), MADE_AT, "0.1.0", masks)
    assert set(build_all(context)) == USUAL


def test_others_are_built_and_sent_where_they_are_asked_for() -> None:
    usual = Destination(name="pacs", ae_title="PACS")
    keen = Destination(name="viewer", ae_title="VIEWER", outputs=("kos", "sr", "pm"))
    assert wanted_outputs([usual, keen]) == ("seg", "pm", "sc", "sr", "kos")
    made = [
        NewObject(name, "1.2", "1.3", name, f"{name}.dcm", 1) for name in ("seg", "pm", "sc", "sr", "kos")
    ]
    sent = [(d.destination, d.sop_instance_uid) for d in schedule(made, [usual, keen], urgent=False)]
    assert [uid for name, uid in sent if name == "pacs"] == ["sr", "seg", "sc"]
    assert [uid for name, uid in sent if name == "viewer"] == ["sr", "pm", "kos"]

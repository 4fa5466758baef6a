"""docs/conformance.md says what the code does: its tables are read and compared with the code itself."""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pydicom.charset
import pytest
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID
from pynetdicom import AllStoragePresentationContexts
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    UnifiedProcedureStepPull,
    UnifiedProcedureStepWatch,
    Verification,
)

from node import commitment, intake, listener, offer, query, scu, stow, transcode
from node.channels import ups as ups_push
from node.dimse import conversation
from node.domain import workitems
from node.domain.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.dul import limits
from node.orders import worklist
from node.outputs import codes
from node.outputs.catalogue import ALL_NAMES, build_all
from node.outputs.context import Context
from node.outputs.source import Source
from node.settings import (
    OUTPUT_NAMES,
    Archive,
    Destination,
    Hl7Orders,
    Orders,
    PeerTls,
    Scp,
    Tls,
    Ups,
    UpsPush,
    Watcher,
    WorklistPeer,
)
from node.store.workitems import REQUIRED_OF_PERFORMED
from node.ups import events, service
from node.ups import scp as ups_scp
from tests.factories import MADE_AT, analysed, bleed, ct_series, hu_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"
STANDARD = files("highdicom") / "_standard"
"""Which modules an IOD has and which attributes a module has, as highdicom took them from PS3.3."""


def tables() -> dict[str, list[tuple[str, ...]]]:
    """The body of each table of the document, by its caption."""
    found: dict[str, list[tuple[str, ...]]] = {}
    caption, rows = "", []
    for line in [*DOCUMENT.read_text(encoding="utf-8").splitlines(), ""]:
        if match := re.fullmatch(r"\*\*Table: (.+)\*\*", line):
            caption, rows = match[1], []
        elif caption and line.startswith("|"):
            rows.append(tuple(cell.strip().strip("`") for cell in line.strip("|").split("|")))
        elif caption and rows:
            found[caption], caption = rows[2:], ""  # without the head and the line below it
    return found


def table(caption: str, *columns: int) -> set[tuple[str, ...]]:
    """Those columns of a table; each row once."""
    rows = tables()[caption]
    picked = [tuple(row[column] for column in columns) for row in rows]
    assert len(set(picked)) == len(picked), f"{caption} has a row twice"
    return set(picked)


@cache
def objects() -> dict[str, list[Dataset]]:
    """One set of everything the node can send."""
    series, masks = ct_series(6, rows=64), bleed(6, 64)
    findings = analysed(series, {"any": 0.97, "subdural": 0.9}, masks=masks)
    heat = np.linspace(0, 1, 6 * 64 * 64, dtype=np.float32).reshape(6, 64, 64)
    source = Source.ordered(series, findings, hu_of)
    context = Context(findings, source, MADE_AT, "0.1.0", masks, heat, subtypes={"subdural": masks})
    return build_all(context, ALL_NAMES)


@cache
def standard(name: str) -> Any:
    return json.loads((STANDARD / name).read_text(encoding="utf-8"))


def iod_of(kind: str) -> str:
    """highdicom's name of the IOD; it lists the label map's SOP class with Segmentation."""
    return str(standard("sop_class_iod_map.json")[str(objects()[kind][-1].SOPClassUID)])


def keywords(kind: str) -> set[str]:
    """Of all elements at the top level of the objects of a kind."""
    return {keyword_for_tag(tag) for ds in objects()[kind] for tag in ds.keys()}  # noqa: SIM118


def modules(kind: str) -> list[tuple[str, str, str]]:
    """(information entity, module, usage) of what is in the objects, in the order of the IOD.

    A module that is not mandatory counts as present when it brings an attribute that no mandatory one has.
    """
    attributes = standard("module_attribute_map.json")

    def own(key: str) -> set[str]:
        return {item["keyword"] for item in attributes.get(key, []) if not item["path"]}

    listed = standard("iod_module_map.json")[iod_of(kind)]
    mandatory = set().union(*(own(m["key"]) for m in listed if m["usage"] == "M"))
    return [
        (m["ie"], m["key"].replace("-", " "), m["usage"])
        for m in listed
        if m["usage"] == "M" or (own(m["key"]) - mandatory) & keywords(kind)
    ]


UNDECIDED = ("multi-frame-functional-groups", "sr-document-content")
"""Modules whose attributes are alternatives: of shared and per-frame groups, of the types of content item."""
KINDS = {"sr": "SR", "seg": "SEG", "sc": "SC", "pm": "PM", "gsps": "GSPS", "kos": "KOS"}


def test_the_sop_classes_served() -> None:
    served = {c.abstract_syntax: c for c in listener._application_entity(Scp()).supported_contexts}
    named = {uid for _, uid in table("SOP classes served", 0, 1)}
    assert {UID(uid).name for uid in named} == {name for (name,) in table("SOP classes served", 0)}
    assert named <= {str(uid) for uid in served}
    assert set(offer.offer().syntaxes) == {str(uid) for uid in served}, "both receivers serve the same"
    others = [uid for uid in served if uid not in named]
    storage = {c.abstract_syntax for c in AllStoragePresentationContexts}
    assert set(others) <= storage
    assert f"and {len(others)} other Storage SOP Classes" in DOCUMENT.read_text(encoding="utf-8")
    assert {Verification, StorageCommitmentPushModel} <= named


def test_the_transfer_syntaxes_taken() -> None:
    assert table("Transfer syntaxes taken", 0, 1) == {
        (UID(uid).name, str(uid)) for uid in offer.TRANSFER_SYNTAXES
    }


def test_the_sop_classes_sent() -> None:
    sent = {(kind, str(made[-1].SOPClassUID)) for kind, made in objects().items()}
    assert table("SOP classes sent", 0, 2) == sent
    assert {kind for kind, _ in sent} - {"csr"} == set(OUTPUT_NAMES)
    words = [word for word in transcode.SYNTAXES if word not in ("explicit", "implicit")]
    for kind, uid, offered in table("SOP classes sent", 0, 2, 3):
        wanted = [w for w in words if transcode.SYNTAXES[w] in transcode.offered(uid, [w])]
        assert offered == ", ".join(wanted), kind


def test_the_transfer_syntaxes_sent() -> None:
    assert table("Transfer syntaxes sent", 0, 2) == {(w, str(u)) for w, u in transcode.SYNTAXES.items()}
    assert all(UID(uid).name == name for name, uid in table("Transfer syntaxes sent", 1, 2))


def test_the_series_sent() -> None:
    made = {(k, str(m[-1].SeriesNumber), str(m[-1].Modality)) for k, m in objects().items()}
    assert table("Series", 0, 1, 2) == made


def hexadecimal(*numbers: int) -> set[tuple[str]]:
    return {(f"0x{number:04X}",) for number in numbers}


def test_the_statuses_answered() -> None:
    constants = ("SUCCESS", "DUPLICATE_SOP_INSTANCE", "OUT_OF_RESOURCES", "DOES_NOT_MATCH_SOP_CLASS",
                 "CANNOT_UNDERSTAND", "PROCESSING_FAILURE")  # fmt: skip
    known = [getattr(intake, name) for name in constants]
    source = Path(str(intake.__file__)).read_text(encoding="utf-8")
    statuses = re.findall(r"^[A-Z_]+ = (0x[0-9A-F]{4})\b", source, re.M)
    assert {int(text, 16) for text in statuses} == set(known)
    assert table("C-STORE statuses answered", 0) == hexadecimal(*known, conversation.SOP_CLASS_NOT_SUPPORTED)
    answers = (commitment.SUCCESS, commitment.INVALID_ARGUMENT, commitment.PROCESSING_FAILURE)
    expected = hexadecimal(*answers, conversation.NO_SUCH_SOP_CLASS)
    assert table("N-EVENT-REPORT statuses answered", 0) == expected
    assert table("Statuses of other requests", 0) == hexadecimal(
        conversation.SOP_CLASS_NOT_SUPPORTED,
        conversation.NO_SUCH_SOP_CLASS,
        conversation.UNRECOGNISED_OPERATION,
    )


def test_what_is_done_about_the_statuses_got() -> None:
    got = table("C-STORE statuses got", 0)
    stored = {"0x0000", f"0x{scu.WARNINGS[0]:04X} to 0x{scu.WARNINGS[-1]:04X}"}
    assert got == {(code,) for code in (*stored, f"0x{scu.DUPLICATE_SOP_INSTANCE:04X}", "any other")}
    assert table("Commitment failure reasons", 0, 1) == {
        (f"0x{code:04X}", words) for code, words in commitment.FAILURE_REASONS.items()
    }
    about_objects = ", ".join(map(str, stow.ABOUT_THE_OBJECTS))
    assert about_objects in {status for (status,) in table("HTTP statuses got", 0)}
    assert {f"0x{reason:04X}" for reason in stow.NOT_THIS_SYNTAX} <= set(
        re.findall(r"0x[0-9A-F]{4}", DOCUMENT.read_text(encoding="utf-8"))
    )


def test_the_queries_and_retrievals() -> None:
    source = Path(str(query.__file__)).read_text(encoding="utf-8")
    asked = {keyword for keyword, _ in table("Queries", 0, 1)}
    named = set(re.findall(r'"([A-Z]\w+)"|asked\.([A-Z]\w+) =', source))
    keywords = {one or other for one, other in named} - {"QueryRetrieveLevel"}
    assert {k for k in keywords if (tag_for_keyword(k) or 0) >> 16} == asked  # group 0000: the command's own
    listed = {status for (status,) in table("Retrieval statuses got", 0)}
    assert listed == {f"0x{code:04X}" for code in (query.SUCCESS, *query.FAILURES)} | {"any other"}
    assert len(query.FETCHED) == 3


def test_the_association_policies() -> None:
    values = dict(table("Associations", 0, 1))
    usual, peer = Scp(), Destination(name="a", ae_title="A")
    processes = f"{usual.max_associations} for each of {usual.processes} processes"
    assert values == {
        "Implementation Class UID": IMPLEMENTATION_CLASS_UID,
        "Implementation Version Name": IMPLEMENTATION_VERSION_NAME,
        "Application context name": "1.2.840.10008.3.1.1.1",
        "Largest PDU taken by the listener": str(limits.MAXIMUM_PDU_BYTES),
        "Largest PDU taken as initiator": str(peer.max_pdu_bytes),
        "Associations at a time, as acceptor": processes,
        "Associations at a time, as initiator": "1 for each destination, 1 for all archives",
        "Outstanding operations": "1, unless a destination's settings and the peer agree on more",
        "Silence before an association is aborted, as acceptor": f"{usual.timeout_s:g} s",
        "Time to connect, as initiator": f"{scu.CONNECTION_TIMEOUT_S} s",
        "Time for a response, as initiator": f"{scu.RESPONSE_TIMEOUT_S} s",
        "Time for a response to a C-MOVE or C-GET": f"{query.RETRIEVE_TIMEOUT_S} s",
        "Wait for an N-EVENT-REPORT on the association of the request": f"{commitment.LINGER_S:g} s",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_modules_of_each_object(kind: str) -> None:
    assert [row[:3] for row in tables()[f"Modules of the {KINDS[kind]}"]] == modules(kind)


def test_the_variants_have_the_same_modules() -> None:
    """So that one table speaks for them: SEG by subtype, label map, Comprehensive SR."""
    for variant, of in (("seg-subtypes", "seg"), ("csr", "sr")):
        assert modules(variant) == modules(of)
    assert keywords("labelmap") - keywords("seg") == {"PixelPaddingValue"}


def test_the_attributes_of_the_objects() -> None:
    kinds = list(objects())
    expected = set()
    for keyword in sorted(set().union(*(keywords(kind) for kind in kinds))):
        inside = [kind for kind in kinds if keyword in keywords(kind)]
        where = "all" if len(inside) == len(kinds) else ", ".join(inside)
        expected.add((keyword, where))
    assert table("Attributes", 0, 1) == expected
    assert all(origin for (origin,) in {(row[2],) for row in tables()["Attributes"]})


def test_the_codes() -> None:
    used = set()
    for value in vars(codes).values():
        for code in value.values() if isinstance(value, dict) else (value,):
            if isinstance(code, Code):
                used.add((code.value, code.scheme_designator, code.meaning))
    assert table("Codes", 0, 1, 2) == used


def test_the_templates() -> None:
    for kind, template in table("Templates", 0, 1):
        (item,) = objects()[kind][0].ContentTemplateSequence
        assert (item.MappingResource, f"TID {item.TemplateIdentifier}") == ("DCMR", template)


def test_the_character_sets() -> None:
    known = {term for term in pydicom.charset.python_encoding if term}
    assert {term for (term,) in table("Character sets", 0)} == known


def test_the_worklist_query() -> None:
    query = worklist._query("A", "P")
    used = {e.keyword for e in query} | {e.keyword for e in query.ScheduledProcedureStepSequence[0]}
    assert {name for (name,) in table("Worklist query", 0)} == used
    assert f"after {worklist.MOST_ITEMS} items" in DOCUMENT.read_text(encoding="utf-8")


def test_the_ups_statuses() -> None:
    told = dict(table("UPS statuses answered", 0, 1))
    meanings = {f"0x{code:04X}": words for code, words in workitems.MEANINGS.items()}
    assert {code: told.get(code) for code in meanings} == meanings
    own = (service.PENDING, service.SOME_NOT_SUPPORTED, service.INVALID_ARGUMENT, service.NO_SUCH_ACTION,
           service.RESOURCE_LIMITATION, ups_scp.OUT_OF_RESOURCES, ups_scp.PROCESSING_FAILURE,
           ups_scp.CANCELLED)  # fmt: skip
    assert set(told) == {*meanings, *(code for (code,) in hexadecimal(*own))}


def test_the_statuses_of_a_pushed_workitem() -> None:
    told = dict(table("UPS Push statuses got", 0, 2))
    done = hexadecimal(*ups_push.CREATED, ups_push.DUPLICATE)
    assert {code for code, words in told.items() if words.startswith("done")} == {c for (c,) in done}
    later = {c for (c,) in hexadecimal(*ups_push.TRY_LATER)}
    assert {code for code, words in told.items() if words == "tried again"} == later
    over = {f"0x{code:04X}": f"nothing more: {words}" for code, words in ups_push.OVER.items()}
    assert {code: words for code, words in told.items() if words.startswith("nothing more")} == over
    assert f"up to {ups_push.MOST_REPLACED} older workitems" in DOCUMENT.read_text(encoding="utf-8")


def test_every_action_and_event_of_ups_is_told() -> None:
    words = DOCUMENT.read_text(encoding="utf-8")
    actions = {"Change UPS State": service.CHANGE_STATE, "Request UPS Cancel": service.REQUEST_CANCEL,
               "Subscribe": service.SUBSCRIBE, "Unsubscribe": service.UNSUBSCRIBE,
               "Suspend Global Subscription": service.SUSPEND}  # fmt: skip
    assert [name for name, number in actions.items() if f"{name} ({number})" not in words] == []
    told = {"STATE": "UPS State Report", "CANCEL_REQUESTED": "UPS Cancel Requested"}
    told |= {"PROGRESS": "UPS Progress Report"}
    assert [e for e in workitems.Event if f"{told[e.name]} ({e.value})" not in words] == []


def test_what_ups_is_said_to_do() -> None:
    words = DOCUMENT.read_text(encoding="utf-8")
    offered = {c.abstract_syntax for c in ups_scp.application_entity(Scp(), ()).supported_contexts}
    assert offered == {Verification, UnifiedProcedureStepPull, UnifiedProcedureStepWatch}
    named = (*service.SETTABLE, *REQUIRED_OF_PERFORMED.values(), f"{service.LONGEST_PERFORMED // 1024} KiB",
             f"up to {ups_scp.MOST_ASSOCIATIONS} associations", workitems.GLOBAL,
             f"within {events.LOOK_S:g} s", f"for {events.GIVE_UP_S / 3600:g} h")  # fmt: skip
    assert [name for name in named if name not in words] == []
    assert {f"{int(tag, 16):08X}": keyword_for_tag(int(tag, 16)) for tag in REQUIRED_OF_PERFORMED} == (
        REQUIRED_OF_PERFORMED
    )


def test_the_settings() -> None:
    told = table("Settings of the network", 0)
    sections = {
        "scp": Scp,
        "scp.tls": Tls,
        "destination": Destination,
        "destination.tls": PeerTls,
        "archive": Archive,
        "archive.tls": PeerTls,
        "orders": Orders,
        "orders.worklist": WorklistPeer,
        "orders.hl7": Hl7Orders,
        "ups": Ups,
        "ups.watcher": Watcher,
        "alert": UpsPush,
    }
    expected = {
        (f"{name}.{field}",)
        for name, model in sections.items()
        for field in model.model_fields
        if f"{name}.{field}" not in sections
    }
    assert told == expected


def missing(kind: str, ds: Dataset) -> set[tuple[str, ...]]:
    """Attributes of mandatory modules that PS3.3 wants without condition: type 1 with a value, type 2."""
    listed = standard("iod_module_map.json")[iod_of(kind)]
    found = set()
    for key in (m["key"] for m in listed if m["usage"] == "M" and not m["key"].endswith(UNDECIDED)):
        for item in standard("module_attribute_map.json").get(key, []):
            for parent in reached(ds, item["path"]):
                if not satisfied(parent, item["keyword"], item["type"]):
                    found.add((key, *item["path"], item["keyword"]))
    return found


@pytest.mark.parametrize("kind", ALL_NAMES)
def test_every_mandatory_attribute_is_there(kind: str) -> None:
    assert [missing(kind, ds) for ds in objects()[kind]] == [set()] * len(objects()[kind])


def test_a_missing_attribute_would_be_noticed() -> None:
    ds = copy.deepcopy(objects()["seg"][0])
    del ds.PatientSex
    ds.SegmentSequence[0].SegmentLabel = ""
    assert missing("seg", ds) == {
        ("patient", "PatientSex"),
        ("segmentation-image", "SegmentSequence", "SegmentLabel"),
    }


def reached(ds: Dataset, path: list[str]) -> list[Dataset]:
    """The items at the end of a path of sequences; none where one of them is absent."""
    found = [ds]
    for keyword in path:
        found = [item for parent in found for item in parent.get(keyword) or []]
    return found


def satisfied(parent: Dataset, keyword: str, kind: str) -> bool:
    if kind == "1":
        return keyword in parent and not parent[keyword].is_empty
    return kind != "2" or keyword in parent


def test_the_tables_are_all_read() -> None:
    """A table that no test reads would go stale."""
    source = Path(__file__).read_text(encoding="utf-8")
    unread = {caption for caption in tables() if f'"{caption}"' not in source}
    assert unread == {f"Modules of the {name}" for name in KINDS.values()}

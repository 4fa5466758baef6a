"""The page Shadow, its JSON and CSV, the command line; promotion and going back; over the real store."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient

from node.admin.cli import main
from node.admin.passwords import digest, hashed, new_token
from node.admin.web.app import make_app
from node.domain.errors import IllegalTransition
from node.domain.opinion import Opinion
from node.domain.permissions import Role
from node.promotion import promote, roll_back, standing
from node.settings import Model, Settings, Shadow
from node.store.audit import Actor
from node.store.records import Records
from tests.shadowed import ACTIVE, OTHER, Shadowed
from tests.site import browser

HTML = {"Accept": "text/html"}
ANNA = Actor("anna", Role.ADMIN, "")
AGREE, DISAGREE = Opinion.AGREE, Opinion.DISAGREE


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"shadow": Shadow(pipeline="/models/other.json")})


@pytest.fixture
def node(settings: Settings, records: Records) -> Shadowed:
    return Shadowed(records, settings)


def press(client: TestClient, path: str, **form: str) -> int:
    token = client.get("/shadow").text.split('name="csrf" content="')[1].split('"')[0]
    return client.post(path, data={"csrf": token, **form}).status_code


def works(node: Shadowed, model: Any = ACTIVE, **more: str) -> None:
    """A worker says what it has loaded."""
    detail = {"model": model.name, "version": model.version, "sha256": model.sha256, "jobs_done": 1}
    node.records.views.beat("worker@h:1", "worker", more or detail, time.time())


def some_pairs(node: Shadowed) -> dict[str, int]:
    jobs = {
        "1.1": node.both("1.1", 0.9, 0.8),
        "1.2": node.both("1.2", 0.8, 0.2, scanner="<b>ZEUS</b>"),
        "1.3": node.both("1.3", 0.1, 0.7),
        "1.4": node.both("1.4", 0.1, 0.1),
    }
    node.judged(jobs["1.1"], AGREE)
    node.judged(jobs["1.2"], AGREE)
    node.judged(jobs["1.3"], DISAGREE)
    return jobs


def test_an_empty_node_says_so(client: TestClient) -> None:
    page = client.get("/shadow").text
    assert "No series was read by two models yet" in page and "No shadow worker is up" in page
    assert client.get("/api/v1/shadow").json()["pair"] is None
    assert client.get("/shadow.csv").status_code == 200


def test_the_two_are_compared_and_their_differences_lead_to_the_studies(
    client: TestClient, node: Shadowed
) -> None:
    some_pairs(node)
    page = client.get("/shadow").text
    cross = page.split('id="cross"')[1].split("</table>")[0]
    assert [cell.split(">")[1].split("<")[0] for cell in cross.split("data-label")[1:]] == [
        "1",
        "1",
        "1",
        "1",
    ]
    differing = page.split('id="differing"')[1]
    assert 'href="/study/1.2"' in differing and 'href="/study/1.3"' in differing
    assert 'href="/study/1.1"' not in differing and "PID-1.3" in differing
    assert page.count("<circle") == 4 and "<b>ZEUS" not in page
    answer = client.get("/api/v1/shadow").json()
    any_ = answer["classes"]["any"]
    assert any_["agreement"]["value"] == 0.5 and any_["kappa"]["value"] == pytest.approx(0)
    assert any_["active"]["sensitivity"]["count"] == 2 and any_["active"]["sensitivity"]["total"] == 3
    assert any_["shadow"]["sensitivity"]["count"] == 2
    assert any_["mcnemar"]["sensitivity"] == {"active_right": 1, "shadow_right": 1, "p_value": 1.0}
    assert answer["seconds"]["classified_s"]["active"]["median"] == pytest.approx(2.0)
    assert answer["readings"] == {"DONE": 4}
    one = client.get("/api/v1/shadow", params={"scanner": "<b>ZEUS</b>"}).json()
    assert one["classes"]["any"]["cross"]["total"] == 1
    assert client.get("/shadow?within=nonsense&pair=x:y").status_code == 200


def test_the_csv_holds_both_words_and_no_patient(client: TestClient, node: Shadowed) -> None:
    some_pairs(node)
    text = client.get("/shadow.csv?within=30d").text
    rows = {row["study_instance_uid"]: row for row in csv.DictReader(io.StringIO(text.lstrip("\ufeff")))}
    assert "PID" not in text
    row = rows["1.3"]
    assert (row["active_present_any"], row["shadow_present_any"], row["reader_any"]) == ("0", "1", "1")
    assert row["shadow_model_sha256"] == OTHER.sha256 and float(row["shadow_probability_any"]) == 0.7


def test_promotion_asks_for_a_reason_and_leaves_a_line(client: TestClient, node: Shadowed) -> None:
    works(node)
    some_pairs(node)
    page = client.get("/shadow").text
    assert "Make it the active model" in page and "Go back to it" not in page
    assert press(client, "/shadow/promote", sha256=OTHER.sha256, reason="  ") == 409
    assert press(client, "/shadow/promote", sha256=OTHER.sha256[:12], reason="x") == 409, "what was seen"
    assert node.records.promotions.last() is None
    assert press(client, "/shadow/promote", sha256=OTHER.sha256, reason="misses <less>") == 303
    active = node.records.promotions.active("default")
    assert (active.pipeline, active.sha256) == ("/models/other.json", OTHER.sha256)
    entry = next(e for e in node.records.audit.entries() if e["action"] == "promote-model")
    assert "misses <less>" in entry["detail"] and entry["who"] and "PID" not in entry["detail"]
    page = client.get("/shadow").text
    assert "misses &lt;less&gt;" in page and "Go back to it" in page
    assert "the shadow model is the active one" in page.lower()
    assert "active 1.0 was the active model; now it is other 2.0" in page
    assert press(client, "/shadow/promote", sha256=OTHER.sha256, reason="again") == 409
    assert press(client, "/shadow/rollback", reason="too slow") == 303
    assert node.records.promotions.active("default").promoted is None
    models = client.get("/api/v1/models").json()
    assert models["active"]["sha256"] == ACTIVE.sha256
    assert [one["reason"] for one in models["history"]] == ["too slow", "misses <less>"]
    found = node.records.jobs.latest_of_study("1.1")[0].findings
    assert found and found.model == ACTIVE, "what was found stays"


def test_only_admins_promote(node: Shadowed) -> None:
    some_pairs(node)
    secret = hashed("correct horse battery")
    node.records.people.add("victor", Role.VIEWER, secret, time.time())
    node.records.people.add("anna", Role.ADMIN, secret, time.time())
    app = make_app(node.settings, node.records)
    answers = {}
    for who, role in (("victor", Role.VIEWER), ("anna", Role.ADMIN)):
        token = new_token()
        node.records.people.add_token(digest(token), who, role, "t", (time.time(), time.time() + 60))
        client = TestClient(
            app, base_url="http://127.0.0.1:8080", headers={"Authorization": f"Bearer {token}"}
        )
        said = {"sha256": OTHER.sha256, "reason": "better"}
        answers[who] = client.post("/api/v1/models/promote", json=said).status_code
        assert client.post("/api/v1/models/promote", json={**said, "reason": ""}).status_code in (403, 422)
    assert answers == {"victor": 403, "anna": 200}
    last = node.records.promotions.last()
    assert last and last.who == "anna"


def test_two_admins_at_once_do_not_both_win(node: Shadowed) -> None:
    works(node)
    some_pairs(node)
    stale = node.records.promotions.last
    promote(node.settings, node.records, ANNA, OTHER.sha256, "better", time.time())
    node.records.promotions.last = lambda: None  # type: ignore[method-assign]  # looked before the other wrote
    with pytest.raises(IllegalTransition, match="just now"):
        promote(node.settings, node.records, ANNA, OTHER.sha256, "me too", time.time())
    node.records.promotions.last = stale  # type: ignore[method-assign]
    assert len(node.records.promotions.history()) == 1


def test_a_model_that_never_read_here_cannot_be_promoted(node: Shadowed) -> None:
    with pytest.raises(IllegalTransition, match="has read a series here"):
        promote(node.settings, node.records, ANNA, "f" * 64, "hope", time.time())
    with pytest.raises(IllegalTransition, match="no promotion is in force"):
        roll_back(node.settings, node.records, ANNA, "regret", time.time())


def test_editing_the_settings_sets_a_promotion_aside_and_says_so(client: TestClient, node: Shadowed) -> None:
    works(node)
    some_pairs(node)
    promote(node.settings, node.records, ANNA, OTHER.sha256, "better", time.time())
    edited = node.settings.model_copy(update={"model": Model(pipeline="/models/third.json")})
    stands = standing(edited, node.records, time.time())
    assert stands.active.pipeline == "/models/third.json" and stands.back_to is None
    page = browser(edited, node.records)
    assert "was changed after that: the settings count" in page.get("/shadow").text


def test_a_worker_that_refuses_stands_on_every_page_and_in_readyz(client: TestClient, node: Shadowed) -> None:
    works(node, refuses="other 2.0, promoted by anna, cannot be loaded on this host")
    page = client.get("/").text
    assert "takes no work" in page and "cannot be loaded on this host" in page
    assert "worker" in client.get("/readyz").json()["missing"]
    metrics = client.get("/metrics").text
    assert "ichnode_model_trouble 1.0" in metrics and 'ichnode_processes_alive{role="worker"} 0' in metrics


def test_workers_that_do_not_follow_are_named(node: Shadowed) -> None:
    works(node)
    some_pairs(node)
    now = time.time()
    promote(node.settings, node.records, ANNA, OTHER.sha256, "better", now - 300)
    assert any("worker@h:1" in text for text in standing(node.settings, node.records, now).trouble)
    works(node, OTHER)
    assert standing(node.settings, node.records, time.time()).trouble == ()


def test_figures_for_prometheus(client: TestClient, node: Shadowed) -> None:
    works(node)
    some_pairs(node)
    node.analysed("2.1")
    node.line.round(time.time())
    node.site.queued("3.1")
    lines = client.get("/metrics").text.splitlines()
    assert 'ichnode_shadow_readings{state="done"} 4' in lines
    assert 'ichnode_shadow_readings{state="waiting"} 1' in lines
    assert 'ichnode_shadow_readings{state="failed"} 0' in lines
    assert (
        'ichnode_queue_waiting{turn="routine"} 1' in lines and 'ichnode_queue_waiting{turn="stat"} 0' in lines
    )
    assert f'ichnode_model_active{{name="active",version="1.0",digest="{"a" * 64}",promoted="0"}} 1' in lines


def test_the_command_line_does_the_same(node: Shadowed, no_settings_around: Path) -> None:
    works(node)
    some_pairs(node)
    config = no_settings_around / "ichnode.toml"
    config.write_text(
        f"data_dir = {json.dumps(str(node.settings.data_dir))}\n[shadow]\npipeline = '/models/other.json'\n"
    )

    def said(*words: str) -> str:
        outcome = CliRunner().invoke(main, [*words], env={"COLUMNS": "250"})
        assert outcome.exit_code == 0, outcome.output
        return outcome.output

    assert "active: active 1.0 aaaaaaaaaaaa" in said("shadow")
    assert json.loads(said("shadow", "--json"))["classes"]["any"]["cross"]["total"] == 4
    assert "is the active model from now on" in said("shadow", "promote", "bbbbbbbb", "--reason", "better")
    assert "promoted by command line" in said("models") and "better" in said("shadow", "history")
    assert "active 1.0" in said("shadow", "rollback", "--reason", "worse")
    assert "4 series" in said("shadow", "export", str(no_settings_around / "out.csv"))
    file = str(no_settings_around / "other.csv")
    for words in (("shadow", "--pair", "aa:cc"), ("shadow", "export", file, "--pair", "aa:cc")):
        refused = CliRunner().invoke(main, words)
        assert refused.exit_code == 1 and "no pair of models 'aa:cc'" in refused.output
        assert f"{'a' * 64}:{'b' * 64}" in refused.output
    refused = CliRunner().invoke(main, ["shadow", "promote", "bbb", "--reason", "x"])
    assert refused.exit_code == 1 and "other bbbbbbbbbbbb" in refused.output

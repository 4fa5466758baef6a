"""The JSON against its own OpenAPI description: schemathesis asks what nobody thought of.

Every operation, some requests each, on a node with studies; all of it by hand:
`schemathesis run URL/api/v1/openapi.json -H "Authorization: Bearer TOKEN"`.
"""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings

from node.admin.passwords import digest, hashed, new_token
from node.admin.web.app import make_app
from node.domain.findings import Reason
from node.domain.permissions import Role
from node.settings import Settings
from node.store.records import Records
from tests.site import SUBDURAL, Site

schemathesis = pytest.importorskip("schemathesis")
TOKEN = new_token()
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Host": "127.0.0.1:8080"}
EXAMPLES = 4
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def api(settings: Settings, records: Records) -> Any:
    """The description that the node itself hands out."""
    site, now = Site(records, settings), time.time()
    site.composed("1.1", SUBDURAL)
    site.failed("1.2", Reason("NO_VOLUME", "no volume"))
    site.given_up("1.3", SUBDURAL)
    records.people.add("anna", Role.ADMIN, hashed("correct horse battery"), now)
    records.people.add_token(digest(TOKEN), "anna", Role.ADMIN, "tests", (now, now + 3600))
    app = make_app(settings, records)
    return schemathesis.openapi.from_asgi("/api/v1/openapi.json", app, headers=HEADERS)


def test_it_answers_as_it_says(api: Any) -> None:
    """No server error; and every status, type and body is one of those described."""
    checks = schemathesis.checks
    wanted = [
        checks.not_a_server_error,
        checks.status_code_conformance,
        checks.response_schema_conformance,
        checks.content_type_conformance,
    ]
    asked: set[str] = set()
    for found in api.get_all_operations():
        operation = found.ok()
        if not operation.path.startswith("/api/"):
            continue  # /readyz says 503 where no role is alive, and means it

        @hypothesis_settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            case.call_and_validate(headers=HEADERS, checks=wanted)

        ask()
        asked.add(operation.label)
    assert {"GET /api/v1/studies", "POST /api/v1/missing/fetch", "GET /api/v1/status"} <= asked


def test_a_method_that_a_path_does_not_have_is_told_all_it_has(client: TestClient) -> None:
    answer = client.options("/api/v1/pauses/queue")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "DELETE, PUT")
    assert client.delete("/api/v1/studies").headers["Allow"] == "GET"


def test_a_whole_number_may_have_a_point(client: TestClient) -> None:
    """JSON knows one kind of number (RFC 8259); 1.5 and 1e99 are refused below."""
    token = re.search(r'name="csrf" content="(\w+)"', client.get("/").text)
    assert token
    answer = client.post(
        "/api/v1/missing/fetch", content='{"ids": [7.0]}', headers={"X-CSRF-Token": token[1]} | JSON
    )
    assert (answer.status_code, answer.json()) == (200, {"changed": 0})


@pytest.mark.parametrize("path", ["missing/fetch", "missing/dismiss", "deliveries/retry"])
def test_a_number_that_no_row_can_have_is_refused(client: TestClient, path: str) -> None:
    token = re.search(r'name="csrf" content="(\w+)"', client.get("/").text)
    assert token
    for number in (1e99, 2**31, -1, 4803619408735031812782326546432, True, 1.5, "1"):
        answer = client.post(f"/api/v1/{path}", json={"ids": [number]}, headers={"X-CSRF-Token": token[1]})
        assert answer.status_code == 422, f"{number}: {answer.text}"

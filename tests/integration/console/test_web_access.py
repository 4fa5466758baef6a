"""Who gets in, who may do what, what leaves a trace: every route, with and without a login."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient
from sqlalchemy import delete, insert, update
from sqlalchemy.exc import DBAPIError

from node.admin import passwords
from node.admin.cli import main
from node.admin.reach import allowed_hosts, check_reachable
from node.admin.web import login
from node.admin.web.app import make_app, needs, routes
from node.admin.web.gate import COOKIE
from node.domain.errors import SettingsError
from node.domain.permissions import Role, lesser
from node.settings import Proxy, Settings, Web
from node.store import tables
from node.store.audit import Actor
from node.store.engine import open_engine
from node.store.records import Records
from tests.postgres import Postgres
from tests.site import SUBDURAL, Site

SECRET = "correct horse battery"
STORED = passwords.hashed(SECRET)
HTML = {"Accept": "text/html"}
Browser = Callable[..., TestClient]


@pytest.fixture
def node(records: Records) -> Records:
    """Records with an admin, anna, and a viewer, victor."""
    records.people.add("anna", Role.ADMIN, STORED, time.time())
    records.people.add("victor", Role.VIEWER, STORED, time.time())
    return records


@pytest.fixture
def browser(settings: Settings, node: Records) -> Browser:
    def make(web: Web | None = None, client: tuple[str, int] = ("192.0.2.7", 5000)) -> TestClient:
        app = make_app(settings.model_copy(update={"web": web or settings.web}), node)
        base = "http://127.0.0.1:8080"
        return TestClient(app, base_url=base, headers=HTML, follow_redirects=False, client=client)

    return make


def csrf_of(page: str) -> str:
    found = re.search(r'name="csrf" (?:content|value)="(\w+)"', page)
    assert found
    return found[1]


def log_in(client: TestClient, name: str, secret: str = SECRET, target: str = "/") -> int:
    token = csrf_of(client.get("/login").text)
    form = {"csrf": token, "name": name, "password": secret, "next": target}
    return client.post("/login", data=form).status_code


def logged_in(browser: Browser, name: str) -> TestClient:
    client = browser()
    assert log_in(client, name) == 303
    return client


def address(path: str) -> str:
    """A route's path with something in place of its parameters."""
    return re.sub(r"\{(\w+)[^}]*\}", lambda found: "1" if found[1] in ("number", "index") else "x", path)


def test_every_route_asks_for_its_role_and_its_token(browser: Browser) -> None:
    stranger, victor, anna = browser(), logged_in(browser, "victor"), logged_in(browser, "anna")
    seen = dict.fromkeys(("anybody", "viewer", "admin"), 0)
    for route in routes(anna.app):  # type: ignore[arg-type]
        needed = needs(route)
        seen[needed] += 1
        for method in route.methods:
            path = address(route.path)
            if path == "/logout":
                continue
            plain = {"Accept": "application/json"}
            refused = stranger.request(method, path, headers=plain).status_code
            if needed != "anybody":
                assert refused == 401, (method, path)
            elif method == "POST":
                assert refused == 403, (method, path)
            for client, role in ((victor, Role.VIEWER), (anna, Role.ADMIN)):
                status = client.request(method, path, headers=plain).status_code
                may = needed != "admin" or role is Role.ADMIN
                if not may or method != "GET":
                    assert status == 403, (method, path, role)  # no anti-forgery token was sent
                else:
                    assert status not in (401, 403), (method, path, role)
    assert seen["admin"] > 12 and seen["viewer"] > 12 and seen["anybody"] == 5


def test_a_viewer_with_a_good_token_still_may_not_administer(browser: Browser, node: Records) -> None:
    job = Site(node).composed("1.1", SUBDURAL)
    victor = logged_in(browser, "victor")
    page = victor.get("/").text
    assert "Audit trail" not in page
    token = {"X-CSRF-Token": csrf_of(page)}
    assert victor.post(f"/acknowledge/{job}", headers=token).status_code == 303
    for path in (f"/jobs/reanalyse/{job}", "/pause/queue", "/deliveries/retry", "/echo/pacs"):
        assert victor.post(path, headers=token).status_code == 403
    assert victor.get("/audit").status_code == 403
    assert node.pauses.all() == {}


def test_a_page_without_a_login_leads_to_it_and_back(browser: Browser) -> None:
    client = browser()
    answer = client.get("/study/1.1?series=1")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/login?next=%2Fstudy%2F1.1%3Fseries%3D1"
    token = csrf_of(client.get("/login").text)
    form = {"csrf": token, "name": "anna", "password": SECRET, "next": "/study/1.1?series=1"}
    assert client.post("/login", data=form).headers["location"] == "/study/1.1?series=1"
    assert client.get("/login").status_code == 303


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example", "/\\evil.example", "/\tx", "javascript:alert(1)", ""]
)
def test_a_login_never_leads_to_another_site(target: str) -> None:
    assert login.safe_target(target) == "/"


def test_a_wrong_password_tells_nothing_and_is_in_the_trail(browser: Browser, node: Records) -> None:
    client = browser()
    for name in ("anna", "nobody", SECRET):
        token = csrf_of(client.get("/login").text)
        answer = client.post("/login", data={"csrf": token, "name": name, "password": "wrong password"})
        assert answer.status_code == 401
        assert "Name or password is wrong." in answer.text
    assert [entry["who"] for entry in node.audit.entries()] == ["unknown", "unknown", "anna"]


def test_guessing_is_slowed_down_by_address_and_by_user(node: Records) -> None:
    now = time.time()
    for _ in range(5):
        assert login.log_in(node, "anna", "wrong password", "192.0.2.1", now).status == 401
    assert login.log_in(node, "anna", SECRET, "192.0.2.1", now).status == 429
    assert login.log_in(node, "victor", SECRET, "192.0.2.1", now).status == 429  # the address waits
    assert login.log_in(node, "anna", SECRET, "192.0.2.2", now).status == 429  # so does the name
    assert login.log_in(node, "victor", SECRET, "192.0.2.2", now).status == 200
    assert login.log_in(node, "anna", SECRET, "192.0.2.1", now + 2).status == 200
    assert login.log_in(node, "anna", "wrong password", "192.0.2.1", now + 2).status == 401
    waits = [node.people.try_login({"address:x": 900.0}, now) for _ in range(6)]
    assert waits[:5] == [0.0] * 5 and waits[5] > 0
    assert node.people.try_login({"address:x": 900.0}, now - 7200) == 0.0, "a clock set back locks nobody out"


COMPOSED, TAKEN_APART = "j\u00f6rg", "jo\u0308rg"


@pytest.mark.parametrize(("added", "typed"), [(COMPOSED, TAKEN_APART), (TAKEN_APART, COMPOSED)])
def test_a_name_is_the_same_however_its_letters_are_composed(
    added: str, typed: str, browser: Browser, node: Records
) -> None:
    """One system's keyboard writes ö, another's o with a diaeresis: nobody sees a difference."""
    node.people.add(added, Role.ADMIN, STORED, time.time())
    client = browser()
    assert log_in(client, typed) == 303
    assert client.get("/audit").status_code == 200, "with the session of the user who was added"
    for _ in range(5):
        assert login.log_in(node, typed, "wrong password", "192.0.2.1", time.time()).status == 401
    assert login.log_in(node, added, SECRET, "192.0.2.2", time.time()).status == 429


def test_guessing_for_days_locks_nobody_out(node: Records) -> None:
    """Once a minute, as a script with an old password does: 17 hours are a thousand tries."""
    now = time.time()
    with node.engine.begin() as connection:
        row = {"key": "user:anna", "count": 1200, "next_at": now - 1}
        connection.execute(insert(tables.login_failures).values(**row))
    assert login.log_in(node, "anna", "wrong password", "192.0.2.1", now).status == 401
    assert login.log_in(node, "anna", SECRET, "192.0.2.2", now + 61).status == 200


@pytest.fixture
def on_postgres(settings: Settings, postgres: Postgres, blank_postgres: str) -> Iterator[TestClient]:
    """A browser on the machine of a node without users, on PostgreSQL."""
    url = postgres.create(blank_postgres)
    records = Records(open_engine(url))
    with TestClient(make_app(settings, records), base_url="http://127.0.0.1:8080", headers=HTML) as client:
        yield client
    records.close()
    postgres.drop(url)


@pytest.mark.parametrize(
    "path",
    [
        "/?q=%00",
        "/study/a%00b",
        f"/study/{'1.' * 100}1",
        "/header/%00",
        "/audit?who=%00",
        "/api/v1/studies/%00",
    ],
)
def test_what_no_column_can_hold_is_refused_in_words(on_postgres: TestClient, path: str) -> None:
    """PostgreSQL knows no NUL, and no text longer than its column."""
    answer = on_postgres.get(path)
    assert answer.status_code == 400 and "too long, too large" in answer.text


def test_forms_with_what_no_column_can_hold_are_refused_in_words(on_postgres: TestClient) -> None:
    token = csrf_of(on_postgres.get("/").text)
    for path, form in (
        ("/deliveries/retry", {"ids": "99999999999999"}),
        ("/gaps/fetch", {"ids": "99999999999999"}),
        ("/login", {"name": "a\0b", "password": "x"}),
    ):
        assert on_postgres.post(path, data={"csrf": token, **form}).status_code == 400, path


def test_a_session_ends_by_logout_time_password_and_removal(browser: Browser, node: Records) -> None:
    def open_pages(client: TestClient) -> bool:
        return client.get("/queue").status_code == 200

    anna = logged_in(browser, "anna")
    stolen = anna.cookies[COOKIE]
    anna.post("/logout", headers={"X-CSRF-Token": csrf_of(anna.get("/").text)})
    thief = browser()
    thief.cookies.set(COOKIE, stolen, domain="127.0.0.1")
    assert not open_pages(anna) and not open_pages(thief)
    anna = logged_in(browser, "anna")
    assert open_pages(anna)
    with node.engine.begin() as connection:
        connection.execute(update(tables.web_sessions).values(expires_at=time.time() - 1))
    assert not open_pages(anna)
    for end in (lambda: node.people.set_password("victor", STORED), lambda: node.people.remove("victor")):
        victor = logged_in(browser, "victor")
        assert open_pages(victor)
        end()
        assert not open_pages(victor)


def test_the_cookie_is_signed_renewed_at_login_and_out_of_reach_of_scripts(browser: Browser) -> None:
    client = browser()
    first = client.get("/login").headers["set-cookie"]
    assert "HttpOnly" in first and "SameSite=lax" in first
    planted = client.cookies[COOKIE]
    assert log_in(client, "anna") == 303
    assert client.cookies[COOKIE] != planted
    token, _, signature = client.cookies[COOKIE].rpartition(".")
    forged = browser()
    forged.cookies.set(COOKIE, f"{token}.{'0' * len(signature)}", domain="127.0.0.1")
    assert forged.get("/queue").status_code == 303


def test_a_form_from_elsewhere_is_refused(browser: Browser, node: Records) -> None:
    anna = logged_in(browser, "anna")
    token = csrf_of(anna.get("/").text)
    other = csrf_of(logged_in(browser, "victor").get("/").text)
    assert anna.post("/pause/queue").status_code == 403
    assert anna.post("/pause/queue", data={"csrf": other}).status_code == 403
    crossed = {"Sec-Fetch-Site": "cross-site"}
    assert anna.post("/pause/queue", data={"csrf": token}, headers=crossed).status_code == 403
    assert node.pauses.all() == {}
    assert anna.post("/pause/queue", data={"csrf": token}).status_code == 303
    assert list(node.pauses.all()) == ["queue"]


def test_a_token_does_no_more_than_it_and_its_user_may(browser: Browser, node: Records) -> None:
    now = time.time()

    def bearer(name: str, role: Role, until: float = now + 60) -> dict[str, str]:
        token = passwords.new_token()
        node.people.add_token(passwords.digest(token), name, role, "", (now, until))
        return {"Authorization": f"Bearer {token}"}

    client = browser()
    assert client.get("/api/v1/audit", headers=bearer("anna", Role.ADMIN)).status_code == 200
    assert client.get("/api/v1/audit", headers=bearer("anna", Role.VIEWER)).status_code == 403
    assert client.get("/api/v1/audit", headers=bearer("victor", Role.ADMIN)).status_code == 403
    assert client.get("/api/v1/status", headers=bearer("anna", Role.ADMIN, now - 1)).status_code == 401
    assert client.get("/api/v1/status", headers={"Authorization": "Bearer nonsense"}).status_code == 401
    good = bearer("anna", Role.ADMIN)
    node.people.revoke_token(max(token["id"] for token in node.people.tokens()))
    assert client.get("/api/v1/status", headers=good).status_code == 401
    assert lesser(Role.ADMIN, Role.VIEWER) is Role.VIEWER


def test_a_proxy_is_believed_from_its_own_address_alone(browser: Browser) -> None:
    web = Web(proxy=Proxy(user_header="X-Remote-User", addresses=("192.0.2.9",), role="viewer"))
    behind, beside = browser(web, ("192.0.2.9", 1)), browser(web, ("192.0.2.10", 1))
    stranger = {"X-Remote-User": "doctor"}
    assert behind.get("/queue", headers=stranger).status_code == 200
    assert behind.get("/audit", headers=stranger).status_code == 403
    assert behind.get("/audit", headers={"X-Remote-User": "anna"}).status_code == 200
    assert behind.get("/queue").status_code == 303
    assert beside.get("/queue", headers=stranger).status_code == 303
    assert beside.get("/queue", headers={**stranger, "X-Forwarded-For": "192.0.2.9"}).status_code == 303


def test_a_proxy_may_be_given_by_its_network_or_in_any_writing(browser: Browser) -> None:
    """Proxies of a cluster have addresses that change; a socket for IPv4 and IPv6 tells ::ffff:192.0.2.9."""
    for given, comes_from in (
        ("192.0.2.0/24", "192.0.2.9"),
        ("192.0.2.9", "::ffff:192.0.2.9"),
        ("2001:0db8::0001", "2001:db8::1"),
    ):
        web = Web(proxy=Proxy(user_header="X-Remote-User", addresses=(given,)))
        doctor = {"X-Remote-User": "doctor"}
        assert browser(web, (comes_from, 1)).get("/queue", headers=doctor).status_code == 200, given
        assert browser(web, ("198.51.100.1", 1)).get("/queue", headers=doctor).status_code == 303, given
    none = Web(proxy=Proxy(user_header="X-Remote-User", addresses=()))
    assert browser(none).get("/queue", headers=doctor).status_code == 303


def test_a_name_that_the_proxy_gives_is_read_as_it_is_written(settings: Settings, node: Records) -> None:
    """Proxies send UTF-8; a few ISO 8859-1, which RFC 9110 5.5 knows."""
    node.people.add("jürgen", Role.ADMIN, STORED, time.time())
    web = Web(proxy=Proxy(user_header="X-Remote-User", addresses=("192.0.2.7",)))
    client = TestClient(make_app(settings.model_copy(update={"web": web}), node), client=("192.0.2.7", 1))
    for name in ("jürgen".encode(), "jürgen".encode("latin-1")):
        page = client.get("/audit", headers={b"X-Remote-User": name, b"Accept": b"text/html"})  # type: ignore[dict-item]
        assert page.status_code == 200 and "jürgen" in page.text


@pytest.mark.parametrize("cookie", [b"\xe9", b"a.\xe9", b"\xff.\xff", b"."])
def test_a_cookie_of_any_bytes_is_none_of_ours(browser: Browser, cookie: bytes) -> None:
    stranger = browser().get("/", headers={b"Cookie": COOKIE.encode() + b"=" + cookie})  # type: ignore[dict-item]
    assert stranger.status_code == 401 or stranger.headers["location"].startswith("/login")


def test_an_address_others_can_reach_needs_a_login(settings: Settings, node: Records) -> None:
    check_reachable(settings.model_copy(update={"web": Web(host="0.0.0.0")}), node)
    node.people.remove("anna")
    node.people.remove("victor")
    check_reachable(settings, node)
    for host in ("0.0.0.0", "::", "10.0.0.5", "node.example"):
        with pytest.raises(SettingsError, match="ichnode users add"):
            check_reachable(settings.model_copy(update={"web": Web(host=host)}), node)
    proxied = Web(host="0.0.0.0", proxy=Proxy(user_header="X-Remote-User"))
    check_reachable(settings.model_copy(update={"web": proxied}), node)
    assert allowed_hosts(proxied) == ["*"]
    open_to_all = TestClient(make_app(settings.model_copy(update={"web": Web(host="0.0.0.0")}), node))
    assert open_to_all.get("/api/v1/status").status_code == 401  # should the last user be removed meanwhile


def test_seeing_and_doing_leave_a_line_without_the_patients_name(browser: Browser, node: Records) -> None:
    job = Site(node).composed("1.1", SUBDURAL, patient_name="Doe^Jane")
    victor = logged_in(browser, "victor")
    page = victor.get("/").text
    assert "Doe Jane" in page
    victor.get("/study/1.1")
    victor.get("/", headers={"HX-Request": "true"})  # the page refreshing itself
    victor.get("/worklist.csv")
    victor.post(f"/agree/{job}", headers={"X-CSRF-Token": csrf_of(page)})
    entries = node.audit.entries()
    seen = [(entry["who"], entry["action"], entry["study_instance_uid"]) for entry in reversed(entries)]
    assert seen == [
        ("victor", "login", None),
        ("victor", "worklist", None),
        ("victor", "study", "1.1"),
        ("victor", "export", None),
        ("victor", "agree", "1.1"),
    ]
    assert {entry["address"] for entry in entries} == {"192.0.2.7"}
    assert "Doe" not in str(entries)
    anna = logged_in(browser, "anna")
    assert "agree" in anna.get("/audit").text
    assert [e["action"] for e in node.audit.entries(study_uid="1.1")] == ["agree", "study"]


PATIENTS = ("/", "/study/1.1", "/queue", "/missing", "/quality", "/shadow", "/picture/0/1.1.1",
            "/thumbnail/1.1.1", "/api/v1/jobs", "/api/v1/deliveries", "/api/v1/alerts",
            "/api/v1/workitems")  # fmt: skip


@pytest.mark.parametrize("path", PATIENTS)
def test_whatever_a_request_says_of_itself_no_look_at_patients_goes_without_a_line(
    path: str, browser: Browser, node: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    Site(node).composed("1.1", SUBDURAL)
    monkeypatch.setattr("node.admin.web.pictures.Pictures.slice", lambda *_: b"")
    monkeypatch.setattr("node.admin.web.pictures.Pictures.thumbnail", lambda *_: b"")

    def looks(client: TestClient) -> int:
        before = len(node.audit.entries(1000))
        assert client.get(path, headers={"HX-Request": "true"}).status_code == 200
        return len(node.audit.entries(1000)) - before

    victor = logged_in(browser, "victor")
    assert [looks(victor), looks(victor)] == [1, 0]  # the second is the page that refreshes itself
    anna = logged_in(browser, "anna")
    assert looks(anna) == 1
    monkeypatch.setattr("node.admin.web.looks.LASTS_S", 0.0)
    assert looks(victor) == 1


def test_the_line_of_a_worklist_is_that_of_its_thumbnails(
    browser: Browser, node: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """…of those it shows, to whom it shows them; a study's page opened afterwards is a look of its own."""
    site = Site(node)
    for number, study in enumerate(("1.1", "1.2")):
        site.composed(study, SUBDURAL, accession_number=f"A{number}")
    monkeypatch.setattr("node.admin.web.pictures.Pictures.thumbnail", lambda *_: b"")
    victor = logged_in(browser, "victor")
    victor.get("/?q=A0")
    for path in ("/thumbnail/1.1.1", "/thumbnail/1.2.1", "/study/1.1", "/thumbnail/1.1.1"):
        assert victor.get(path).status_code == 200
    logged_in(browser, "anna").get("/thumbnail/1.1.1")
    seen = [(e["who"], e["action"], e["study_instance_uid"]) for e in reversed(node.audit.entries())]
    assert [one for one in seen if one[1] != "login"] == [
        ("victor", "worklist", None),
        ("victor", "picture", "1.2"),
        ("victor", "study", "1.1"),
        ("anna", "picture", "1.1"),
    ]


def test_another_search_is_another_look(browser: Browser, node: Records) -> None:
    victor = logged_in(browser, "victor")
    for q in ("A1", "A2", "A1"):
        victor.get(f"/?q={q}", headers={"HX-Request": "true"})
    assert [e["action"] for e in node.audit.entries()] == ["worklist", "worklist", "login"]


def test_nothing_in_the_trail_can_be_changed(records: Records) -> None:
    records.audit.write(Actor("anna", "admin", ""), "login", 1.0)
    for statement in (update(tables.audit).values(who="victor"), delete(tables.audit)):
        with pytest.raises(DBAPIError, match="append-only"), records.engine.begin() as connection:
            connection.execute(statement)
    assert [entry["who"] for entry in records.audit.entries()] == ["anna"]


def test_people_on_each_database(records: Records) -> None:
    people, now = records.people, 1000.0
    assert not people.any()
    people.add("anna", Role.ADMIN, "x", now)
    with pytest.raises(SettingsError, match="already"):
        people.add("anna", Role.VIEWER, "y", now)
    people.open_session("s", "anna", now, now + 10)
    assert people.of_session("s", now) == ("anna", Role.ADMIN)
    assert people.of_session("s", now + 11) is None
    assert people.try_login({"user:anna": 60.0}, now) == 0.0
    people.succeeded(["user:anna"])
    people.remove("anna")
    assert people.of_session("s", now) is None
    with pytest.raises(SettingsError, match="ichnode users list"):
        people.remove("anna")
    assert people.key() == people.key()
    assert len(people.key()) == 32


def test_a_long_body_is_refused(browser: Browser) -> None:
    anna = logged_in(browser, "anna")
    answer = anna.post("/deliveries/retry", data={"ids": "1," * 200_000})
    assert answer.status_code in (400, 413)


def test_passwords_are_salted_slow_and_told_apart_in_any_spelling() -> None:
    assert passwords.hashed(SECRET) != STORED
    assert passwords.matches(SECRET, STORED)
    assert not passwords.matches("correct horse batterx", STORED)
    assert not passwords.matches(SECRET, "no hash")
    assert passwords.matches("pass wört lang", passwords.hashed("pass wo\u0308rt lang"))
    for weak in ("short", "x" * 201, "aaaaaaaaaaaa", "anna123456"):
        with pytest.raises(SettingsError):
            passwords.check_strength(weak, "anna")


def test_users_are_kept_by_the_command_line(tmp_path: Path, no_settings_around: Path) -> None:
    def ichnode(*words: str, typed: str = "") -> tuple[int, str]:
        done = CliRunner().invoke(main, [*words, "--data-dir", str(tmp_path / "data")], input=typed)
        return done.exit_code, done.output

    add = ("users", "add", "anna", "--role", "admin", "--password-stdin")
    assert "choose another one" in ichnode(*add, typed="short\n")[1]
    assert ichnode(*add, typed=f"{SECRET}\n")[0] == 0
    assert ichnode(*add, typed=f"{SECRET}\n")[0] == 1
    assert "admin" in ichnode("users", "list")[1]
    code, shown = ichnode("users", "token", "anna", "--label", "grafana")
    assert code == 0 and "ichnode_" in shown
    assert "grafana" in ichnode("users", "tokens")[1]
    assert ichnode("users", "revoke", "1")[0] == 0
    assert ichnode("users", "passwd", "anna", "--password-stdin", typed=f"{SECRET}!\n")[0] == 0
    assert ichnode("users", "add", "local", "--password-stdin", typed=f"{SECRET}\n")[0] == 1
    assert ichnode("users", "remove", "anna")[0] == 0
    assert ichnode("users", "add", COMPOSED, "--password-stdin", typed=f"{SECRET}\n")[0] == 0
    assert ichnode("users", "add", TAKEN_APART, "--password-stdin", typed=f"{SECRET}\n")[0] == 1
    assert ichnode("users", "token", TAKEN_APART)[0] == 0
    assert ichnode("users", "passwd", TAKEN_APART, "--password-stdin", typed=f"{SECRET}!\n")[0] == 0
    assert ichnode("users", "remove", TAKEN_APART)[0] == 0
    assert ichnode("users", "revoke", "99")[0] == ichnode("users", "token", "nobody")[0] == 1, "no line of it"
    trail = ichnode("audit", "--json")[1]
    assert [line.split('"action": "')[1].split('"')[0] for line in trail.splitlines()] == [
        "add-user", "add-token", "revoke-token", "new-password", "remove-user",
        "add-user", "add-token", "new-password", "remove-user",
    ]  # fmt: skip
    assert SECRET not in trail


class TestAddresses:
    """web.addresses comes before everything else, the files under /static included."""

    def test_from_elsewhere_nothing_is_answered_not_even_a_login(
        self, browser: Browser, node: Records
    ) -> None:
        web = Web(addresses=("192.0.2.0/24", "2001:db8::/32"))
        assert browser(web).get("/login").status_code == 200
        assert browser(web, client=("2001:db8::9", 5000)).get("/login").status_code == 200
        stranger = browser(web, client=("198.51.100.9", 5000))
        for path in ("/login", "/", "/api/v1/studies", "/static/style.css", "/nowhere"):
            answer = stranger.get(path, headers={"X-Forwarded-For": "192.0.2.7"})
            assert answer.status_code == 403 and "web.addresses" in answer.text
        refused = [row for row in node.audit.entries() if row["action"] == "refused-visitor"]
        assert [row["address"] for row in refused] == ["198.51.100.9"], "once, however often it knocks"

"""Settings: the Contract's defaults, the file, the environment, and every mistake told by its key."""

from __future__ import annotations

import io
import re
import socket
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError
from rich.console import Console

from node.admin.listing import banner
from node.domain.errors import SettingsError
from node.settings import Destination, Settings, Web, load

pytestmark = pytest.mark.usefixtures("no_settings_around")


def load_text(folder: Path, text: str) -> Settings:
    file = folder / "node.toml"
    file.write_text(text, encoding="utf-8")
    return load(file)


def test_defaults_are_those_of_the_contract() -> None:
    settings = load()
    assert settings.data_dir == Path("ichnode-data")
    scp = settings.scp
    assert (scp.ae_title, scp.host, scp.port, scp.processes) == ("ICHNODE", "127.0.0.1", 11112, 2)
    assert scp.calling_ae_titles == ()
    assert (scp.tls.cert, scp.tls.key, scp.tls.ca) == ("", "", "")
    assert (settings.completeness.quiet_s, settings.completeness.max_wait_s) == (10, 120)
    assert settings.database.url == "" and settings.broker.url == ""
    assert (settings.model.pipeline, settings.model.device) == ("default", "auto")
    assert (settings.web.host, settings.web.port) == ("127.0.0.1", 8080)
    assert settings.destination == () and settings.alert == ()
    pacs = Destination(name="pacs", ae_title="ORTHANC")
    assert pacs.outputs == ("sr", "seg", "sc") and not pacs.commitment


def test_the_example_of_the_contract_is_accepted(tmp_path: Path) -> None:
    text = """
data_dir = "here"
[scp]
ae_title = "TRIAGE"
host = "0.0.0.0"
port = 104
calling_ae_titles = ["CT1", "CT2"]
tls = { cert = "", key = "", ca = "" }
[completeness]
quiet_s = 3
max_wait_s = 60.5
[database]
url = "postgresql+psycopg://ichnode@db/ichnode"
[broker]
url = "redis://redis:6379/0"
[[destination]]
name = "pacs"
ae_title = "ORTHANC"
host = "10.0.0.1"
port = 4242
outputs = ["sr"]
[[destination]]
name = "viewer"
ae_title = "VIEWER"
"""
    settings = load_text(tmp_path, text)
    assert settings.scp.calling_ae_titles == ("CT1", "CT2")
    assert settings.database_url == "postgresql+psycopg://ichnode@db/ichnode"
    assert [d.name for d in settings.destination] == ["pacs", "viewer"]
    assert settings.destination[0].outputs == ("sr",)
    assert settings.completeness.max_wait_s == 60.5


def test_the_file_in_the_working_directory_is_read_without_being_named(tmp_path: Path) -> None:
    (tmp_path / "ichnode.toml").write_text("[scp]\nport = 4104\n")
    assert load().scp.port == 4104


def test_the_file_named_in_the_environment_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ichnode.toml").write_text("[scp]\nport = 4104\n")
    (tmp_path / "other.toml").write_text("[scp]\nport = 4105\n")
    monkeypatch.setenv("ICHNODE_CONFIG", str(tmp_path / "other.toml"))
    assert load().scp.port == 4105
    assert load(tmp_path / "ichnode.toml").scp.port == 4104


def test_the_environment_wins_over_the_file_and_leaves_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICHNODE_SCP__PORT", "11113")
    monkeypatch.setenv("ICHNODE_COMPLETENESS__QUIET_S", "1.5")
    monkeypatch.setenv("ICHNODE_LOG_LEVEL", "DEBUG")
    settings = load_text(tmp_path, '[scp]\nport = 1\nae_title = "TRIAGE"\n')
    assert (settings.scp.port, settings.scp.ae_title) == (11113, "TRIAGE")
    assert settings.completeness.quiet_s == 1.5
    assert settings.log_level == "DEBUG"


def test_lists_and_tables_may_be_given_as_toml_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICHNODE_SCP__CALLING_AE_TITLES", '["CT1", "CT2"]')
    monkeypatch.setenv("ICHNODE_SCP__TLS", '{ cert = "c.pem", key = "k.pem" }')
    monkeypatch.setenv("ICHNODE_DESTINATION", '[{ name = "pacs", ae_title = "A", port = 4242 }]')
    settings = load()
    assert settings.scp.calling_ae_titles == ("CT1", "CT2")
    assert (settings.scp.tls.cert, settings.scp.tls.key) == ("c.pem", "k.pem")
    assert settings.destination[0].port == 4242


@pytest.mark.parametrize("text", ["CT1", "[CT1", '["CT1"'])
def test_a_list_that_is_none_is_an_error_that_names_the_key(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICHNODE_SCP__CALLING_AE_TITLES", text)
    with pytest.raises(SettingsError, match=r"scp\.calling_ae_titles"):
        load()


@pytest.mark.parametrize(
    "order", [("ICHNODE_SCP", "ICHNODE_SCP__PORT"), ("ICHNODE_SCP__PORT", "ICHNODE_SCP")]
)
def test_a_section_given_as_a_word_is_an_error_that_names_it(
    order: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in order:
        monkeypatch.setenv(key, "11113")
    with pytest.raises(SettingsError, match="ICHNODE_SCP"):
        load()


ONE = '[[destination]]\nname = "a"\nae_title = "A"\n'


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("colour = 1", "colour"),
        ("[scp]\nprot = 104", "scp.prot"),
        ("[scp.tls]\ncrt = 'x'", "scp.tls.crt"),
        ('[[destination]]\nname = "a"\nae_title = "A"\nprot = 1', "destination.0.prot"),
        ("[nonsense]\na = 1", "nonsense"),
        ('[scp]\nport = "abc"', "scp.port"),
        ("[scp]\nport = 0", "scp.port"),
        ("[scp]\nport = 65536", "scp.port"),
        ("[scp]\nprocesses = 0", "scp.processes"),
        ("[scp]\nprocesses = 1.5", "scp.processes"),
        ('[scp]\nae_title = ""', "scp.ae_title"),
        ('[scp]\nae_title = "SEVENTEEN_LETTERS"', "scp.ae_title"),
        ('[scp]\nae_title = "   "', "scp.ae_title"),
        ('[scp]\nae_title = "KÖLN"', "scp.ae_title"),
        ("[scp]\nae_title = 'A\\B'", "scp.ae_title"),
        ('[scp]\ncalling_ae_titles = ["CT1", "KÖLN"]', "scp.calling_ae_titles"),
        ('[[destination]]\nname = "a"\nae_title = "KÖLN"', "destination.0.ae_title"),
        ('[[destination]]\nname = "a"\nae_title = " "', "destination.0.ae_title"),
        ("[scp]\ncalling_ae_titles = 5", "scp.calling_ae_titles"),
        ("[completeness]\nquiet_s = -1", "completeness.quiet_s"),
        ("[completeness]\nquiet_s = nan", "completeness.quiet_s"),
        ("[model]\nmax_attempts = 0", "model.max_attempts"),
        ('[broker]\nurl = "redis://redis:63x9/0"', "broker.url"),
        ('[broker]\nurl = "redis://redis:99999/0"', "broker.url"),
        (
            '[broker]\nurl = "sentinel://a:26379;sentinel://b:263x9"\nmaster_name = "m"',
            "broker.url",
        ),
        ('[web.proxy]\nuser_header = "X-Remote-User"\naddresses = ["localhost"]', "web.proxy.addresses"),
        ('[[destination]]\nname = "a"', "ae_title is missing"),
        ('[[destination]]\nae_title = "A"', "destination.0.name"),
        ('[[destination]]\nname = "a"\nae_title = "A"\noutputs = ["pdf"]', "destination.0.outputs"),
        ('[[destination]]\nname = "a"\nae_title = "A"\nretry_base_s = 0', "destination.0.retry_base_s"),
        (ONE + 'transfer_syntax = "jpeg"', "destination.0.transfer_syntax"),
        (ONE + 'transfer_syntax = ["rle", "zip"]', "destination.0.transfer_syntax"),
        (ONE + "max_pdu_bytes = 100", "destination.0.max_pdu_bytes"),
        (ONE + 'tls = { key = "k.pem" }', "tls.key without tls.cert"),
        (ONE + 'token = "env:T"', "go with a url"),
        (ONE + 'url = "pacs.example.org"', "destination.0.url"),
        (ONE + 'url = "https://me:secret@pacs/dicom-web"', "destination.0.url"),
        (ONE + 'url = "https://pacs/dicom-web"\ntoken = "secret"', "destination.0.token"),
        (ONE + 'url = "http://pacs/dicom-web"\ntoken = "env:T"', "in the open"),
        (ONE + 'url = "http://localhost.evil/d"\ntoken = "env:T"', "in the open"),
        (ONE + 'url = "https://pacs/d"\nusername = "u"', "go together"),
        (ONE + 'url = "https://pacs/d"\nusername = "u"\npassword = "env:P"\ntoken = "env:T"', "not both"),
        (ONE + 'url = "https://pacs/d"\ncommitment = true', "storage commitment goes with C-STORE"),
        ('[[alert]]\ntype = "webhook"', "alert.0"),
        ('[[alert]]\ntype = "pigeon"', "'pigeon' found using 'type'"),
        ('log_level = "LOUD"', "log_level"),
        ("scp = 5", "scp"),
    ],
)
def test_a_mistake_is_an_error_that_names_the_key(text: str, key: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load_text(tmp_path, text)
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[scp]\nprot = 104", "is port meant?"),
        (ONE + "tls = { crt = 'x' }", "is cert meant?"),
        ("[spool]\ncolour = 1", "known are high_watermark, keep_days"),
        ('[[alert]]\ntype = "hl7"\nname = "a"\nhost = "x"\nprot = 1', "is port meant?"),
        ("completenes = {}", "is completeness meant?"),
    ],
)
def test_of_a_key_that_does_not_exist_is_said_which_may_be_meant(
    text: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError) as caught:
        load_text(tmp_path, text)
    assert f"there is no such setting; {words}" in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:pass@h/x",
        "postgresql://u:pass@h/x",
        "postgresql+psycopg://u:pass@h:5x/db",
        "pass",
        "h:5432",
    ],
)
def test_a_database_that_is_not_spoken_is_refused_without_its_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"database\.url.*write postgresql\+psycopg://") as caught:
        load_text(tmp_path, f'[database]\nurl = "{url}"')
    assert ":pass@" not in str(caught.value)


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load_text(tmp_path, '[scp]\nport = 0\nprot = 1\n[web]\nport = "x"\n')
    assert all(key in str(caught.value) for key in ("scp.port", "scp.prot", "web.port"))


def test_an_unknown_variable_of_the_environment_is_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICHNODE_SCP__PROT", "1")
    with pytest.raises(SettingsError, match=r"scp\.prot"):
        load()


def test_variables_of_the_tests_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICHNODE_REQUIRE_PEERS", "1")
    monkeypatch.setenv("ICHNODE_TEST_DATA", "somewhere")
    assert load() == Settings()


def test_destinations_of_one_name_are_an_error_that_says_the_name(tmp_path: Path) -> None:
    one = '[[destination]]\nname = "pacs"\nae_title = "A"\n'
    with pytest.raises(SettingsError, match="pacs, pacs"):
        load_text(tmp_path, one + one)


@pytest.mark.parametrize("tls", ['key = "k.pem"', 'ca = "ca.pem"', 'key = "k.pem", ca = "ca.pem"'])
def test_tls_without_a_certificate_is_an_error(tls: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"scp\.tls.*cert"):
        load_text(tmp_path, f"[scp]\ntls = {{ {tls} }}\n")


def test_a_file_that_was_asked_for_and_is_not_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match=r"absent\.toml does not exist"):
        load(tmp_path / "absent.toml")
    monkeypatch.setenv("ICHNODE_CONFIG", str(tmp_path / "gone.toml"))
    with pytest.raises(SettingsError, match=r"gone\.toml does not exist"):
        load()


@pytest.mark.parametrize("content", [b"[scp", b"port 1", b"a = '\xff'", b"a = 1\na = 2"])
def test_a_file_that_is_no_toml_is_an_error_that_names_it(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"broken\.toml cannot be read"):
        load(file)


def test_a_mark_before_the_first_line_is_no_part_of_it(tmp_path: Path) -> None:
    file = tmp_path / "ichnode.toml"
    file.write_text("[scp]\nport = 11119\n", encoding="utf-8-sig")
    assert load(file).scp.port == 11119


def test_a_folder_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load(tmp_path)


def test_data_dir_given_by_the_caller_wins_over_file_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICHNODE_DATA_DIR", "from-environment")
    file = tmp_path / "node.toml"
    file.write_text('data_dir = "from-file"\n')
    assert load(file).data_dir == Path("from-environment")
    assert load(file, data_dir=tmp_path / "given").data_dir == tmp_path / "given"


def test_sqlite_lies_in_data_dir_unless_a_database_is_named(tmp_path: Path) -> None:
    assert load(data_dir=tmp_path / "d").database_url == f"sqlite:///{tmp_path}/d/ichnode.sqlite3"


def test_settings_cannot_be_changed() -> None:
    settings = load()
    with pytest.raises(ValidationError):
        settings.scp.port = 1  # type: ignore[misc]


def test_a_destination_by_url_needs_no_ae_title(tmp_path: Path) -> None:
    text = '[[destination]]\nname = "web"\nurl = "https://pacs.example.org/dicom-web/"\ntoken = "env:TOKEN"\n'
    (web,) = load_text(tmp_path, text).destination
    assert web.url == "https://pacs.example.org/dicom-web"
    local = '[[destination]]\nname = "web"\nurl = "http://127.0.0.1:8042/dicom-web"\ntoken = "env:TOKEN"\n'
    assert load_text(tmp_path, local).destination[0].token == "env:TOKEN"


@pytest.mark.parametrize(
    ("text", "syntaxes"),
    [("", ("explicit",)), ('"jpegls"', ("jpegls",)), ('["jpeg2000", "deflated"]', ("jpeg2000", "deflated"))],
)
def test_one_transfer_syntax_or_several(text: str, syntaxes: tuple[str, ...], tmp_path: Path) -> None:
    settings = load_text(tmp_path, ONE + (f"transfer_syntax = {text}" if text else ""))
    assert settings.destination[0].transfer_syntax == syntaxes


def test_tls_is_spoken_once_there_is_an_authority_or_a_certificate(tmp_path: Path) -> None:
    for text, wanted in (("", False), ('tls = { ca = "system" }', True), ('tls = { cert = "c.pem" }', True)):
        assert load_text(tmp_path, ONE + text).destination[0].tls.wanted is wanted


@pytest.mark.parametrize(
    ("web", "words"),
    [({"tls": {"cert": "c", "ca": "a"}}, "web.tls.ca"), ({"time_zone": "Mars/Olympus"}, "no time zone")],
)
def test_the_console_refuses_what_it_would_not_heed(web: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Settings.model_validate({"web": web})


def keys(section: Any) -> set[str]:
    """Every key of a section and of those within it; of anything else, of the sections that it is made of."""
    if isinstance(section, type) and issubclass(section, BaseModel):
        within = (keys(field.annotation) for field in section.model_fields.values())
        return {*section.model_fields}.union(*within)
    return set().union(*map(keys, get_args(section)))


def test_every_setting_stands_in_the_documents() -> None:
    root = Path(__file__).parents[2]
    text = "".join(file.read_text() for file in [root / "README.md", *(root / "docs").rglob("*.md")])
    known = keys(Settings)
    assert {"quiet_s", "calling_ae_titles", "retry_max_s", "worklist_label"} <= known
    assert {key for key in known if not re.search(rf"\b{key}\b", text)} == set()


def test_where_the_console_and_results_are_can_be_opened() -> None:
    """An IPv6 address stands in brackets (RFC 3986 3.2.2); STOW-RS goes to a URL, and to no AE title."""
    web = Web(host="::1", port=8081)
    assert web.address == "http://[::1]:8081"
    for everywhere in ("0.0.0.0", "::"):
        assert Web(host=everywhere).address == f"http://{socket.gethostname()}:8080"
    archive = Destination(name="cloud", url="https://pacs.example.org/dicom-web")
    said = io.StringIO()
    Console(file=said, width=200).print(banner(Settings(web=web, destination=(archive,))))
    assert "http://[::1]:8081/" in said.getvalue()
    assert "cloud: https://pacs.example.org/dicom-web (sr, seg, sc)" in said.getvalue()

"""What deploy/ ships can be used as it is: settings, units, compose file, chart, dashboard, alert rules."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import create_engine

from node.admin.roles import spool_of
from node.admin.web import metrics
from node.admin.web.gate import Gate
from node.admin.web.site import Site
from node.admin.web.words import WITHOUT
from node.settings import AuditRepository, Canary, Destination, Settings, load
from node.settings.alerts import Hl7
from node.store.engine import migrate
from node.store.records import Records
from tests.peers import requires

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = ("ichnode.service", "ichnode@.service")
ROLES = ("listen", "settle", "deliver", "worker", "web")
CHART = DEPLOY / "helm/ichnode"
GPU_SITE: dict[str, Any] = {
    "worker": {
        "device": "cuda",
        "resources": {"limits": {"nvidia.com/gpu": 1}},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    },
    "web": {"ingress": {"enabled": True, "className": "nginx", "tlsSecret": "tls"}},
    "networkPolicy": {
        "enabled": True,
        "dicomFrom": [{"ipBlock": {"cidr": "10.1.2.3/32"}}],
        "webFrom": [{"podSelector": {}}],
    },
    "metrics": {"serviceMonitor": True},
    "spool": {"existingClaim": "head-cts"},
    "extraSecrets": ["tokens"],
    "settle": {"replicas": 1},
}


def documents(file: Path) -> Any:
    return yaml.safe_load(file.read_text())


@pytest.mark.parametrize("file", ["ichnode.toml", "compose/ichnode.toml"])
def test_the_example_settings_are_valid_and_name_a_destination(file: str) -> None:
    settings = load(DEPLOY / file)
    assert len(settings.destination) == 1
    assert settings.scp.host == "0.0.0.0"


def test_what_the_example_leaves_commented_out_is_understood_too(tmp_path: Path) -> None:
    text = (DEPLOY / "ichnode.toml").read_text()
    whole = re.sub(r"^# (?=\[|[a-z_0-9]+ = )", "", text, flags=re.M)
    assert whole.count("\n#") < text.count("\n#") / 3
    (tmp_path / "whole.toml").write_text(whole)
    assert len(load(tmp_path / "whole.toml").destination) == 2


class TestUnits:
    @staticmethod
    def service(name: str) -> configparser.SectionProxy:
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read(DEPLOY / "systemd" / name)
        return unit["Service"]

    @pytest.mark.parametrize("name", UNITS)
    def test_it_runs_as_its_own_user_and_has_time_to_stop(self, name: str) -> None:
        service = self.service(name)
        assert service["User"] != "root"
        assert int(service["TimeoutStopSec"]) > 10

    def test_one_runs_the_node_and_the_other_a_role(self) -> None:
        assert " up --config " in self.service(UNITS[0])["ExecStart"]
        command = self.service(UNITS[1])["ExecStart"]
        script = re.fullmatch(r"/bin/sh -c '(.*)' %i", command)
        assert script
        words = script[1].replace("$$", "$").replace("%%", "%").replace("exec ", "echo ")
        for instance, role in (
            ("worker-2", "worker"),
            ("worker-10", "worker"),
            ("settle", "settle"),
            ("shadow-worker", "shadow-worker"),
        ):
            said = subprocess.run(["/bin/sh", "-c", words, instance], capture_output=True, text=True)
            assert said.stdout.split()[1:] == [role, "--config", "/etc/ichnode/ichnode.toml"]

    @pytest.mark.parametrize("name", [*UNITS, "ichnode.target"])
    def test_systemd_takes_it_and_finds_it_well_guarded(self, name: str, tmp_path: Path) -> None:
        if shutil.which("systemd-analyze") is None:
            pytest.skip("not on the PATH: systemd-analyze")
        unit = tmp_path / name.replace("@", "@worker-1")
        text = (DEPLOY / "systemd" / name).read_text()
        unit.write_text(text.replace("/opt/ichnode/.venv/bin/ichnode", "/bin/true"))
        checked = run("systemd-analyze", "verify", "--man=no", unit)
        assert (checked.returncode, checked.stderr) == (0, "")
        if name != "ichnode.target":
            guarded = run("systemd-analyze", "security", "--offline=yes", "--threshold=25", unit)
            assert guarded.returncode == 0, guarded.stdout[-500:]


def run(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60, **options)


class TestCompose:
    file = DEPLOY / "compose/compose.yaml"

    def test_every_role_runs_and_shares_settings_and_spool(self) -> None:
        services = documents(self.file)["services"]
        commands = {name: of["command"] for name, of in services.items() if "ICHNODE_CONFIG" in str(of)}
        assert {words[0] for words in commands.values()} == {*ROLES, "announce", "orders", "shadow-worker"}
        for name in commands:
            assert "spool:/var/lib/ichnode" in services[name]["volumes"], name
            assert services[name]["read_only"] and services[name]["cap_drop"] == ["ALL"]

    def test_a_worker_may_finish_its_job_and_logs_do_not_fill_the_disk(self) -> None:
        services = documents(self.file)["services"]
        for name, of in services.items():
            assert "max-size" in of["logging"]["options"], name
            if of.get("command", [""])[0].endswith("worker"):
                assert of["stop_grace_period"] == "120s", name

    def test_passwords_stay_out_of_git(self) -> None:
        ignored = (DEPLOY.parent / ".gitignore").read_text().splitlines()
        assert "/deploy/compose/.env" in ignored

    def test_prometheus_writes_into_its_volume(self) -> None:
        of = documents(self.file)["services"]["prometheus"]
        (path,) = [word.partition("=")[2] for word in of["command"] if "tsdb.path" in word]
        assert f"prometheus:{path}" in of["volumes"]

    def test_nothing_but_dicom_is_open_to_the_network_by_itself(self) -> None:
        for name, of in documents(self.file)["services"].items():
            for port in of.get("ports", ()):
                assert name == "listen" or port.startswith(
                    ("127.0.0.1:", "${ICHNODE_WEB_ADDRESS:-127.0.0.1}:")
                )

    def test_every_mounted_file_is_there(self) -> None:
        for of in documents(self.file)["services"].values():
            for mount in of.get("volumes", ()):
                source = mount.partition(":")[0]
                if source.startswith("."):
                    assert (self.file.parent / source).exists(), mount

    def test_every_variable_without_a_default_is_in_the_example(self) -> None:
        wanted = set(re.findall(r"\$\{(\w+):\?", self.file.read_text()))
        given = set(re.findall(r"^(\w+)=", (self.file.parent / "env.example").read_text(), re.MULTILINE))
        assert wanted and wanted <= given

    def test_docker_compose_takes_it(self) -> None:
        """Debian's, which knows no `name:`; it reads the file and starts nothing."""
        requires("docker-compose")
        options = ["--env-file", "env.example", "-f", "compose.yaml"]
        profiles = [word for p in ("cpu", "gpu", "pacs", "monitoring") for word in ("--profile", p)]
        checked = run("docker-compose", *options, *profiles, "config", cwd=self.file.parent)
        assert checked.returncode == 0, checked.stderr
        services = yaml.safe_load(checked.stdout)["services"]
        assert {"worker-cpu", "worker-gpu", "orthanc", "grafana"} <= services.keys()


class TestImage:
    text = (DEPLOY / "Dockerfile").read_text()

    def test_it_ends_as_an_unprivileged_user_with_a_health_check(self) -> None:
        final = self.text.rpartition("\nFROM ")[2]
        assert re.findall(r"^USER (\S+)", final, re.MULTILINE) == ["10001:10001"]
        assert "HEALTHCHECK" in final and "ENTRYPOINT [" in final
        assert self.text.count("\nFROM ") == 2, "what builds stays out of the image"

    def test_nothing_is_fetched_by_a_moving_name(self) -> None:
        assert ":latest" not in self.text and "curl" not in self.text and "ADD " not in self.text
        for line in re.findall(r"apt-get install[^\n]*", self.text):
            assert "--no-install-recommends" in line

    def test_everything_it_copies_passes_the_ignore_file(self) -> None:
        root = DEPLOY.parent
        allowed = set(re.findall(r"^!(\S+)", (root / ".dockerignore").read_text(), re.MULTILINE))
        lines = re.findall(r"^COPY (?!--from)(.*)", self.text, re.MULTILINE)
        copied = {word.removeprefix("./") for line in lines for word in line.split()[:-1]}
        assert copied == allowed and all((root / name).exists() for name in copied)

    def test_the_chart_and_the_image_agree_on_the_user(self) -> None:
        assert "runAsUser: 10001" in (CHART / "templates/_helpers.tpl").read_text()


class TestChart:
    """Rendered by Helm itself, in its Python binding, and held against the schemas of Kubernetes."""

    @staticmethod
    def render(values: dict[str, Any]) -> list[dict[str, Any]]:
        helm = pytest.importorskip("helm_python")
        chart = helm.Chart.load(str(CHART))
        texts = chart.render(values, name="site", namespace="radiology")
        made = [d for name, text in texts.items() if name.endswith(".yaml") for d in yaml.safe_load_all(text)]
        return [document for document in made if document]

    @pytest.mark.parametrize("values", [{}, GPU_SITE], ids=["defaults", "everything"])
    def test_kubernetes_knows_every_field(self, values: dict[str, Any]) -> None:
        kubernetes_validate = pytest.importorskip("kubernetes_validate")
        for document in self.render(values):
            if document["kind"] != "ServiceMonitor":  # of the Prometheus operator, not of Kubernetes
                kubernetes_validate.validate(document, "1.31", strict=True)

    @pytest.mark.parametrize("values", [{}, GPU_SITE], ids=["defaults", "everything"])
    def test_pods_are_confined_and_see_no_stray_settings(self, values: dict[str, Any]) -> None:
        pods = {
            d["metadata"]["name"]: d["spec"]["template"]["spec"]
            for d in self.render(values)
            if d["kind"] == "Deployment"
        }
        assert pods.keys() == {f"site-ichnode-{role}" for role in ROLES}
        for name, pod in pods.items():
            assert pod["enableServiceLinks"] is False, "ICHNODE_…_PORT would be taken for a setting"
            assert pod["automountServiceAccountToken"] is False
            assert pod["securityContext"]["runAsNonRoot"] is True
            (container,) = pod["containers"]
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert name == f"site-ichnode-{container['args'][0]}"

    def test_the_role_that_announces_comes_on_request(self) -> None:
        kubernetes_validate = pytest.importorskip("kubernetes_validate")
        name = "site-ichnode-announce"
        (made,) = [
            d
            for d in self.render({"announce": {"replicas": 1}})
            if d["kind"] == "Deployment" and d["metadata"]["name"] == name
        ]
        kubernetes_validate.validate(made, "1.31", strict=True)
        assert made["spec"]["template"]["spec"]["containers"][0]["args"][0] == "announce"

    def test_the_role_of_orders_comes_on_request_with_the_ports_that_it_is_given(self) -> None:
        kubernetes_validate = pytest.importorskip("kubernetes_validate")
        peers = [{"ipBlock": {"cidr": "10.0.0.0/24"}}]
        values: dict[str, Any] = {"orders": {"replicas": 2, "upsPort": 11114}}
        values["networkPolicy"] = {"enabled": True, "ordersFrom": peers}
        made = self.render(values)
        for document in made:
            kubernetes_validate.validate(document, "1.31", strict=True)
        of = {d["kind"]: d for d in made if d["metadata"]["name"] == "site-ichnode-orders"}
        assert of.keys() == {"Deployment", "Service", "PodDisruptionBudget"}
        (container,) = of["Deployment"]["spec"]["template"]["spec"]["containers"]
        assert container["args"] == ["orders"]
        assert container["ports"] == [{"name": "ups", "containerPort": 11114}]
        (port,) = of["Service"]["spec"]["ports"]
        assert port == {"name": "ups", "port": 11114, "targetPort": "ups"}
        (policy,) = [d for d in made if d["kind"] == "NetworkPolicy"]
        assert {"ports": [{"port": "ups"}], "from": peers} in policy["spec"]["ingress"]
        quiet = self.render({"orders": {"replicas": 1}})
        assert [d["kind"] for d in quiet if d["metadata"]["name"] == "site-ichnode-orders"] == ["Deployment"]

    def test_the_shadow_worker_comes_on_request_and_stands_behind_the_worker(self) -> None:
        kubernetes_validate = pytest.importorskip("kubernetes_validate")
        toleration = {"key": "spare", "operator": "Exists"}
        made = self.render({"shadowWorker": {"replicas": 1, "threads": 2, "tolerations": [toleration]}})
        pods = {
            d["metadata"]["name"]: d["spec"]["template"]["spec"] for d in made if d["kind"] == "Deployment"
        }
        for document in made:
            kubernetes_validate.validate(document, "1.31", strict=True)
        shadow = pods["site-ichnode-shadow-worker"]
        (container,) = shadow["containers"]
        (worker,) = pods["site-ichnode-worker"]["containers"]
        assert container["args"] == ["shadow-worker"] and shadow["tolerations"] == [toleration]
        env = {one["name"]: one["value"] for one in container["env"]}
        assert (env["ICHNODE_SHADOW__DEVICE"], env["ICHNODE_SHADOW__THREADS"]) == ("cpu", "2")
        assert container["volumeMounts"] == worker["volumeMounts"], "the images and the weights of the node"
        wants = [one["resources"]["requests"]["cpu"] for one in (container, worker)]
        assert wants == ["10m", "2"], "the CPU is shared by requests"
        assert "site-ichnode-shadow-worker" not in {d["metadata"]["name"] for d in self.render({})}

    def test_with_a_bucket_no_volume_is_shared_and_listeners_keep_a_disk_of_their_own(self) -> None:
        kubernetes_validate = pytest.importorskip("kubernetes_validate")
        made = self.render({"spool": {"bucket": True, "diskSize": "20Gi", "storageClass": "fast"}})
        for document in made:
            kubernetes_validate.validate(document, "1.31", strict=True)
        sets = {d["metadata"]["name"]: d["spec"] for d in made if d["kind"] == "StatefulSet"}
        assert sets.keys() == {"site-ichnode-listen", "site-ichnode-deliver"}
        for spec in sets.values():
            (claim,) = spec["volumeClaimTemplates"]
            assert claim["metadata"]["name"] == "spool"
            assert claim["spec"]["resources"]["requests"]["storage"] == "20Gi"
            assert claim["spec"]["storageClassName"] == "fast"
            assert "spool" not in {v["name"] for v in spec["template"]["spec"]["volumes"]}
        for spec in (d["spec"] for d in made if d["kind"] == "Deployment"):
            (spool,) = [v for v in spec["template"]["spec"]["volumes"] if v["name"] == "spool"]
            assert spool == {"name": "spool", "emptyDir": {}}
        assert not [d for d in made if d["kind"] == "PersistentVolumeClaim"]
        assert not [d for d in self.render({}) if d["kind"] == "StatefulSet"]

    def test_services_find_their_pods(self) -> None:
        made = self.render(GPU_SITE)
        labels = [d["spec"]["template"]["metadata"]["labels"] for d in made if d["kind"] == "Deployment"]
        for document in made:
            selector = document["spec"].get("selector", {}) if document["kind"] == "Service" else {}
            if selector:
                assert sum(selector.items() <= of.items() for of in labels) == 1, document["metadata"]

    def test_its_settings_are_valid(self, tmp_path: Path) -> None:
        (made,) = [d for d in self.render({}) if d["kind"] == "ConfigMap"]
        (tmp_path / "ichnode.toml").write_text(made["data"]["ichnode.toml"])
        assert load(tmp_path / "ichnode.toml").scp.port == 11112

    @pytest.mark.parametrize(
        "wrong",
        [
            {"worker": {"device": "tpu"}},
            {"orders": {"upsPort": 0}},
            {"shadowWorker": {"replicas": 1, "threads": 0}},
            {"workers": {}},
            {"settings": ""},
        ],
    )
    def test_wrong_values_are_refused(self, wrong: dict[str, Any]) -> None:
        helm = pytest.importorskip("helm_python")
        with pytest.raises(helm.HelmValuesError):
            self.render(wrong)

    def test_helm_finds_nothing_to_complain_about(self) -> None:
        helm = pytest.importorskip("helm_python")
        report = helm.lint(str(CHART), strict=True)
        assert not report["errors"]
        assert [m for m in report["messages"] if m["severity"] > 1] == []


QUIET = {
    "ichnode_info": "1x90",
    "ichnode_oldest_unsent_positive_seconds": "0x90",
    "ichnode_oldest_unsent_alert_seconds": "0x90",
    'ichnode_processes_alive{role="orders"}': "1x90",
    'ichnode_led{part="clock"}': "1x90",
    'ichnode_jobs{state="QUEUED"}': "0x90",
    'ichnode_jobs{state="FAILED"}': "3x90",
    "ichnode_analysed_last_hour": "0x90",
    'ichnode_queue_oldest_seconds{turn="stat"}': "0x90",
    "ichnode_model_trouble": "0x90",
    "ichnode_shadow_ok": "1x90",
    "ichnode_held_oldest_seconds": "0x90",
    "ichnode_upload_ok": "1x90",
    'ichnode_listener_disk_room_bytes{disk="d"}': "5e9x90",
    "ichnode_disk_free_bytes": "9e9x90",
    "ichnode_disk_bytes_last_day": "1e9x90",
    'ichnode_last_slice_to_report_seconds{quantile="0.95"}': "60x90",
    'ichnode_deliveries_unsent{destination="pacs",state="FAILED"}': "0x90",
    'ichnode_paused{what="queue"}': "0x90",
    "ichnode_canary_ok": "1x90",
    'ichnode_alerts_unsent{channel="ris",state="FAILED"}': "0x90",
    "ichnode_audit_oldest_seconds": "60x90",
}
"""What is exported when all is well, each minute for an hour and a half."""
ALARMS: dict[str, dict[str, str]] = {
    "IchnodeDown": {'up{job="ichnode"}': "0x90"},
    "IchnodePositiveNotDelivered": {"ichnode_oldest_unsent_positive_seconds": "0x80 301x9"},
    "IchnodePositiveNotTold": {"ichnode_oldest_unsent_alert_seconds": "121x90"},
    "IchnodeRoleMissing": {'ichnode_processes_alive{role="orders"}': "0x90"},
    "IchnodeNobodyLeads": {'ichnode_led{part="clock"}': "0x90"},
    "IchnodeNothingAnalysed": {'ichnode_jobs{state="QUEUED"}': "2x90"},
    "IchnodeStatWaits": {'ichnode_queue_oldest_seconds{turn="stat"}': "301x90"},
    "IchnodeModelTrouble": {"ichnode_model_trouble": "1x90"},
    "IchnodeCanaryFailed": {"ichnode_canary_ok": "0x90"},
    "IchnodeShadowStands": {"ichnode_shadow_ok": "0x90"},
    "IchnodeNotInTheBucket": {"ichnode_held_oldest_seconds": "301x90"},
    "IchnodeBucketTrouble": {"ichnode_upload_ok": "0x90"},
    "IchnodeListenerDiskFull": {'ichnode_listener_disk_room_bytes{disk="d"}': "1e9x90"},
    "IchnodeDiskFull": {"ichnode_disk_free_bytes": "1.5e9x90"},
    "IchnodeSlow": {'ichnode_last_slice_to_report_seconds{quantile="0.95"}': "301x90"},
    "IchnodeGivenUp": {'ichnode_deliveries_unsent{destination="pacs",state="FAILED"}': "1x90"},
    "IchnodeWordsGivenUp": {'ichnode_alerts_unsent{channel="ris",state="FAILED"}': "1x90"},
    "IchnodeAuditWaits": {"ichnode_audit_oldest_seconds": "3601x90"},
    "IchnodePaused": {'ichnode_paused{what="queue"}': "1x90"},
    "IchnodeFailing": {'ichnode_jobs{state="FAILED"}': "3x60 9x29"},
}
"""Of each alert, what is otherwise then."""


def evaluated(alert: str, series: dict[str, str], times: int) -> dict[str, Any]:
    """A test of promtool's: so many of the alert fire in the end."""
    count = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)'
    told = {"expr": count, "eval_time": "85m", "exp_samples": [{"labels": "{}", "value": times}]}
    given = [{"series": name, "values": values} for name, values in series.items()]
    return {"interval": "1m", "input_series": given, "promql_expr_test": [told]}


class TestFigures:
    """The dashboard and the rules ask for metrics that the node really exports."""

    @pytest.fixture
    def exported(self, tmp_path: Path) -> dict[str, set[str]]:
        """The labels of each metric."""
        engine = create_engine(f"sqlite:///{tmp_path}/t.sqlite3")
        migrate(engine)
        settings = Settings(
            data_dir=tmp_path,
            destination=(Destination(name="pacs", ae_title="PACS", host="127.0.0.1"),),
            alert=(Hl7(type="hl7", name="ris", host="127.0.0.1", port=2575),),
            canary=Canary(every_min=60),
            audit=AuditRepository(host="audit.example.org"),
        )
        (tmp_path / "spool").mkdir()
        records = Records(engine)
        records.views.beat("upload@h:1", "upload", {"disk": "d", "room_bytes": 1}, 1e9)
        told = {"network_busy": 0.5, "jobs_done": 2, "jobs_ahead": 1}
        records.views.beat("worker@h:2", "worker", told, 1e9)
        site = Site(settings, records, Gate(settings, records), spool_of(settings))
        found: dict[str, set[str]] = {}
        for name, _, samples in metrics.families(site, 1e9):
            labels = [set(labels) for _, labels, _ in samples] or [{"quantile"}]
            found[f"ichnode_{name}"] = set().union(*labels)
        engine.dispose()
        return found

    @staticmethod
    def asked(expression: str) -> list[tuple[str, set[str]]]:
        found = re.findall(r"(ichnode_\w+)(?:\{([^}]*)\})?", expression)
        return [(name, set(re.findall(r"(\w+)\s*=~?", inside))) for name, inside in found]

    def test_the_dashboard(self, exported: dict[str, set[str]]) -> None:
        dashboard = json.loads((DEPLOY / "grafana/dashboards/ichnode.json").read_text())
        source = documents(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")["datasources"][0]
        for panel in dashboard["panels"]:
            assert panel["datasource"]["uid"] == source["uid"]
            for target in panel["targets"]:
                asked = self.asked(target["expr"])
                assert asked, panel["title"]
                for name, labels in asked:
                    assert name in exported and labels <= exported[name], target["expr"]
                    shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                    assert shown <= exported[name], target["legendFormat"]

    def test_no_two_panels_lie_on_each_other(self) -> None:
        taken: set[tuple[int, int]] = set()
        for panel in json.loads((DEPLOY / "grafana/dashboards/ichnode.json").read_text())["panels"]:
            at = panel["gridPos"]
            cells = {
                (x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
            }
            assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
            taken |= cells

    def test_the_alert_rules(self, exported: dict[str, set[str]]) -> None:
        (group,) = documents(DEPLOY / "prometheus/ichnode.rules.yml")["groups"]
        for rule in group["rules"]:
            for name, labels in self.asked(rule["expr"]):
                assert name in exported and labels <= exported[name], rule["alert"]
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert rule["annotations"].keys() == {"summary", "action"}, "what is wrong, and what to do"

    @pytest.mark.parametrize("alert", ALARMS)
    def test_each_alert_speaks_up_and_not_on_a_quiet_day(self, alert: str, tmp_path: Path) -> None:
        """By Prometheus' own evaluation."""
        requires("promtool")
        quiet = {**QUIET, 'up{job="ichnode"}': "1x90"}
        tests = [evaluated(alert, quiet, 0), evaluated(alert, quiet | ALARMS[alert], 1)]
        rules = {"rule_files": [str(DEPLOY / "prometheus/ichnode.rules.yml")], "tests": tests}
        (tmp_path / "tests.yml").write_text(yaml.safe_dump(rules))
        checked = run("promtool", "test", "rules", tmp_path / "tests.yml")
        assert checked.returncode == 0, checked.stdout + checked.stderr

    def test_a_console_that_nobody_finds_is_down_whatever_its_job_is_called(self, tmp_path: Path) -> None:
        """Under Kubernetes the job is called after the service; one that is gone is no target any more."""
        requires("promtool")
        tests = [
            evaluated("IchnodeDown", {'up{job="site-ichnode-web"}': "0x90"}, 1),
            evaluated("IchnodeDown", {}, 1),
            evaluated("IchnodeDown", {'ichnode_info{job="site-ichnode-web"}': "1x90"}, 0),
        ]
        rules = {"rule_files": [str(DEPLOY / "prometheus/ichnode.rules.yml")], "tests": tests}
        (tmp_path / "tests.yml").write_text(yaml.safe_dump(rules))
        checked = run("promtool", "test", "rules", tmp_path / "tests.yml")
        assert checked.returncode == 0, checked.stdout + checked.stderr

    def test_every_alert_was_heard(self) -> None:
        (group,) = documents(DEPLOY / "prometheus/ichnode.rules.yml")["groups"]
        assert {rule["alert"] for rule in group["rules"]} == ALARMS.keys()

    @pytest.mark.parametrize("role", sorted(WITHOUT.keys() - {"web", "shadow-worker"}))
    def test_no_role_is_missing_in_silence(self, role: str) -> None:
        """`web` is IchnodeDown, and the shadow's worker IchnodeShadowStands."""
        (group,) = documents(DEPLOY / "prometheus/ichnode.rules.yml")["groups"]
        (rule,) = [rule for rule in group["rules"] if rule["alert"] == "IchnodeRoleMissing"]
        (named,) = re.findall('role=~"([^"]*)"', rule["expr"])
        assert role in named.split("|")

    def test_prometheus_takes_its_files(self) -> None:
        requires("promtool")
        checked = run("promtool", "check", "config", DEPLOY / "prometheus/prometheus.yml")
        assert checked.returncode == 0, checked.stdout + checked.stderr

    def test_what_the_node_exports_is_prometheus_text(self, exported: dict[str, set[str]]) -> None:
        assert {"ichnode_led", "ichnode_jobs", "ichnode_processes_alive"} <= exported.keys()

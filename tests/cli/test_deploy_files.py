"""What runs a cluster elsewhere: units of systemd, objects of Kubernetes, the image, rules and a dashboard."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from actorraft.cli.app import app
from actorraft.cluster.founding import found
from actorraft.node.exposition import expose
from actorraft.node.folder import read_folder
from actorraft.node.metrics import Metrics
from actorraft.node.service_manager import ServiceManager
from actorraft.node.standalone import prepare_data
from tests.cli.served import REPOSITORY, Served, eventually

DEPLOY = REPOSITORY / "deploy"


def needs(program: str) -> str:
    where = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
    if where is None:
        pytest.skip(f"{program} is not installed: make tools")
    return where


# --- systemd


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    program = needs("systemd-analyze")
    unit = (DEPLOY / "actorraft.service").read_text()
    here = unit.replace("/usr/local/bin/actorraft", "/bin/true").replace("=actorraft\nGroup=actorraft", "=root")
    (tmp_path / "actorraft.service").write_text(here)
    done = subprocess.run(
        [program, "verify", tmp_path / "actorraft.service"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_s_command_is_one_that_serve_takes() -> None:
    unit = (DEPLOY / "actorraft.service").read_text()
    words = re.findall(r"^ExecStart=/usr/local/bin/actorraft (.*)$", unit, flags=re.M)[0].split()
    done = CliRunner().invoke(app, [*words[:1], "/nowhere", *words[2:]])
    assert "is no node's folder" in done.stderr
    assert "Type=notify" in unit


def test_the_manager_is_told_and_fed_a_third_of_its_patience_apart(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"}
        manager = ServiceManager(environment)
        manager.tell("READY=1")
        for now_s in (10.0, 10.5, 11.0, 11.1):
            manager.feed(now_s)
        listening.setblocking(False)
        heard = []
        while True:
            try:
                heard.append(listening.recv(100).decode())
            except BlockingIOError:
                break
    assert heard == ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]
    manager.tell("READY=1")  # nobody is there any more
    ServiceManager({**environment, "WATCHDOG_PID": "1"}).feed(99.0)
    ServiceManager({}).feed(99.0)


@pytest.mark.cluster
@pytest.mark.slow  # make slow
@pytest.mark.timeout(300)
def test_a_command_that_takes_long_does_not_hold_up_the_watchdog(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(60.0)
        with Served(tmp_path, 1, machine="tests.cluster.machines:Ledger") as served:
            told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
            served.start(environment=told)
            assert listening.recv(100) == b"READY=1"
            served.settled()
            began_s = time.monotonic()
            asking = subprocess.Popen(
                [sys.executable, "-m", "actorraft", "exec", "append_slowly", '"x"', "1", "6.0", "--timeout", "60"],
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), "ACTORRAFT_CLIENT": str(served.client)},
                stdout=subprocess.DEVNULL,
            )
            times = []
            while asking.poll() is None:
                assert listening.recv(100) == b"WATCHDOG=1"
                times.append(time.monotonic())
            assert times[-1] - began_s > 6.0
            # A loop that had waited for the command would have been silent all that time.
            assert max(after - before for before, after in itertools.pairwise(times)) < 4.0
            served.processes[0].terminate()
            eventually(lambda: listening.recv(100) == b"STOPPING=1")
            assert served.processes[0].wait(60) == 0


# --- Kubernetes


def founded(tmp_path: Path, *, name: str = "bank", namespace: str = "") -> Path:
    suffix = f".{namespace}.svc.cluster.local" if namespace else ""
    places = [f"{name}-{n}.{name}-peers{suffix}:7100" for n in range(3)]
    found(tmp_path / "c", "tests.cli.bank:Bank", places)
    return tmp_path / "c"


def rendered(directory: Path, *more: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, ["k8s", "render", str(directory), "--image", "bank:1", *more])
    assert done.exit_code == 0, done.stderr
    return [json.loads(document) for document in done.stdout.split("---\n")[1:]]


def test_kubernetes_accepts_every_object(tmp_path: Path) -> None:
    program = needs("kubernetes-validate")
    documents = rendered(founded(tmp_path), "--with-secret", "--storage-class", "fast", "--namespace", "banks")
    files = [tmp_path / f"{number}-{document['kind']}.yaml" for number, document in enumerate(documents)]
    for file, document in zip(files, documents, strict=True):
        file.write_text(json.dumps(document))
    done = subprocess.run([program, "--strict", *files], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert [document["kind"] for document in documents] == [
        "Secret", "Service", "Service", "PodDisruptionBudget", "StatefulSet"
    ]  # fmt: skip


def test_what_is_rendered_is_one_document_after_the_other_in_yaml(tmp_path: Path) -> None:
    program = needs("kubernetes-validate")
    done = CliRunner().invoke(app, ["k8s", "render", str(founded(tmp_path, namespace="x")), "--image", "bank:1"])
    file = tmp_path / "all.yaml"
    file.write_text(done.stdout)
    checked = subprocess.run([program, "--strict", file], capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_pod_gets_its_own_folder_and_is_safe_where_the_folder_is_a_copy_each_time(tmp_path: Path) -> None:
    directory = founded(tmp_path)
    secret, peers, clients, budget, stateful = rendered(directory, "--with-secret")
    spec = stateful["spec"]
    pod = spec["template"]["spec"]
    [folder], [node] = pod["initContainers"], pod["containers"]
    assert spec["podManagementPolicy"] == "Parallel"
    assert peers["spec"]["publishNotReadyAddresses"]
    assert "publishNotReadyAddresses" not in clients["spec"]
    assert budget["spec"]["maxUnavailable"] == 1
    assert folder["volumeMounts"][0]["subPathExpr"] == "$(POD_NAME)"
    assert node["volumeMounts"][0]["readOnly"]
    assert {mount["name"] for mount in node["volumeMounts"]} == {"folder", "data", "tmp"}, "no other node's secret"
    assert all(each["securityContext"]["readOnlyRootFilesystem"] for each in (folder, node))
    assert node["command"][0] == "actorraft"
    assert {"path": "bank-1/secret.key", "key": "bank-1.secret.key"} in pod["volumes"][0]["secret"]["items"]
    assert set(secret["data"]) == {item["key"] for item in pod["volumes"][0]["secret"]["items"]}
    # What the pod has then: files that only its user can read, in a folder that it cannot write.
    copy = tmp_path / "etc"
    shutil.copytree(directory / "node-1", copy)
    copy.chmod(stat.S_IRUSR | stat.S_IXUSR)
    read = read_folder(copy, environment={})
    assert read.node.listen == "0.0.0.0:7100"
    if os.geteuid() != 0:
        probation = prepare_data(copy, tmp_path / "data", read)
        assert probation is not None
        assert not probation.marked


def test_other_keys_are_another_config_hash(tmp_path: Path) -> None:
    directory = founded(tmp_path)

    def hashed() -> str:
        annotations = rendered(directory)[-1]["spec"]["template"]["metadata"]["annotations"]
        return str(annotations["actorraft/config-hash"])

    before = hashed()
    assert before == hashed()
    key = directory / "node-2" / "secret.key"
    key.write_text(key.read_text()[::-1])
    assert hashed() != before


def test_without_the_secret_nothing_that_is_printed_is_one(tmp_path: Path) -> None:
    directory = founded(tmp_path)
    printed = json.dumps(rendered(directory))
    for node_id in range(3):
        assert (directory / f"node-{node_id}" / "secret.key").read_text().strip() not in printed


@pytest.mark.parametrize(
    ("more", "why"),
    [(("--storage", "lots"), "a size as in 10Gi"), (("--image",), "requires an argument")],
)
def test_what_cannot_be_rendered_is_used_wrongly(more: tuple[str, ...], why: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["k8s", "render", str(founded(tmp_path)), "--image", "bank:1", *more])
    assert (done.exit_code, why in done.stderr) == (2, True), done.stderr


def test_addresses_that_are_no_pods_are_refused_and_right_ones_are_shown(tmp_path: Path) -> None:
    found(tmp_path / "c", "tests.cli.bank:Bank", ["host0:7100", "host1:7100"])
    done = CliRunner().invoke(app, ["k8s", "render", str(tmp_path / "c"), "--image", "bank:1"])
    assert (done.exit_code, "bank-0.bank-peers:7100" in done.stderr) == (2, True)
    done = CliRunner().invoke(app, ["k8s", "render", str(tmp_path), "--image", "bank:1"])
    assert (done.exit_code, "holds no node's folder" in done.stderr) == (2, True)


# --- The image, rules and the dashboard


def test_the_image_runs_as_a_plain_user_and_writes_only_where_it_is_told() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"^USER 10001:10001$", text, flags=re.M)
    command = json.loads(re.findall(r"^CMD (.*)$", text, flags=re.M)[0])
    done = CliRunner().invoke(app, [command[1], "/nowhere", *command[3:]])
    assert "is no node's folder" in done.stderr


def metric_names() -> set[str]:
    """The names of everything that a node can say."""
    metrics = Metrics()
    metrics.commands["answered"] = metrics.reads["answered"] = 1
    status = {
        "state": "leader", "leader_id": 0, "dropped": {"x": 1}, "metrics": metrics.as_dict(), "match_index": {1: 3},
        "links": {1: None}, "last_index": 5, "sessions": 1, "term": 1, "commit_index": 1, "last_applied": 1,
        "snapshot_index": 1, "log_bytes": 1, "snapshot_bytes": 1, "uptime_s": 1.0, "version": "0",
        "disk": {"free_bytes": 1, "reserve_bytes": 1, "full_in_s": 1.0, "refuses_writes": False},
        "backup": {"time_s": 1.0, "bytes": 1, "error": None},
    }  # fmt: skip
    return set(re.findall(r"^(actorraft_\w+)", expose(status).decode(), flags=re.M))


@pytest.mark.parametrize("file", ["alerts.yaml", "dashboard.json"])
def test_rules_and_dashboard_ask_for_what_nodes_say(file: str) -> None:
    text = re.sub(r'"uid": "actorraft"', "", (DEPLOY / file).read_text())
    asked = set(re.findall(r"\bactorraft_\w+", text))
    assert len(asked) > 5
    assert asked <= metric_names()


def test_prometheus_accepts_the_rules_and_what_a_node_says_in_full() -> None:
    program = needs("promtool")
    done = subprocess.run(
        [program, "check", "rules", DEPLOY / "alerts.yaml"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_what_the_deployment_guide_tells_it(tmp_path: Path) -> None:
    program = needs("promtool")
    (config,) = re.findall(
        r"^```yaml\n(.*?)^```", (REPOSITORY / "docs" / "deployment.md").read_text(), flags=re.M | re.S
    )
    (tmp_path / "prometheus.yml").write_text(config)
    (tmp_path / "alerts.yaml").write_bytes((DEPLOY / "alerts.yaml").read_bytes())
    words = [program, "check", "config", tmp_path / "prometheus.yml"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (job,) = re.findall(r"job_name: (\w+)", config)
    assert f'up{{job="{job}"}}' in (DEPLOY / "alerts.yaml").read_text()


def test_each_alert_names_a_page_of_the_runbook() -> None:
    pages = set(re.findall(r"^## (.*)$", (REPOSITORY / "docs" / "runbook.md").read_text(), flags=re.M))
    named = re.findall(r'runbook: docs/runbook.md, "(.*)"', (DEPLOY / "alerts.yaml").read_text())
    assert len(named) == (DEPLOY / "alerts.yaml").read_text().count("- alert:")
    assert set(named) <= pages

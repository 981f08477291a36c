"""`k8s render`: what runs a founded cluster on Kubernetes, as documents for `kubectl apply -f -`.

A StatefulSet whose pods' ordinals are the nodes' ids. Each pod is given its own node's folder out of one Secret and no
other's, as files that only its user can read; that copy is made anew at each start, so a pod with an empty volume is on
probation, and never votes as somebody who has forgotten what it promised.

Shape:     documents with `---` between; each is JSON, which is YAML, so that rendering needs no library.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from actorraft.cli.output import USED_WRONGLY, Format, Output, errors, fail, print_json
from actorraft.node.folder import FIRST_START, NODE_FILE, SECRET_FILE, SEED_FILE, NodeFolder, read_folder

k8s = typer.Typer(no_args_is_help=True, help="Run a cluster on Kubernetes.")
USER: Final = 10001
HTTP_PORT: Final = 7180
FOLDER: Final = "/etc/actorraft"
DATA: Final = "/var/lib/actorraft"
NAME: Final = re.compile(r"[a-z]([-a-z0-9]{0,40}[a-z0-9])?")
SIZE: Final = re.compile(r"[1-9][0-9]*(Ki|Mi|Gi|Ti)")
SECRET_BYTES_MAX: Final = 1_000_000  # etcd takes a MiB, and base64 is counted before
# SIGTERM hands leadership over and ends the process, and with it this hook; a second one would end it at once.
LEAVE: Final = "kill -TERM 1; while kill -0 1; do sleep 0.2; done"
COPY: Final = f"umask 077; cp -L /secret/* {FOLDER}/"


@k8s.callback()
def _group() -> None:
    """Run a cluster on Kubernetes."""


def register(app: typer.Typer) -> None:
    """Add the subcommands."""
    app.add_typer(k8s, name="k8s")


@k8s.command()
def render(
    directory: Annotated[Path, typer.Argument(help="What `actorraft init` wrote, for addresses as below.")],
    image: Annotated[str, typer.Option(help="An image with actorraft and the machine's package.")],
    namespace: Annotated[str, typer.Option(help="Where it is to run.")] = "default",
    storage: Annotated[str, typer.Option(help="How large each node's volume is.")] = "10Gi",
    storage_class: Annotated[str, typer.Option(help="Of the volumes; by default the cluster's own.")] = "",
    with_secret: Annotated[
        bool,
        typer.Option("--with-secret", help="Also the Secret with every node's key: what is printed is secret then."),
    ] = False,
    output: Output = Format.table,
) -> None:
    """Print the objects that run a cluster, for `kubectl apply -f -`.

    NAME is that of the addresses: actorraft init DIR --nodes
    NAME-0.NAME-peers:7100,NAME-1.NAME-peers:7100,NAME-2.NAME-peers:7100 …
    """
    if not SIZE.fullmatch(storage):
        raise fail(f"--storage is a size as in 10Gi, not {storage}", USED_WRONGLY)
    with errors():
        found = sorted(directory.glob("node-*"), key=lambda path: int(path.name.removeprefix("node-")))
        if not found:
            raise fail(f"{directory} holds no node's folder: actorraft init makes them", USED_WRONGLY)
        folders = {path: read_folder(path, environment={}) for path in found}
        documents = objects(folders, image, namespace, storage, storage_class, with_secret)
    if output is Format.json:
        print_json({"apiVersion": "v1", "kind": "List", "items": documents})
        return
    for document in documents:
        print("---")
        print(json.dumps(document, indent=2))


def objects(
    folders: dict[Path, NodeFolder], image: str, namespace: str, storage: str, storage_class: str, with_secret: bool
) -> list[dict[str, Any]]:
    """Return all objects."""
    name, port = _name_and_port(folders)
    labels = {"app.kubernetes.io/name": "actorraft", "app.kubernetes.io/instance": name}
    files = {
        f"{name}-{folder.node.id}.{file}": (path / file)
        for path, folder in folders.items()
        for file in (NODE_FILE, SECRET_FILE, FIRST_START, SEED_FILE)
        if (path / file).is_file() or file == FIRST_START  # the mark may be gone: here a copy never proves anything
    }
    contents = {key: path.read_bytes() if path.is_file() else b"" for key, path in files.items()}
    if sum(map(len, contents.values())) > SECRET_BYTES_MAX:
        raise fail("the folders do not fit into a Secret (1 MB); a backup is carried into the volumes by hand")
    digest = hashlib.sha256(b"".join(contents[key] for key in sorted(contents))).hexdigest()[:16]

    def meta(its: str) -> dict[str, Any]:
        return {"name": its, "namespace": namespace, "labels": labels}

    def service(its: str, **spec: Any) -> dict[str, Any]:
        return {"apiVersion": "v1", "kind": "Service", "metadata": meta(its), "spec": {"selector": labels, **spec}}

    peers = {"name": "peers", "port": port, "targetPort": "peers"}
    clients = {"name": "clients", "port": port + 1, "targetPort": "clients"}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": meta(f"{name}-nodes"),
        "type": "Opaque",
        "data": {key: base64.b64encode(content).decode() for key, content in sorted(contents.items())},
    }
    return [
        *([secret] if with_secret else []),
        service(f"{name}-peers", clusterIP="None", publishNotReadyAddresses=True, ports=[peers, clients]),
        service(name, ports=[clients]),
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": meta(name),
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": labels}},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": meta(name),
            "spec": {
                "serviceName": f"{name}-peers",
                "replicas": len(folders),
                "podManagementPolicy": "Parallel",
                "updateStrategy": {"type": "RollingUpdate"},
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels, "annotations": {"actorraft/config-hash": digest}},
                    "spec": _pod(name, image, labels, sorted(contents), port),
                },
                "volumeClaimTemplates": [
                    {
                        "metadata": {"name": "data", "labels": labels},
                        "spec": {
                            "accessModes": ["ReadWriteOnce"],
                            "resources": {"requests": {"storage": storage}},
                            **({"storageClassName": storage_class} if storage_class else {}),
                        },
                    }
                ],
            },
        },
    ]


def _pod(name: str, image: str, labels: dict[str, str], keys: list[str], port: int) -> dict[str, Any]:
    closed = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    own_name = {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    probe = {"periodSeconds": 5, "timeoutSeconds": 4}
    serve = ["actorraft", "serve", FOLDER, "--data-dir", f"{DATA}/data", "--http", f"0.0.0.0:{HTTP_PORT}"]
    return {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 60,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "affinity": {
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {"labelSelector": {"matchLabels": labels}, "topologyKey": "kubernetes.io/hostname"}
                ]
            }
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": labels},
            }
        ],
        "initContainers": [
            {
                "name": "folder",
                "image": image,
                "command": ["sh", "-c", COPY],
                "env": [own_name],
                "securityContext": closed,
                "volumeMounts": [
                    {"name": "secret", "mountPath": "/secret", "subPathExpr": "$(POD_NAME)", "readOnly": True},
                    {"name": "folder", "mountPath": FOLDER},
                ],
            }
        ],
        "containers": [
            {
                "name": "node",
                "image": image,
                "command": [*serve, "--log-format", "json"],
                "env": [own_name],
                "ports": [
                    {"name": "peers", "containerPort": port},
                    {"name": "clients", "containerPort": port + 1},
                    {"name": "http", "containerPort": HTTP_PORT},
                ],
                "startupProbe": {"httpGet": {"path": "/livez", "port": "http"}, "failureThreshold": 120, **probe},
                "livenessProbe": {"httpGet": {"path": "/livez", "port": "http"}, "failureThreshold": 6, **probe},
                "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}, "failureThreshold": 2, **probe},
                "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", LEAVE]}}},
                "securityContext": closed,
                "volumeMounts": [
                    {"name": "folder", "mountPath": FOLDER, "readOnly": True},
                    {"name": "data", "mountPath": DATA},
                    {"name": "tmp", "mountPath": "/tmp"},
                ],
            }
        ],
        "volumes": [
            {
                "name": "secret",
                "secret": {
                    "secretName": f"{name}-nodes",
                    "defaultMode": 0o440,
                    "items": [{"key": key, "path": key.replace(".", "/", 1)} for key in keys],
                },
            },
            {"name": "folder", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }


def _name_and_port(folders: dict[Path, NodeFolder]) -> tuple[str, int]:
    """Return what the addresses say that the cluster is called here, and the peers' port."""
    name, port = "", 0
    for number, folder in enumerate(folders.values()):
        host, _, said = folder.node.advertise.rpartition(":")
        found = re.fullmatch(r"([^.]+)-(\d+)\.([^.]+)-peers(\..*)?", host)
        own = found[1] if found is not None else ""
        fits = found is not None and own == found[3] and int(found[2]) == folder.node.id == number
        if not fits or not NAME.fullmatch(own) or own != (name or own) or said != str(port or said):
            raise fail(
                f"node {folder.node.id} is reached at {folder.node.advertise}; on Kubernetes that is NAME-"
                f"{folder.node.id}.NAME-peers:PORT, one port for all: actorraft init … --nodes "
                "bank-0.bank-peers:7100,bank-1.bank-peers:7100,bank-2.bank-peers:7100",
                USED_WRONGLY,
            )
        name, port = own, int(said)
    return name, port

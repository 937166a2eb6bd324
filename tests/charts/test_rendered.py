"""The chart's objects, field by field, as the real helm renders them, and as Kubernetes' own schemas judge them."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from fdmoe_ops.settings import Settings

Render = Callable[..., dict[str, dict[str, Any]]]
ROOT = Path(__file__).parents[2]
KUBERNETES = ("1.25", "1.37")  # the oldest that Chart.yaml allows, and the newest that the validator knows

# values of an installation that changes everything that can be changed
EVERYTHING = yaml.safe_load((ROOT / "charts/fdmoe-ops/ci/everything-values.yaml").read_text())


def pod_of(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return objects["Deployment"]["spec"]["template"]["spec"]


def container_of(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (container,) = pod_of(objects)["containers"]
    return container


def test_lint_has_nothing_to_say(helm: Callable[..., subprocess.CompletedProcess[str]], chart: Path) -> None:
    linted = helm("lint", "--strict", chart)
    assert linted.returncode == 0, linted.stdout
    assert "1 chart(s) linted, 0 chart(s) failed" in linted.stdout


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("values", [{}, EVERYTHING, {"model": {"hostPath": "/srv/m"}, "gpu": {"count": 0}}])
def test_kubernetes_accepts_every_object(render: Render, values: dict[str, Any], version: str) -> None:
    objects = render(values)
    objects.pop("PodMonitor", None)  # the Prometheus operator's own kind
    expected = {"ConfigMap", "Deployment", "Service", "ServiceAccount"}
    assert set(objects) == (expected - {"ServiceAccount"} if values is EVERYTHING else expected)
    for rendered in objects.values():
        kubernetes_validate.validate(rendered, version, strict=True)


def test_the_validator_refuses_a_misspelt_field(render: Render) -> None:
    deployment = render()["Deployment"]
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(deployment, KUBERNETES[-1], strict=True)


def test_the_app_version_is_the_services() -> None:
    project = tomllib.loads((ROOT / "fdmoe_ops/pyproject.toml").read_text())["project"]
    described = yaml.safe_load((ROOT / "charts/fdmoe-ops/Chart.yaml").read_text())
    assert (described["name"], described["appVersion"]) == (project["name"], project["version"])


def test_names_and_labels(render: Render) -> None:
    for rendered in render().values():
        assert rendered["metadata"]["name"] == "moe-fdmoe-ops"
        assert rendered["metadata"]["labels"]["app.kubernetes.io/instance"] == "moe"
    everything = render(EVERYTHING)
    assert {rendered["metadata"]["name"] for rendered in everything.values()} == {"experts"}


def test_the_service_and_the_deployment_select_the_pods(render: Render) -> None:
    objects = render({"podLabels": {"team": "serving"}})
    selector = {"app.kubernetes.io/name": "fdmoe-ops", "app.kubernetes.io/instance": "moe"}
    assert objects["Service"]["spec"]["selector"] == selector
    deployment = objects["Deployment"]["spec"]
    assert deployment["selector"] == {"matchLabels": selector}
    assert selector.items() <= deployment["template"]["metadata"]["labels"].items()
    assert deployment["template"]["metadata"]["labels"]["team"] == "serving"


def test_one_replica_that_is_replaced_and_not_rolled(render: Render) -> None:
    spec = render()["Deployment"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 30


def test_the_container_serves_with_the_settings_file(render: Render) -> None:
    container = container_of(render())
    assert container["image"] == "fdmoe-ops:0.1.0"
    assert container["imagePullPolicy"] == "IfNotPresent"
    assert container["command"] == ["fdmoe", "serve", "--config", "/etc/fdmoe/fdmoe.yaml"]
    assert container["env"] == [
        {"name": "FDMOE_CONFIG", "value": "/etc/fdmoe/fdmoe.yaml"},
        {"name": "HOME", "value": "/var/lib/fdmoe"},
    ]


def test_ports(render: Render) -> None:
    objects = render(EVERYTHING)
    assert container_of(objects)["ports"] == [
        {"name": "http", "containerPort": 8080},
        {"name": "metrics", "containerPort": 9400},
    ]
    service = objects["Service"]
    assert service["spec"]["type"] == "LoadBalancer"
    assert service["spec"]["ports"] == [
        {"name": "http", "port": 80, "targetPort": "http"},
        {"name": "metrics", "port": 9401, "targetPort": "metrics"},
    ]
    assert service["metadata"]["annotations"] == {"example/internal": "true"}
    assert [port["port"] for port in render()["Service"]["spec"]["ports"]] == [8080, 9400]


def test_probes(render: Render) -> None:
    container = container_of(render())
    assert container["startupProbe"] == {
        "httpGet": {"path": "/startupz", "port": "http"},
        "periodSeconds": 5,
        "timeoutSeconds": 5,
        "failureThreshold": 132,
    }
    assert container["livenessProbe"] == {
        "httpGet": {"path": "/livez", "port": "metrics"},
        "periodSeconds": 10,
        "timeoutSeconds": 5,
        "failureThreshold": 3,
    }
    assert container["readinessProbe"] == {
        "httpGet": {"path": "/readyz", "port": "http"},
        "periodSeconds": 5,
        "timeoutSeconds": 2,
        "failureThreshold": 2,
    }
    assert container_of(render(EVERYTHING))["startupProbe"]["failureThreshold"] == 240


def test_the_default_start_up_deadline_leaves_the_watchdog_time_for_a_second_start(render: Render) -> None:
    probe = container_of(render())["startupProbe"]
    recovery = Settings().recovery
    failed_start_s = recovery.startup_deadline_s + recovery.kill_deadline_s + recovery.backoff_initial_s
    assert probe["periodSeconds"] * probe["failureThreshold"] > failed_start_s + recovery.startup_deadline_s


def test_resources(render: Render) -> None:
    assert container_of(render())["resources"] == {
        "requests": {"cpu": "2", "memory": "4Gi"},
        "limits": {"memory": "8Gi", "nvidia.com/gpu": 1},
    }
    assert container_of(render(EVERYTHING))["resources"] == {
        "requests": {"cpu": 8, "memory": "4Gi"},
        "limits": {"memory": "64Gi", "nvidia.com/mig-1g.18gb": 1},
    }


def test_without_a_gpu_none_is_asked_for(render: Render) -> None:
    assert container_of(render({"gpu": {"count": 0}}))["resources"]["limits"] == {"memory": "8Gi"}


def test_security(render: Render) -> None:
    objects = render()
    pod = pod_of(objects)
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "fsGroup": 10001,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container_of(objects)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
    assert pod["serviceAccountName"] == "moe-fdmoe-ops"
    assert objects["ServiceAccount"]["automountServiceAccountToken"] is False


def test_an_existing_service_account(render: Render) -> None:
    assert pod_of(render(EVERYTHING))["serviceAccountName"] == "existing"
    assert pod_of(render({"serviceAccount": {"create": False}}))["serviceAccountName"] == "default"


def test_volumes_of_the_demo_model(render: Render) -> None:
    objects = render()
    assert pod_of(objects)["volumes"] == [
        {"name": "settings", "configMap": {"name": "moe-fdmoe-ops"}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        {"name": "state", "emptyDir": {"sizeLimit": "4Gi"}},
        {"name": "temporary", "emptyDir": {}},
    ]
    assert container_of(objects)["volumeMounts"] == [
        {"name": "settings", "mountPath": "/etc/fdmoe", "readOnly": True},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
        {"name": "state", "mountPath": "/var/lib/fdmoe"},
        {"name": "temporary", "mountPath": "/tmp"},
    ]


def test_a_grafanas_token_is_a_file_that_the_pods_group_can_read(render: Render) -> None:
    objects = render(EVERYTHING)
    (volume,) = (volume for volume in pod_of(objects)["volumes"] if volume["name"] == "grafana-token")
    assert volume["secret"] == {
        "secretName": "grafana-fdmoe",
        "defaultMode": 0o440,
        "items": [{"key": "api-token", "path": "token"}],
    }
    (mount,) = (mount for mount in container_of(objects)["volumeMounts"] if mount["name"] == "grafana-token")
    # a directory and no subPath: Kubernetes puts a changed token there
    assert mount == {"name": "grafana-token", "mountPath": "/etc/fdmoe-grafana", "readOnly": True}


def test_the_arena_fits_the_default_shared_memory(render: Render) -> None:
    (shared,) = (volume for volume in pod_of(render())["volumes"] if volume["name"] == "shared-memory")
    assert shared["emptyDir"]["sizeLimit"] == "1Gi"
    assert Settings().arena.size_bytes <= 2**30 / 2


@pytest.mark.parametrize(
    ("model", "source"),
    [
        ({"existingClaim": "c"}, {"persistentVolumeClaim": {"claimName": "c", "readOnly": True}}),
        ({"hostPath": "/srv", "directory": "m"}, {"hostPath": {"path": "/srv", "type": "Directory"}}),
    ],
)
def test_volume_of_a_model(render: Render, model: dict[str, str], source: dict[str, Any]) -> None:
    objects = render({"model": model})
    assert pod_of(objects)["volumes"][-1] == {"name": "model"} | source
    assert container_of(objects)["volumeMounts"][-1] == {"name": "model", "mountPath": "/models", "readOnly": True}


def test_state_that_outlives_the_pod(render: Render) -> None:
    (state,) = (volume for volume in pod_of(render(EVERYTHING))["volumes"] if volume["name"] == "state")
    assert state == {"name": "state", "persistentVolumeClaim": {"claimName": "flights"}}


def test_the_rest_of_the_pod(render: Render) -> None:
    objects = render(EVERYTHING)
    pod, container = pod_of(objects), container_of(objects)
    assert objects["Deployment"]["spec"]["replicas"] == 2
    assert container["image"] == "images.example/fdmoe:1.2"
    assert container["imagePullPolicy"] == "Always"
    assert container["env"][-1] == {"name": "FDMOE_LOG__LEVEL", "value": "debug"}
    assert pod["imagePullSecrets"] == [{"name": "key"}]
    assert (pod["runtimeClassName"], pod["priorityClassName"]) == ("nvidia", "high")
    assert pod["terminationGracePeriodSeconds"] == 45
    for name in ("nodeSelector", "tolerations", "affinity"):
        assert pod[name] == EVERYTHING[name]
    annotations = objects["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["example/team"] == "serving"


def test_pod_monitor(render: Render) -> None:
    assert "PodMonitor" not in render()
    monitor = render(EVERYTHING)["PodMonitor"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"] == {
        "selector": {"matchLabels": {"app.kubernetes.io/name": "fdmoe-ops", "app.kubernetes.io/instance": "moe"}},
        "podMetricsEndpoints": [
            {"port": "http", "path": "/metrics", "interval": "5s"},
            {"port": "metrics", "path": "/metrics", "interval": "5s"},
        ],
    }


def test_notes(helm: Callable[..., subprocess.CompletedProcess[str]], chart: Path, tmp_path: Path) -> None:
    # `helm template` leaves the notes out and `helm install --dry-run` asks for a cluster: here they become an object
    copy = shutil.copytree(chart, tmp_path / "chart")
    notes = copy / "templates/NOTES.txt"
    (copy / "templates/notes.yaml").write_text(
        '{{ define "notes" }}' + notes.read_text() + '{{ end }}kind: Notes\ntext: {{ include "notes" . | quote }}'
    )
    notes.unlink()
    arguments = ("--namespace", "serving", "--set", "service.port=80", "--show-only", "templates/notes.yaml")
    rendered = helm("template", "moe", copy, *arguments)
    assert rendered.returncode == 0, rendered.stderr
    text = yaml.safe_load(rendered.stdout)["text"]
    assert text.startswith("moe-fdmoe-ops serves its demo model on nvidia.com/gpu.\n")
    assert "kubectl --namespace serving exec deployment/moe-fdmoe-ops -- fdmoe status\n" in text
    assert "kubectl --namespace serving port-forward service/moe-fdmoe-ops 8080:80 9400:9400\n" in text

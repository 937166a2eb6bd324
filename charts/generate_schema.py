"""Writes the chart's values.schema.json: `python charts/generate_schema.py`, with fdmoe-ops installed.

The options of `fdmoe serve` are written once, in fdmoe_ops.settings: `settings` in the values gets its schema from
there, less the options that the chart itself decides. The rest of the values is described here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fdmoe_ops.settings import Settings

OUTPUT = Path(__file__).parent / "fdmoe-ops" / "values.schema.json"
# Kubernetes decides these: templates/_helpers.tpl writes them into the settings file, and the values cannot.
CHART_OPTIONS = {
    "Settings": ("devices", "run_dir", "flight_dir"),
    "ModelSettings": ("path",),
    "GatewaySettings": ("host", "port"),
    "WatchdogSettings": ("host", "port"),
    "GrafanaSettings": ("token_file",),
}
Schema = dict[str, Any]
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
QUANTITY: Schema = {"type": ["string", "number"], "minimum": 0, "pattern": r"^[0-9]+(\.[0-9]+)?([EPTGMk]i?|m)?$"}
QUANTITIES: Schema = {"type": "object", "additionalProperties": QUANTITY}
TEXT: Schema = {"type": "string"}
TEXT_MAP: Schema = {"type": "object", "additionalProperties": TEXT}
# Objects of Kubernetes that go into the pod as they are: Kubernetes itself knows their fields.
OBJECT: Schema = {"type": "object"}
OBJECTS: Schema = {"type": "array", "items": OBJECT}


def closed(**properties: Schema) -> Schema:
    """An object with exactly these keys. values.yaml has them all: one is missing only where a null has removed it."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": sorted(properties),
    }


def without_titles(schema: Any) -> Any:
    """pydantic titles every field with its own name in capitals, which says nothing new."""
    if isinstance(schema, list):
        return [without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: without_titles(item) for key, item in schema.items() if key != "title" or not isinstance(item, str)}


def settings_definitions() -> dict[str, Schema]:
    """The definitions of the settings tree, `Settings` among them."""
    tree = without_titles(Settings.model_json_schema())
    definitions: dict[str, Schema] = tree.pop("$defs")
    definitions["Settings"] = tree
    for group, names in CHART_OPTIONS.items():
        for name in names:
            del definitions[group]["properties"][name]
    for definition in definitions.values():
        for option in definition.get("properties", {}).values():
            option.pop("default", None)  # the program's; values.yaml has the chart's
    return definitions


def values_schema() -> str:
    """The schema's JSON text, the same bytes for the same settings tree."""
    schema = closed(
        nameOverride=TEXT,
        fullnameOverride=TEXT,
        replicaCount={"type": "integer", "minimum": 0},
        image=closed(
            repository={"type": "string", "minLength": 1},
            tag=TEXT,
            pullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
            pullSecrets=OBJECTS,
        ),
        gpu=closed(
            count={"type": "integer", "minimum": 0, "maximum": 128}, resourceName={"type": "string", "minLength": 1}
        ),
        runtimeClassName=TEXT,
        model=closed(existingClaim=TEXT, hostPath=TEXT, directory=TEXT),
        settings={"$ref": "#/$defs/Settings"},
        grafana=closed(tokenSecret=TEXT, tokenKey={"type": "string", "minLength": 1}),
        service=closed(
            type={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]}, port=PORT, metricsPort=PORT, annotations=TEXT_MAP
        ),
        serviceAccount=closed(create={"type": "boolean"}, name=TEXT, annotations=TEXT_MAP),
        podMonitor=closed(enabled={"type": "boolean"}, interval=TEXT, labels=TEXT_MAP),
        sharedMemory=closed(sizeLimit=QUANTITY),
        state=closed(existingClaim=TEXT, sizeLimit=QUANTITY),
        resources=closed(requests=QUANTITIES, limits=QUANTITIES),
        startupDeadlineSeconds={"type": "integer", "minimum": 30},
        terminationGracePeriodSeconds={"type": "integer", "minimum": 1},
        podSecurityContext=OBJECT,
        securityContext=OBJECT,
        podAnnotations=TEXT_MAP,
        podLabels=TEXT_MAP,
        extraEnv=OBJECTS,
        nodeSelector=TEXT_MAP,
        tolerations=OBJECTS,
        affinity=OBJECT,
        priorityClassName=TEXT,
    )
    schema["properties"]["global"] = OBJECT  # Helm hands it to every chart of a larger one; nothing reads it here
    schema["$defs"] = settings_definitions()
    schema["$schema"] = "http://json-schema.org/draft-07/schema#"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(values_schema(), encoding="utf-8")

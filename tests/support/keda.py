"""What KEDA takes (2.16 and newer), as far as docker/kubernetes uses it, stricter than its own schema.

KEDA's schema lets any trigger metadata pass; here only what its Kafka scaler reads does, and in its form.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

COUNT = {"type": "string", "pattern": "^[0-9]+$"}
"""KEDA takes metadata as text alone"""
POSITIVE = {"type": "string", "pattern": "^[1-9][0-9]*$"}
YES_OR_NO = {"enum": ["true", "false"]}
TEXT = {"type": "string", "minLength": 1}


def table(required: Schema, **optional: Schema) -> Schema:
    """An object of these keys and no other."""
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def integer(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


METADATA = table({"name": TEXT}, namespace=TEXT, labels={"type": "object", "additionalProperties": {"type": "string"}})
RULES = table(
    {
        "stabilizationWindowSeconds": integer(0, 3600),
        "policies": array(
            table(
                {
                    "type": {"enum": ["Pods", "Percent"]},
                    "value": integer(1, 10_000),
                    "periodSeconds": integer(1, 1800),
                }
            )
        ),
    },
    selectPolicy={"enum": ["Max", "Min", "Disabled"]},
)
KAFKA = table(
    {"bootstrapServers": TEXT, "consumerGroup": TEXT, "topic": TEXT, "lagThreshold": POSITIVE},
    activationLagThreshold=COUNT,
    offsetResetPolicy={"enum": ["latest", "earliest"]},
    limitToPartitionsWithLag=YES_OR_NO,
    sasl={"enum": ["none", "plaintext", "scram_sha256", "scram_sha512", "oauthbearer", "gssapi"]},
    tls={"enum": ["enable", "disable"]},
)
HPA = table({"behavior": table({"scaleUp": RULES, "scaleDown": RULES})})

SCHEMAS = {
    "ScaledObject": table(
        {
            "apiVersion": {"const": "keda.sh/v1alpha1"},
            "kind": {"const": "ScaledObject"},
            "metadata": METADATA,
            "spec": table(
                {
                    "scaleTargetRef": table({"name": TEXT}),
                    "minReplicaCount": integer(0, 1000),
                    "maxReplicaCount": integer(1, 1000),
                    "pollingInterval": integer(1, 3600),
                    "cooldownPeriod": integer(0, 86_400),
                    "triggers": array(
                        table({"type": {"const": "kafka"}, "metadata": KAFKA}, authenticationRef=table({"name": TEXT}))
                    ),
                },
                advanced=table({"horizontalPodAutoscalerConfig": HPA}),
            ),
        }
    ),
    "TriggerAuthentication": table(
        {
            "apiVersion": {"const": "keda.sh/v1alpha1"},
            "kind": {"const": "TriggerAuthentication"},
            "metadata": METADATA,
            "spec": table(
                {
                    "secretTargetRef": array(
                        table(
                            {
                                "parameter": {
                                    "enum": ["sasl", "tls", "username", "password", "ca", "cert", "key", "keyPassword"]
                                },
                                "name": TEXT,
                                "key": TEXT,
                            }
                        )
                    )
                }
            ),
        }
    ),
}
"""kind -> JSON schema"""

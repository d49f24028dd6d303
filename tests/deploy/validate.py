"""Check Kubernetes objects on standard input against Kubernetes' own schemas, strictly; prints their kinds.

Runs in `.venv-clients`, with kubernetes-validate on PYTHONPATH. Kinds of other makers have no schema here.
"""

import json
import sys

import kubernetes_validate
import yaml

OTHERS = ("ServiceMonitor", "PrometheusRule", "ScaledObject")

objects = [found for found in yaml.safe_load_all(sys.stdin) if found]
for found in objects:
    if found["kind"] not in OTHERS:
        kubernetes_validate.validate(found, "1.36", strict=True)
json.dump(objects, sys.stdout)

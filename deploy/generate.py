"""Deployments for clusters that are not Anyscale's, made of service.yaml and jobs/render.yaml.

`python deploy/generate.py` writes deploy/serve.yaml and deploy/kubernetes/.
"""

from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parent.parent

# To be replaced by whoever deploys: the image of deploy/Dockerfile, and a zip file of this
# repository (git archive --output code.zip HEAD) where the nodes can read it.
IMAGE = "registry.example.com/stable-diffusion-on-ray:latest"
CODE = "s3://example-bucket/code.zip"

_RAY_VERSION = "2.60.0"
_GPU = "nvidia.com/gpu"
_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": 8000, "metrics": 8080}
# The Secret that has the tokens of those who may call.
_TOKEN = {"secretKeyRef": {"name": "stable-diffusion-on-ray", "key": "api-token"}}
_NOTES = {
    "serve.yaml": (
        "A Serve config: serve deploy deploy/serve.yaml",
        "on a cluster whose nodes have the project installed, or with a runtime_env of the",
        "application that brings its code. Nodes are to be started with the environment in",
        "serving/serve_environment.py, and API_TOKEN.",
    ),
    "kubernetes/rayservice.yaml": (
        "A RayService of KubeRay: kubectl apply -f deploy/kubernetes/rayservice.yaml",
        "Its tokens are in a Secret:",
        "kubectl create secret generic stable-diffusion-on-ray --from-literal=api-token=...",
    ),
    "kubernetes/rayjob.yaml": (
        "A RayJob of KubeRay: kubectl create -f deploy/kubernetes/rayjob.yaml",
        "The output has to be where all of its nodes may write.",
    ),
}


def deployments() -> dict[str, dict[str, Any]]:
    """The content of each file, by its path in deploy/."""
    service, job = _read("service.yaml"), _read("jobs/render.yaml")
    environment: dict[str, Any] = service["env_vars"]
    serve = {
        "http_options": {"host": "0.0.0.0", "port": _PORTS["serve"]},
        "applications": service["applications"],
    }
    (application,) = service["applications"]
    carried = serve | {"applications": [application | {"runtime_env": {"working_dir": CODE}}]}
    variables = [{"name": name, "value": value} for name, value in environment.items()]
    variables.append({"name": "API_TOKEN", "valueFrom": _TOKEN})
    return {
        "serve.yaml": serve,
        "kubernetes/rayservice.yaml": _resource(
            "RayService",
            service["name"],
            # A cluster that another one follows finishes what it has: http.timeout_s at most.
            rayClusterDeletionDelaySeconds=600,
            serveConfigV2=_Text(_dump(carried)),
            rayClusterConfig=_cluster(variables, max_workers=_max_replicas(application)),
        ),
        "kubernetes/rayjob.yaml": _resource(
            "RayJob",
            job["name"],
            entrypoint=_entrypoint(job["entrypoint"]),
            runtimeEnvYAML=_Text(_dump({"working_dir": CODE})),
            backoffLimit=job["max_retries"],
            shutdownAfterJobFinishes=True,
            ttlSecondsAfterFinished=3600,
            rayClusterSpec=_cluster([], max_workers=1),
        ),
    }


def _max_replicas(application: dict[str, Any]) -> int:
    """A generator has a node, with its GPU, to itself."""
    (generator,) = (each for each in application["deployments"] if each["name"] == "Generator")
    number: int = generator["autoscaling_config"]["max_replicas"]
    return number


def _entrypoint(words: str) -> str:
    return words.replace("$ANYSCALE_ARTIFACT_STORAGE", CODE.rpartition("/")[0])


def _resource(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def _cluster(variables: list[dict[str, Any]], max_workers: int) -> dict[str, Any]:
    """A head that does not compute, and workers of one GPU each."""
    head = _template("ray-head", variables, cpu="2", memory="8Gi", ports=_PORTS)
    worker = _template("ray-worker", variables, cpu="4", memory="16Gi", gpus=1)
    return {
        "rayVersion": _RAY_VERSION,
        "enableInTreeAutoscaling": True,
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": head},
        "workerGroupSpecs": [
            {
                "groupName": "gpu",
                "replicas": 1,
                "minReplicas": 1,
                "maxReplicas": max_workers,
                "rayStartParams": {},
                "template": worker,
            }
        ],
    }


def _template(
    name: str,
    variables: list[dict[str, Any]],
    *,
    cpu: str,
    memory: str,
    gpus: int = 0,
    ports: dict[str, int] | None = None,
) -> dict[str, Any]:
    resources = {"cpu": cpu, "memory": memory} | ({_GPU: gpus} if gpus else {})
    container: dict[str, Any] = {
        "name": name,
        "image": IMAGE,
        "resources": {"requests": resources, "limits": resources},
    }
    if variables:
        container["env"] = variables
    if ports:
        container["ports"] = [{"name": k, "containerPort": v} for k, v in ports.items()]
    return {"spec": {"containers": [container]}}


class _Text(str):
    """Written as lines, and not as one long one."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    _Text, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
)


def _dump(content: dict[str, Any]) -> str:
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=100)
    return text


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((REPO / name).read_text())
    return content


def texts() -> dict[str, str]:
    """The text of each file, by its path in deploy/."""
    return {name: _comment(_NOTES[name]) + _dump(each) for name, each in deployments().items()}


def _comment(lines: tuple[str, ...]) -> str:
    source = "Made by deploy/generate.py of service.yaml and jobs/render.yaml: change those."
    return "".join(f"# {line}\n" for line in (source, *lines))


if __name__ == "__main__":
    for name, text in texts().items():
        (REPO / "deploy" / name).parent.mkdir(exist_ok=True)
        (REPO / "deploy" / name).write_text(text)

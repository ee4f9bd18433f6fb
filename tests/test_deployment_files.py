"""Every key of the deployment files is one that its reader knows; Serve itself drops the others."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from anyscale.job.models import JobConfig
from anyscale.service.models import ServiceConfig
from pydantic import ValidationError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import (
    DeploymentSchema,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from deploy.generate import CODE, texts
from jobs.arguments import parse
from serving.app import ServiceArgs
from serving.generator import Generator
from serving.ingress import Ingress
from serving.serve_environment import SERVE_ENVIRONMENT

REPO = Path(__file__).resolve().parent.parent
KUBERAY = REPO / "tests" / "schemas" / "kuberay-1.7.0.json"
NESTED = {
    "autoscaling_config": AutoscalingConfig,
    "ray_actor_options": RayActorOptionsSchema,
}


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((REPO / name).read_text())
    return content


def unknown_keys(application: dict[str, Any]) -> set[str]:
    unknown = application.keys() - ServeApplicationSchema.model_fields.keys()
    for deployment in application.get("deployments", []):
        unknown |= deployment.keys() - DeploymentSchema.model_fields.keys()
        for key, schema in NESTED.items():
            unknown |= deployment.get(key, {}).keys() - schema.model_fields.keys()
    return unknown


def test_the_service_is_what_anyscale_and_serve_know() -> None:
    service = ServiceConfig.from_yaml(str(REPO / "service.yaml"))
    assert service.env_vars == SERVE_ENVIRONMENT
    for application in read("service.yaml")["applications"]:
        assert unknown_keys(application) == set()
        ServeApplicationSchema.model_validate(application)
        ServiceArgs.model_validate(application["args"])
        for deployment in application["deployments"]:
            _check_policy(deployment.get("autoscaling_config", {}).get("policy"))
        names = {deployment["name"] for deployment in application["deployments"]}
        assert names == {Generator.name, Ingress.name}


def _check_policy(policy: dict[str, Any] | None) -> None:
    """Serve would look for it, and build it, only when it is deployed."""
    if policy is not None:
        assert policy.keys() <= AutoscalingPolicy.model_fields.keys()
        checked = AutoscalingPolicy(**policy)
        checked.get_policy()(**checked.policy_kwargs)


@pytest.mark.parametrize(
    "change",
    [
        {"import_paht": "x"},
        {"deployments": [{"name": "Generator", "max_ongoing_request": 3}]},
        {"deployments": [{"name": "Generator", "autoscaling_config": {"max_replica": 3}}]},
    ],
)
def test_a_misspelt_key_is_found(change: dict[str, Any]) -> None:
    assert unknown_keys(read("service.yaml")["applications"][0] | change)


def test_misspelt_arguments_are_refused() -> None:
    for arguments in ({"modle": "postcard"}, {"engine": {"max_in_fligth": 3}}):
        with pytest.raises(ValidationError):
            ServiceArgs.model_validate(arguments)


def test_the_job_is_what_anyscale_and_the_command_line_know() -> None:
    job = JobConfig.from_yaml(str(REPO / "jobs" / "render.yaml"))
    command = ["python", "-m", "jobs.render"]
    words = job.entrypoint.split()
    assert words[:3] == command
    assert (REPO / parse(words[3:]).input).is_file()


@pytest.mark.parametrize("name", ["service.yaml", "jobs/render.yaml"])
def test_deployments_install_the_tested_versions(name: str) -> None:
    constraints = _pins((REPO / "constraints.txt").read_text().splitlines())
    content = read(name)
    for package, version in _pins(content["requirements"]).items():
        assert constraints[package] == version
    assert f":{constraints['ray']}-" in content["image_uri"]


@pytest.mark.parametrize("name", texts())
def test_other_clusters_get_what_anyscale_gets(name: str) -> None:
    assert (REPO / "deploy" / name).read_text() == texts()[name], "run python deploy/generate.py"


def test_the_serve_config_is_what_serve_knows() -> None:
    config = read("deploy/serve.yaml")
    assert config.keys() <= ServeDeploySchema.model_fields.keys()
    ServeDeploySchema.model_validate(config)


@pytest.mark.parametrize("name", ["rayservice", "rayjob"])
def test_kuberay_knows_its_resources(name: str) -> None:
    resource = read(f"deploy/kubernetes/{name}.yaml")
    assert list(kuberay_errors(resource)) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["spec", "serveConfigV3"], "x"),
        (["spec", "rayClusterConfig", "rayVersion"], 2.6),
        (["spec", "rayClusterConfig", "headGroupSpec", "template", "spec", "container"], []),
        (["spec", "rayClusterConfig", "workerGroupSpecs", 0, "maxReplica"], 3),
        (["spec", "rayClusterConfig", "workerGroupSpecs", 0, "groupName"], None),
    ],
)
def test_what_kuberay_would_drop_is_found(path: list[Any], value: Any) -> None:
    resource = read("deploy/kubernetes/rayservice.yaml")
    *parents, name = path
    place: Any = resource
    for each in parents:
        place = place[each]
    place[name] = value
    assert list(kuberay_errors(resource))


def test_kubernetes_runs_what_is_in_its_texts() -> None:
    service = read("deploy/kubernetes/rayservice.yaml")["spec"]
    config = yaml.safe_load(service["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    assert unknown_keys(application) == set()
    assert application.pop("runtime_env") == {"working_dir": CODE}
    assert [application] == read("service.yaml")["applications"]
    for group in (
        service["rayClusterConfig"]["headGroupSpec"],
        *service["rayClusterConfig"]["workerGroupSpecs"],
    ):
        (container,) = group["template"]["spec"]["containers"]
        variables = {each["name"]: each.get("value") for each in container["env"]}
        assert variables.items() > SERVE_ENVIRONMENT.items()
    job = read("deploy/kubernetes/rayjob.yaml")["spec"]
    assert "://" in parse(job["entrypoint"].split()[3:]).output


def kuberay_errors(resource: dict[str, Any]) -> Iterable[jsonschema.ValidationError]:
    """Of the schema of its kind, and unknown keys, which a cluster would drop without a word."""
    schemas = json.loads(KUBERAY.read_text())
    schema = _closed(schemas[resource["kind"]] | {"$defs": schemas["$defs"]})
    return jsonschema.Draft202012Validator(schema).iter_errors(resource)


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(each) for name, each in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def test_images_are_of_the_tested_versions() -> None:
    """The Dockerfile installs what pyproject.toml asks for, in the versions of constraints.txt."""
    version = _pins((REPO / "constraints.txt").read_text().splitlines())["ray"]
    dockerfile = (REPO / "deploy" / "Dockerfile").read_text()
    assert dockerfile.count(f"rayproject/ray:{version}-py312-") == 2
    for name, key in (("rayservice", "rayClusterConfig"), ("rayjob", "rayClusterSpec")):
        assert read(f"deploy/kubernetes/{name}.yaml")["spec"][key]["rayVersion"] == version


def _pins(lines: Iterable[str]) -> dict[str, str]:
    return dict(line.split("==") for line in lines if "==" in line)

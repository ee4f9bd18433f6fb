"""Every key of the deployment files is one that its reader knows; Serve itself drops the others."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from anyscale.job.models import JobConfig
from anyscale.service.models import ServiceConfig
from pydantic import ValidationError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import DeploymentSchema, RayActorOptionsSchema, ServeApplicationSchema

from jobs.arguments import parse
from serving.app import ServiceArgs
from serving.generator import Generator
from serving.ingress import Ingress
from serving.serve_environment import SERVE_ENVIRONMENT

REPO = Path(__file__).resolve().parent.parent
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


def _pins(lines: Iterable[str]) -> dict[str, str]:
    return dict(line.split("==") for line in lines if "==" in line)

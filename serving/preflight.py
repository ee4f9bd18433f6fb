"""Whether the nodes find the checkpoint, asked before a running service is touched.

Serve ends the only replica of a deployment before it starts the one that is to follow: with a
checkpoint that cannot be loaded, that would be the end of the service.
"""

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shared.config import ModelConfig
from shared.errors import ModelUnavailable
from shared.model_files import describe_model


def check_model(model: ModelConfig, num_gpus: float) -> None:
    """Raise ModelUnavailable, with the reason, if no node that takes a generator finds it.

    Where there is no such node yet, nothing can be said. A hub id is downloaded by this.
    """
    look = ray.remote(num_cpus=0)(_look)
    reasons = ray.get(
        [look.options(scheduling_strategy=_on(node)).remote(model) for node in _nodes(num_gpus)]
    )
    if reasons and all(reasons):
        raise ModelUnavailable(reasons[0])


def _look(model: ModelConfig) -> str | None:
    """What is wrong with it on this node."""
    try:
        describe_model(model)
    except ModelUnavailable as error:
        return str(error)
    return None


def _nodes(num_gpus: float) -> list[str]:
    return [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU", 0) >= num_gpus
    ]


def _on(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)

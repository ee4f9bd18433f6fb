"""Whether the nodes find the checkpoint, asked before a running service is touched.

Serve ends the only replica of a deployment before it starts the one that is to follow: with a
checkpoint that cannot be loaded, that would be the end of the service.
"""

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shared.config import ModelConfig
from shared.errors import ModelUnavailable
from shared.model_names import find_folder


def check_model(model: ModelConfig, num_cpus: float, num_gpus: float) -> None:
    """Raise ModelUnavailable, with the reason, if no node that can take a generator finds it.

    Where there is no such node yet, or one does not answer, nothing can be said. A hub id is
    downloaded by whoever is asked.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = _nodes({"CPU": num_cpus, "GPU": num_gpus})
    reasons = [_look(model)] if here in nodes else []
    if reasons == [None]:
        return  # most clusters' nodes are alike, and another process takes seconds to start
    look = ray.remote(num_cpus=0)(_look)
    looks = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        for node in nodes
        if node != here
    ]
    reasons += [_answer(each) for each in [each.remote(model) for each in looks]]
    if reasons and all(reasons):
        raise ModelUnavailable(reasons[0])


def _answer(look: ray.ObjectRef) -> str | None:
    try:
        reason: str | None = ray.get(look)
    except RayError:  # its node is lost, or full
        return None
    return reason


def _look(model: ModelConfig) -> str | None:
    """What is wrong with it on this node."""
    try:
        find_folder(model)
        from shared.model_files import describe_model  # seconds: it loads diffusers

        describe_model(model)
    except ModelUnavailable as error:
        return str(error)
    return None


def _nodes(needed: dict[str, float]) -> list[str]:
    return [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"]
        and all(node["Resources"].get(name, 0) >= number for name, number in needed.items())
    ]

"""Settings of Ray Serve that only its environment takes, and only before `ray.serve` is imported.

On a cluster they belong into the environment of every node (`env_vars` of service.yaml).
"""

# What each is worth: docs/decisions.md, "Ray Serve's short ways".
SERVE_ENVIRONMENT = {
    # From proxy to ingress and from ingress to generator, instead of calls of actors.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # Our handlers only wait, and the engine has a thread of its own: no more of them are needed.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # The controller looks after the replicas once a second, and not ten times.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "1",
    # A replica that does not answer is given no time to finish what it will not.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
}

"""What the HTTP door adds to a picture: a client's time less what the rendering took.

python benchmarks/door.py

One client, one request after the other. The rendering is what the answer says of it in
`Server-Timing`: queue, engine, PNG encoder. The rest is HTTP, two hops of Ray Serve, and checks.
"""

import argparse
import re
import statistics
import time

import requests
from local_service import local_service


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    with local_service() as service, requests.Session() as session:
        for size in options.sizes:
            query = {"prompt": "a", "img_size": size, "num_inference_steps": options.steps}
            measure(session, f"{service.url}/imagine", query, options.requests)


def measure(session: requests.Session, url: str, query: dict[str, object], number: int) -> None:
    whole, door, encoding = [], [], []
    for _ in range(number):
        started = time.perf_counter()
        response = session.get(url, params=query, timeout=60)
        whole.append((time.perf_counter() - started) * 1000)
        response.raise_for_status()
        timing = dict(re.findall(r"(\w+);dur=([\d.]+)", response.headers["Server-Timing"]))
        door.append(whole[-1] - sum(float(ms) for ms in timing.values()))
        encoding.append(float(timing["encode"]))
    print(
        f"{query['img_size']} px, {query['num_inference_steps']} steps: p50 {p50(whole):.1f} ms; "
        f"of that the encoder {p50(encoding):.1f}, the door {p50(door):.1f} (p95 {p95(door):.1f})",
        flush=True,
    )


def p50(values: list[float]) -> float:
    return statistics.median(values)


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


if __name__ == "__main__":
    main()

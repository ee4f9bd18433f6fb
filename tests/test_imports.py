"""Which processes are spared torch and diffusers: seconds of their start, hundreds of megabytes."""

import subprocess
import sys

import pytest

from tests.conftest import REPO


@pytest.mark.parametrize(
    "module",
    ["serving.app", "serving.ingress", "serving.routing", "serving.__main__", "jobs.render"],
)
def test_what_only_deploys_or_passes_on_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(*{{'torch', 'diffusers'}} & {{*sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, check=True)
    assert ran.stdout.strip() == b""

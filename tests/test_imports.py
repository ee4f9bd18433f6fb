"""Which processes are spared torch and diffusers: seconds of their start, hundreds of megabytes."""

import subprocess
import sys

from tests.conftest import REPO

MODULES = ["serving.app", "serving.ingress", "serving.routing", "serving.__main__", "jobs.render"]


def test_what_only_deploys_or_passes_on_loads_no_torch() -> None:
    code = f"""
import importlib, sys
for module in {MODULES}:
    importlib.import_module(module)
    assert not {{"torch", "diffusers"}} & {{*sys.modules}}, module
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr

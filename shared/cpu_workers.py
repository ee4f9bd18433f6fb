"""Environment of processes that compute on a CPU; each setting's worth is in docs/decisions.md."""

import os
import sys
from collections.abc import Mapping

# glibc's malloc keeps what is freed. A forward frees hundreds of large activations and asks for the
# same ones again; each time that they went back to the system meanwhile, it clears their pages
# anew. MALLOC_TOP_PAD_ is for the arenas of all threads but the first, which else return each of
# their heaps of 64 MiB once it is empty; what is larger than a heap, they return each time. Other C
# libraries ignore it.
KEEP_FREED_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_MMAP_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(2**27),
}

# libgomp's threads wait for their next share in a busy loop. This is long enough for the next
# layer, and not for the next forward: meanwhile the processor is wanted by pipelines' own code, by
# the picture that is being encoded, and by whoever answers. Other OpenMP libraries ignore it.
SLEEP_BETWEEN_FORWARDS = {"GOMP_SPINCOUNT": "10000"}

# oneDNN keeps the code that it made for a layer and a number of rows, for the last 1024 of them. A
# denoiser has a hundred layers and its forwards any number of rows: soon each is made again and
# again.
KEEP_MADE_CODE = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16384"}

CPU_WORKER = KEEP_FREED_MEMORY | SLEEP_BETWEEN_FORWARDS | KEEP_MADE_CODE


def restart_with(settings: Mapping[str, str]) -> None:
    """Run this program anew if it lacks these: these libraries read theirs when it starts."""
    if not settings.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | settings)

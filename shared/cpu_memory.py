"""Memory of processes that compute on a CPU."""

# Environment of a process in which glibc's malloc keeps what is freed, and does so in its one
# arena: those of other threads cannot hold what is larger than 64 MiB. A forward frees hundreds of
# large activations and asks for the same ones again; each time that they went back to the system
# meanwhile, it clears their pages anew (docs/decisions.md). Other C libraries ignore it.
KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_MMAP_THRESHOLD_": str(2**31 - 1),
}

"""Writes examples/prompts.parquet: prompts in the bundled model's words, with mixed settings."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SUBJECTS = [
    "twin peaks sf",
    "two mountains by a lake",
    "mount fuji over the sea",
    "rolling hills and a meadow",
    "a pine forest in the snow",
    "city skyline by the bay",
    "sand dunes in the desert",
]
STYLES = [
    "in basquiat painting style, blue sky",
    "flat illustration, sunset",
    "soft watercolor, pink dawn",
    "neon, synthwave, at night",
    "pencil sketch",
    "stormy sky",
]
# One row in three asks for other than the model's defaults: null means the default.
STEPS = [None, 12, None, None, 28, None]
GUIDANCE = [None, None, 3.0, None, 6.0, None]
SIZES = [(None, None), (None, None), (256, 192), (None, None), (None, None), (192, 256)]


def main() -> None:
    prompts = [f"{subject}, {style}" for subject in SUBJECTS for style in STYLES]
    settings = [(STEPS[i % 6], GUIDANCE[i % 6], *SIZES[i % 6]) for i in range(len(prompts))]
    steps, guidance, widths, heights = zip(*settings, strict=True)
    table = pa.table(
        {
            "prompt": pa.array(prompts, pa.string()),
            "num_inference_steps": pa.array(steps, pa.int32()),
            "guidance_scale": pa.array(guidance, pa.float64()),
            "width": pa.array(widths, pa.int32()),
            "height": pa.array(heights, pa.int32()),
        }
    )
    pq.write_table(table, Path(__file__).parent / "prompts.parquet")


if __name__ == "__main__":
    main()

"""Arguments that several benchmarks have."""

import argparse
import os


def add_num_cpus(parser: argparse.ArgumentParser, whose: str) -> None:
    """`--num-cpus`, of no more than there are: Ray waits for the others for ever."""
    most = os.cpu_count() or 1
    parser.add_argument(
        "--num-cpus",
        type=int,
        choices=range(1, most + 1),
        metavar="NUMBER",
        default=most,
        help=f"{whose} (%(default)s)",
    )

"""A moving picture of an engine's forwards: requests that come, share them and go, at any step.

Seven requests come one after the other to an engine on the bundled model. Each column of the
picture is a forward as it was run, each box a row of it; the letters are requests.

python benchmarks/forwards_film.py docs/images/forwards.svg
"""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from shared.counters import Member, PastForward, Priority
from shared.engine import DenoiseEngine
from shared.pipeline import load_pipeline

# Steps, guidance, priority, and after how many forwards it comes.
COMING = [
    (18, 4.0, Priority.ONLINE, 0),
    (8, 4.0, Priority.ONLINE, 4),
    (14, 1.0, Priority.ONLINE, 6),
    (6, 7.5, Priority.ONLINE, 9),
    (10, 4.0, Priority.ONLINE, 16),
    (12, 4.0, Priority.BULK, 10),
    (9, 4.0, Priority.BULK, 10),
]
BOX, TOP, LEGEND = 22, 14, 190
SECONDS_A_FORWARD = 0.4
WHOLE = 0.2  # of the film, at its start: all of it, as where nothing moves


def main() -> None:
    (file,) = sys.argv[1:]
    with DenoiseEngine(load_pipeline("postcard")) as engine:
        forwards = list(rendered(engine))
    Path(file).write_text(film(forwards))
    print(f"{len(forwards)} forwards in {file}")


def rendered(engine: DenoiseEngine) -> Iterator[PastForward]:
    """All forwards of those who come, each when its time has come."""
    waiting = sorted(COMING, key=lambda each: each[-1])
    tickets, num_forwards = [], 0

    def let_in(*_: object) -> None:
        """In the engine's thread, between two forwards: nobody comes too late."""
        while waiting and waiting[0][-1] <= num_forwards:
            steps, guidance, priority, _ = waiting.pop(0)
            tickets.append(
                engine.submit(
                    prompt="dunes",
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    priority=priority,
                    width=64,
                    height=64,
                    on_step=count,
                )
            )

    def count(*_: object) -> None:
        nonlocal num_forwards
        num_forwards = engine.counters().num_forwards
        let_in()

    let_in()
    while waiting or not all(ticket.done() for ticket in tickets):
        engine.check_alive()
        time.sleep(0.05)
    latest = engine.forwards().latest
    assert latest[0].number == 1, "the engine does not keep so many"
    yield from latest


def film(forwards: Sequence[PastForward]) -> str:
    tallest = max(sum(member.rows for member in each.members) for each in forwards)
    width, height = LEGEND + BOX * len(forwards), TOP + BOX * tallest + 34
    columns = "".join(
        column(each, LEGEND + BOX * i, TOP + BOX * tallest, i / len(forwards), len(forwards))
        for i, each in enumerate(forwards)
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"
 font-family="system-ui, sans-serif" font-size="12">
<title>The forwards of an engine, one after the other, and whose rows are in each</title>
<defs><pattern id="bulk" width="5" height="5" patternUnits="userSpaceOnUse"
 patternTransform="rotate(45)">
<rect width="2" height="5" fill="#000" fill-opacity=".3"/></pattern></defs>
<rect width="100%" height="100%" rx="8" fill="#f5f3f0"/>
{legend(forwards)}
{columns}
<text x="{LEGEND}" y="{height - 12}" fill="#555">each column is one forward of the denoiser,
 each box a row of it; time goes to the right</text>
</svg>
"""


def column(forward: PastForward, x: int, bottom: int, since: float, number: int) -> str:
    """Its boxes, which are there from their part of the film on."""
    assert not forward.padding_rows, "boxes of nobody are not drawn"
    owners = [member for member in forward.members for _ in range(member.rows)]
    boxes = "".join(box(member, x, bottom - BOX * (i + 1)) for i, member in enumerate(owners))
    comes = (
        '<animate attributeName="opacity" calcMode="discrete" values="1;0;1"'
        f' keyTimes="0;{WHOLE};{WHOLE + (1 - WHOLE) * since:.4f}"'
        f' dur="{number * SECONDS_A_FORWARD / (1 - WHOLE):.1f}s" repeatCount="indefinite"/>'
    )
    return f"<g>{boxes}{comes if since else ''}</g>\n"


def box(member: Member, x: int, y: int) -> str:
    shape = f'x="{x + 1}" y="{y + 1}" width="{BOX - 2}" height="{BOX - 2}" rx="3"'
    striped = f'<rect {shape} fill="url(#bulk)"/>' if member.priority == "bulk" else ""
    return (
        f'<rect {shape} fill="{colour(member.request)}"/>{striped}'
        f'<text x="{x + BOX / 2}" y="{y + BOX / 2 + 4}" text-anchor="middle">'
        f"{letter(member.request)}</text>"
    )


def legend(forwards: Sequence[PastForward]) -> str:
    members = {each.request: each for forward in forwards for each in forward.members}
    return "\n".join(
        f'<rect x="14" y="{TOP + 22 * i}" width="14" height="14" rx="3" fill="{colour(number)}"/>'
        f'<text x="36" y="{TOP + 11 + 22 * i}" fill="#222">'
        + escape(f"{letter(number)}: {members[number].num_steps} steps, {members[number].priority}")
        + "</text>"
        for i, number in enumerate(sorted(members))
    )


def letter(request: int) -> str:
    return chr(ord("A") + request - 1)


def colour(request: int) -> str:
    return f"hsl({request * 137 % 360} 60% 68%)"


if __name__ == "__main__":
    main()

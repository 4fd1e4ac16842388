"""`rexthinker-edge refer`: the main job, a picture and expressions in, boxes and reasons out.

Contract  Exit code 0 found, 3 absent, 4 no candidates, 5 malformed, truncated, timeout or ungrounded; of
          several expressions the highest. With --json stdout holds one object per expression, a line each.
Elsewhere the work: runtime/thinker.py, runtime/scene.py; how it is shown: show.py.
"""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rexthinker_edge.commands.explaining import check_explanation, write_explanation
from rexthinker_edge.progress import phase
from rexthinker_edge.runtime.errors import BoxError

if TYPE_CHECKING:
    from rexthinker_edge.runtime.image import Picture
    from rexthinker_edge.runtime.result import Result
    from rexthinker_edge.runtime.scene import Scene

Terms = tuple[int | None, float | None, float | None]  # most new tokens, instant of the deadline, most risk

MAX_BOXES_FILE_BYTES = 1_000_000
EXIT_CODES = {
    "found": 0,
    "absent": 3,
    "no_candidates": 4,
    "malformed": 5,
    "truncated": 5,
    "timeout": 5,
    "ungrounded": 5,
}


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("category")
@click.argument("expressions", metavar="EXPRESSION...", nargs=-1, required=True)
@click.option(
    "--bundle", type=click.Path(path_type=Path), help="Bundle directory; the small one that is built in."
)
@click.option(
    "--boxes", type=click.Path(path_type=Path), help="JSON file of candidates, [[x0, y0, x1, y1], ...]."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per expression.")
@click.option("--out", type=click.Path(path_type=Path), help="Draw candidates and answer into this picture.")
@click.option("--stream", is_flag=True, help="Print the thought as it comes.")
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MS",
    help="Give up after this, looking and all expressions included.",
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), metavar="N", help="Longest answer.")
@click.option("--device", default="cpu", show_default=True, help="Where to run.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Cores to use; all of them.")
@click.option("--no-draft", is_flag=True, help="One token a pass: slower, the same answer.")
@click.option(
    "--max-risk",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Withhold answers so that of those given no more than this share is wrong, such as 0.05.",
)
@click.option(
    "--explain",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write what the answer rests on: .html, .svg, .json or .txt.",
)
def refer(
    image: Path, category: str, expressions: tuple[str, ...], bundle: Path | None, boxes: Path | None,
    as_json: bool, out: Path | None, stream: bool, deadline: float | None, max_new_tokens: int | None,
    device: str, threads: int | None, no_draft: bool, max_risk: float | None, explain: Path | None,
) -> int:  # fmt: skip
    """Find what each EXPRESSION means among the things of CATEGORY in IMAGE.

    Exit code: 0 found, 3 absent, 4 no candidates, 5 no usable answer or one withheld, 1 error, 2 usage.
    """
    if as_json and stream:
        raise click.UsageError("--json and --stream exclude each other: a stream is for reading.")
    if len(expressions) > 1 and (out is not None or explain is not None):
        name, does = ("--out", "draws") if out is not None else ("--explain", "is about")
        raise click.UsageError(f"{name} {does} one expression: ask for one at a time.")
    from rexthinker_edge.runtime.image import read_picture  # noqa: PLC0415
    from rexthinker_edge.runtime.tokens import check_text  # noqa: PLC0415

    _check_outputs(out, explain)
    category, asked = check_text("category", category), [check_text("expression", e) for e in expressions]
    given = None if boxes is None else read_boxes(boxes)
    picture = read_picture(image)
    with phase("loading the bundle"):
        from rexthinker_edge.runtime.thinker import load  # noqa: PLC0415

        thinker = load(bundle, device=device, threads=threads, drafting=not no_draft)
    if max_risk is not None:
        thinker.threshold(max_risk)  # what cannot be promised is told before the work
    until = None if deadline is None else time.monotonic() + deadline / 1000
    with phase(f"looking for every {category}"):
        scene = thinker.look(picture, category, boxes=given, deadline_ms=deadline)
    results = _ask_all(scene, asked, (max_new_tokens, until, max_risk), as_json, stream)
    _write_outputs(results[0], picture, out, explain)
    return max(EXIT_CODES[result.status] for result in results)


def _check_outputs(out: Path | None, explain: Path | None) -> None:
    """Refuse what could not be written, before the work."""
    if out is not None:
        from rexthinker_edge.runtime.draw import check_target  # noqa: PLC0415

        check_target(out)
    if explain is not None:
        check_explanation(explain)


def _write_outputs(result: "Result", picture: "Picture", out: Path | None, explain: Path | None) -> None:
    if out is not None:
        from rexthinker_edge.runtime.draw import draw_result, save_whole  # noqa: PLC0415

        save_whole(draw_result(picture, result), out)
    if explain is not None:
        write_explanation(result.explain(picture.pixels_HWC), explain)


def read_boxes(path: Path) -> list[Any]:
    """Candidates of a JSON file: a list of [x0, y0, x1, y1], or {"boxes": that list}.

    Raises:
        BoxError: the file is missing, too large or holds neither.
    """
    try:
        if path.stat().st_size > MAX_BOXES_FILE_BYTES:
            raise BoxError(
                f"{path}: {path.stat().st_size:,} bytes, at most {MAX_BOXES_FILE_BYTES:,} are read. "
                "Keep fewer boxes."
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BoxError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise BoxError(f"{path}: not JSON ({error}). Write [[x0, y0, x1, y1], ...].") from error
    rows = value.get("boxes") if isinstance(value, dict) and set(value) == {"boxes"} else value
    if not isinstance(rows, list):
        raise BoxError(
            f'{path}: neither a list of boxes nor {{"boxes": [...]}}. Write [[x0, y0, x1, y1], ...].'
        )
    return rows


def _ask_all(scene: "Scene", asked: list[str], terms: Terms, as_json: bool, stream: bool) -> "list[Result]":
    """A result for each expression, shown as soon as it is there."""
    if stream:
        return [_streamed(scene, expression, terms) for expression in asked]
    max_new_tokens, until, max_risk = terms
    deadline = _left_ms(until)
    if len(asked) == 1:
        with phase(f"thinking about {asked[0]}"):
            results = [scene.refer(asked[0], max_new_tokens, deadline, max_risk=max_risk)]
    else:
        with phase(f"thinking about {len(asked)} expressions"):
            results = scene.refer_many(asked, max_new_tokens, deadline, max_risk=max_risk)
    for result in results:
        _show(result, as_json)
    return results


def _left_ms(until: float | None) -> float | None:
    """Milliseconds to an instant of `time.monotonic()`; a little where it has come, which is then told."""
    return None if until is None else max((until - time.monotonic()) * 1000, 1e-3)


def _show(result: "Result", as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result.to_json(), ensure_ascii=False))
        return
    from rexthinker_edge.commands.show import Painter, show_result  # noqa: PLC0415

    show_result(Painter(sys.stdout), result, steps=True)


def _streamed(scene: "Scene", expression: str, terms: Terms) -> "Result":
    from rexthinker_edge.commands.show import Painter, show_result  # noqa: PLC0415
    from rexthinker_edge.runtime.result import ResultEvent, TextEvent  # noqa: PLC0415

    painter, result = Painter(sys.stdout), None
    max_new_tokens, until, max_risk = terms
    for event in scene.stream(expression, max_new_tokens, _left_ms(until), max_risk=max_risk):
        if isinstance(event, TextEvent):
            painter.write(event.text)
        elif isinstance(event, ResultEvent):
            result = event.result
    painter.end()
    assert result is not None
    show_result(painter, result, steps=False)
    return result

"""The command line: output, exit codes, and one line for every error."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rexthinker_edge import progress
from rexthinker_edge.cli import VERBS, run
from rexthinker_edge.commands.show import printable
from rexthinker_edge.runtime.bundle import open_bundle, seal


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "bench.png"
    Image.fromarray(np.full((100, 200, 3), 90, np.uint8)).save(path)
    return path


def answering(*texts):
    """A script that gives one text after the other."""
    left = list(texts)
    return lambda _prompt: left.pop(0)


ABSENT = "</think><answer>json\n[]\n</answer>"
UNGROUNDED = '</think><answer>[{"bbox_2d": [0, 0, 5, 5]}]</answer>'


def test_found(make_world, picture, capsys):
    make_world()
    assert run(["refer", str(picture), "ball", "the red ball"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert lines[0] == "# Step 1: Look at the color."
    assert "- Ball 2: red ✅" in lines
    found = next(i for i, line in enumerate(lines) if line.startswith("found  the red ball  (3 candidates, "))
    assert lines[found + 1] == "→ ✅ Ball 2  [70.0, 20.0, 120.0, 80.0]  score 0.70"
    assert lines[found + 2] == "  ❌ Ball 1  [10.0, 20.0, 60.0, 80.0]  score 0.90"
    assert lines[found + 3] == "  ⚠️ Ball 3  [130.0, 20.0, 190.5, 80.0]  score 0.50"
    assert "\x1b" not in captured.out


@pytest.mark.parametrize(
    ("texts", "code"),
    [
        ([ABSENT], 3),
        (["nonsense"], 5),
        ([UNGROUNDED], 5),
        ([ABSENT, "nonsense"], 5),
        (["nonsense", ABSENT], 5),
    ],
)
def test_exit_codes(make_world, picture, texts, code, capsys):
    make_world(answering(*texts))
    assert run(["refer", str(picture), "ball", *["it"] * len(texts)]) == code
    assert capsys.readouterr().err == ""


def test_exit_code_of_found_and_absent_is_the_highest(make_world, picture):
    world = make_world()
    found = world.decoder.script

    def answer(prompt):
        return ABSENT if "detect that" in prompt else found(prompt)

    world.decoder.script = answer
    assert run(["refer", str(picture), "ball", "it", "that", "--json"]) == 3


def test_no_candidates_truncated_and_timeout(make_world, picture, tmp_path):
    world = make_world()
    assert run(["refer", str(picture), "ball", "it", "--max-new-tokens", "3"]) == 5
    assert run(["refer", str(picture), "ball", "it", "--deadline", "0.0001"]) == 5
    boxes = tmp_path / "boxes.json"
    boxes.write_text("[]")
    assert run(["refer", str(picture), "ball", "it", "--boxes", str(boxes)]) == 4
    world.detector.boxes = []
    assert run(["refer", str(picture), "ball", "it"]) == 4


def test_json_is_one_object_per_expression(make_world, picture, capsys):
    make_world()
    assert run(["refer", str(picture), "ball", "the red ball", "left", "--json"]) == 0
    captured = capsys.readouterr()
    values = [json.loads(line) for line in captured.out.splitlines()]
    assert [value["expression"] for value in values] == ["the red ball", "left"]
    assert values[0]["schema"] == "rexthinker-edge/result/1"
    assert values[0]["image"]["path"] == str(picture)
    assert values[0]["ms"]["image"] > 0
    assert values[0]["tokens"]["reused"] == 0
    assert values[1]["tokens"]["reused"] >= 0.9 * values[1]["tokens"]["prompt"]
    assert "error" not in captured.err  # a phase of more than a second is told there


def test_stream_prints_the_thought_as_it_is(make_world, picture, capsys):
    make_world()
    assert run(["refer", str(picture), "ball", "it", "--stream"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("<think>OK, the user needs us to detect it:\n")
    assert "- Ball 3: beside the mug ⚠️\n" in out
    assert "</answer>\nfound  it" in out
    assert "\x1b" not in out


def test_colour_on_a_terminal(make_world, picture, capsys, monkeypatch):
    make_world()
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert run(["refer", str(picture), "ball", "it", "--stream"]) == 0
    out = capsys.readouterr().out
    assert "\x1b[32m✅" in out
    assert "\x1b[31m❌" in out


def test_no_escape_of_the_models_reaches_the_terminal(make_world, picture, capsys):
    make_world(lambda _prompt: "\x1b[2J\x07 clear" + ABSENT)
    for option in ([], ["--stream"]):
        assert run(["refer", str(picture), "ball", "it", *option]) == 3
        assert "\x1b" not in capsys.readouterr().out
    assert printable("a\tb\n\x1b[1m\x00\u202e\u200dé✅") == "a\tb\n[1m\u200dé✅"


def test_out_draws(make_world, picture, tmp_path):
    make_world()
    out = tmp_path / "answer.png"
    assert run(["refer", str(picture), "ball", "it", "--out", str(out)]) == 0
    with Image.open(out) as drawn:
        assert drawn.size == (200, 100)


@pytest.mark.parametrize(
    "content", ["[[10, 20, 60, 80], [70, 20, 120, 80]]", '{"boxes": [[10, 20, 60, 80], [70, 20, 120, 80]]}']
)
def test_boxes_file(make_world, picture, tmp_path, content, capsys):
    make_world()
    boxes = tmp_path / "boxes.json"
    boxes.write_text(content)
    assert run(["refer", str(picture), "ball", "it", "--boxes", str(boxes), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["boxes"] == [[70.0, 20.0, 120.0, 80.0]]
    assert [candidate["score"] for candidate in value["candidates"]] == [None, None]


def error_of(arguments, capsys, code=1) -> str:
    """Run, expect an exit code, and give the one line on stderr."""
    assert run([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("error: ").rstrip("\n")


def test_bad_input_is_one_line_and_leaves_nothing(make_world, picture, tmp_path, capsys):
    world = make_world()
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:60])
    (tmp_path / "large.json").write_text("[" + " " * 1_000_001 + "]")
    for name, content in {
        "nan": "[[0, 0, NaN, 1]]",
        "text": "boxes",
        "key": '{"box": []}',
        "row": "[[1, 2]]",
    }.items():
        (tmp_path / f"{name}.json").write_text(content)
    out = tmp_path / "answer.png"
    before = sorted(tmp_path.rglob("*"))
    ask = ["refer", picture, "ball", "it", "--out", out]
    cases = [
        (["refer", tmp_path / "no.png", "ball", "it"], "no.png: no such file. Check the path."),
        (
            ["refer", tmp_path / "empty.png", "ball", "it"],
            "empty.png: an empty file, but a picture is needed.",
        ),
        (["refer", tmp_path / "cut.png", "ball", "it"], "cut.png: damaged or cut short"),
        (["refer", tmp_path, "ball", "it"], "a directory, but a picture file is needed."),
        (["refer", picture, "", "it"], "category: empty, a word or more is needed."),
        (["refer", picture, "ball", "it", " "], "expression: empty, a word or more is needed."),
        (["refer", picture, "ball", "a\x1bb"], "expression: it holds the control character U+001B"),
        (["refer", picture, "ball", "x" * 100_000], "expression: 100,000 characters, the limit is 2,000."),
        (
            [*ask, "--boxes", tmp_path / "no.json"],
            "no.json: cannot be read (No such file or directory). Check the",
        ),
        ([*ask, "--boxes", tmp_path / "nan.json"], "candidate box 0: [0, 0, nan, 1] is not finite"),
        ([*ask, "--boxes", tmp_path / "text.json"], "text.json: not JSON ("),
        ([*ask, "--boxes", tmp_path / "key.json"], 'key.json: neither a list of boxes nor {"boxes": [...]}.'),
        (
            [*ask, "--boxes", tmp_path / "row.json"],
            "candidate boxes: an array of shape (1, 2), (N, 4) is needed.",
        ),
        (
            [*ask, "--boxes", tmp_path / "large.json"],
            "large.json: 1,000,003 bytes, at most 1,000,000 are read.",
        ),
        ([*ask, "--bundle", tmp_path / "no"], "no: no such directory, a bundle is needed."),
        ([*ask, "--device", "npu"], "device 'npu': this version runs bundles on cpu, cuda, cuda:N and tens"),
        ([*ask[:-1], tmp_path / "a.gif"], "a.gif: a picture ending in .gif, one of .png, .jpg"),
        ([*ask[:-1], tmp_path / "no" / "a.png"], "a.png: its directory does not exist"),
    ]
    for arguments, message in cases:
        for extra in ([], ["--json"]):
            assert message in error_of([*arguments, *extra], capsys)
    assert sorted(tmp_path.rglob("*")) == before
    assert world.decoder.prompts == []


def test_usage(make_world, picture, capsys):
    make_world()
    for arguments, message in [
        (["refer"], "Missing argument 'IMAGE'. See `rexthinker-edge refer --help`."),
        (["refer", picture, "ball"], "Missing argument 'EXPRESSION...'."),
        (["refer", picture, "ball", "it", "--jsn"], "No such option"),
        (["refer", picture, "ball", "it", "--deadline", "0"], "Invalid value for '--deadline'"),
        (["refer", picture, "ball", "it", "--deadline", "soon"], "Invalid value for '--deadline'"),
        (["refer", picture, "ball", "it", "--json", "--stream"], "--json and --stream exclude each other"),
        (["refer", picture, "ball", "it", "that", "--out", "a.png"], "--out draws one expression"),
        (["guess"], "No such command 'guess'"),
        (["--jsn"], "No such option"),
    ]:
        assert message in error_of(arguments, capsys, code=2)


def test_info(make_world, capsys):
    world = make_world()
    assert run(["info"]) == 0
    out = capsys.readouterr().out
    assert "licence     Apache-2.0" in out
    assert f"path        {world.directory}" in out
    assert "notice      None.\n" in out
    long = replace(open_bundle(world.directory).manifest.model, notice="\n  Licence\n\n1. …\n")
    seal(world.directory, replace(open_bundle(world.directory).manifest, model=long))
    assert run(["info"]) == 0
    assert "notice      Licence … (1 more lines: --json)\n" in capsys.readouterr().out
    assert run(["info", str(world.directory), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["manifest"] == json.loads((world.directory / "manifest.json").read_text())
    assert len(value["digest"]) == 64


def test_verify(make_world, capsys):
    world = make_world()
    assert run(["verify", str(world.directory)]) == 0
    assert capsys.readouterr().out.startswith("intact: ")
    assert run(["verify", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["intact"], value["files"]) == (True, 6)
    file = world.directory / "decoder.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    assert error_of(["verify", world.directory], capsys).startswith(
        "stand-in/decoder.onnx: 24 bytes, the manifest"
    )


def test_help_and_version(capsys):
    assert run(["--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())  # long lines are broken
    for name, verb in VERBS.items():
        assert name in out
        assert verb.help in out
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rexthinker-edge 0.")
    assert run(["refer", "--help"]) == 0
    assert "Exit code: 0 found, 3 absent, 4 no candidates, 5 no usable answer" in capsys.readouterr().out


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_is_there(verb, capsys):
    assert run([verb, "--help"]) == 0
    assert "Usage: rexthinker-edge " + verb in capsys.readouterr().out


def test_a_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rexthinker_edge.commands.train", None)
    monkeypatch.setattr("rexthinker_edge.cli.import_module", lambda name: __import__("torch_is_not_here"))
    message = error_of(["train"], capsys)
    assert message == (
        "train: the package torch_is_not_here is not installed, the base install leaves it out. "
        "Install it: pip install 'rexthinker-edge[training]'."
    )


def test_interrupted(make_world, picture, capsys):
    def interrupt(_prompt):
        raise KeyboardInterrupt

    make_world(interrupt)
    assert run(["refer", str(picture), "ball", "it"]) == 130
    assert capsys.readouterr().err.strip() == "error: interrupted"


def test_progress_after_a_second_and_not_before(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 0.05)
    with progress.phase("quick"):
        pass
    assert capsys.readouterr().err == ""
    with progress.phase("slow"):
        time.sleep(0.2)
    assert capsys.readouterr().err == "slow …\n"
    with progress.phase("silent", quiet=True):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.phase("slow"):
        time.sleep(0.12)
    written = capsys.readouterr().err
    assert "slow … 1 s" in written
    assert written.endswith("\r\x1b[2K")


def test_a_reader_that_goes_away():
    """`rexthinker-edge --help | true` ends without a traceback."""
    code = "import sys; from rexthinker_edge.cli import main; main(['--help'])"
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    program.stdout.close()
    errors = program.stderr.read().decode()
    program.stderr.close()
    assert program.wait() == 1
    assert errors == ""

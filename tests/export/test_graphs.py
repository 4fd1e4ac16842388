"""Exported graphs against transformers on the same checkpoint."""

import numpy as np
import onnx
import pytest
import torch

from rexthinker_edge.export.checkpoint import Checkpoint, Tensor
from rexthinker_edge.export.config import read_config
from rexthinker_edge.export.decoder_graph import write_decoder
from rexthinker_edge.export.quantize import IntegerRecipe, round_to_nearest
from rexthinker_edge.export.vision_graph import most_patches
from rexthinker_edge.kernels.matmul_nbits import dequantize
from rexthinker_edge.runtime.embeddings import place_image
from rexthinker_edge.runtime.errors import ImageError
from rexthinker_edge.runtime.generate import Generation, Limits
from rexthinker_edge.runtime.positions import mrope_positions, text_positions
from rexthinker_edge.runtime.qwen_pixels import VisionInput, smart_resize

from .conftest import END, IMAGE, MAX_LENGTH, START, load_reference, make_model, open_decoder

EPS = float(np.finfo(np.float32).eps)
# Float32 with sums in another order: a sum of n terms strays by about sqrt(n) eps of its size, n ≤ 1,176
# here; some ten such sums follow one another in each of at most four layers, each passing errors on with a
# gain near 1 (weights are scaled to that). 35 * 10 * 4 eps of the largest output; a wrong rounding of the
# weights, a missing bias or a shifted position changes outputs by more than 1e-2 of it.
GRAPH_TOLERANCE = 35 * 10 * 4 * EPS

SHAPES = {
    "tied": {},
    "untied": {"tied": False},
    "one key head": {"text": {"num_key_value_heads": 1}},
    "as many key heads": {"text": {"num_key_value_heads": 4}},
    "7B's sections": {"text": {"hidden_size": 256, "num_attention_heads": 2, "mrope_section": [16, 24, 24]}},
    "three layers, other epsilon": {"text": {"num_hidden_layers": 3, "rms_norm_eps": 1e-2}},
    "windows only": {"vision": {"fullatt_block_indexes": []}},
    "all full, other window": {"vision": {"fullatt_block_indexes": [0, 1, 2], "window_size": 56}},
    "small windows, heads of 8": {"vision": {"window_size": 56, "num_heads": 4, "depth": 2}},
}
GRIDS = [(2, 2), (8, 8), (10, 22), (18, 6), (16, 24)]


def picture(rng, height, width):
    patches = rng.standard_normal((height * width, 1176)).astype(np.float32)
    return VisionInput(patches, (1, height, width), (width * 14, height * 14))


def close(ours, theirs, tolerance=GRAPH_TOLERANCE):
    """Largest difference against the largest value."""
    return np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    "shape", ["tied", "windows only", "all full, other window", "small windows, heads of 8"]
)
def test_vision_tower(exported, rng, shape, grid):
    made = exported(**SHAPES[shape])
    seen = picture(rng, *grid)
    with torch.no_grad():
        theirs = made.reference.model.visual(
            torch.tensor(seen.patches), torch.tensor([seen.grid_thw])
        ).pooler_output
    ours = made.vision.encode(seen)
    assert ours.shape == (grid[0] * grid[1] // 4, made.config.text.hidden)
    assert close(ours, theirs.numpy())


def test_vision_tower_on_almost_nothing(exported, rng):
    """Numbers so small that the norms' epsilon decides: 1e-4 for 1e-6 would change the features by half."""
    made = exported()
    seen = picture(rng, 6, 10)
    seen = VisionInput(seen.patches * np.float32(1e-3), seen.grid_thw, seen.resized)
    with torch.no_grad():
        theirs = made.reference.model.visual(
            torch.tensor(seen.patches), torch.tensor([seen.grid_thw])
        ).pooler_output
    assert close(made.vision.encode(seen), theirs.numpy())


@pytest.mark.parametrize("max_pixels", [16 * 784, 100 * 784, 1280 * 784])
def test_every_picture_that_preprocessing_gives_fits_the_table(exported, max_pixels):
    config = exported().config.vision
    most = most_patches(config, max_pixels)
    seen = 0
    for height, width in [
        (1, 1),
        (3, 599),
        (600, 3),
        (1000, 1000),
        (28, 5600),
        (29, 31),
        (333, 999),
        (27, 2800),
    ]:
        for min_pixels in (16 * 784, max_pixels):
            sides = smart_resize(height, width, min_pixels, max_pixels)
            seen = max(seen, sides[0] * sides[1] // 196)
    assert max_pixels // 196 <= seen <= most


def test_vision_tower_takes_its_largest_picture_and_refuses_larger(exported, rng):
    made = exported()
    most = made.vision.geometry.max_patches
    assert most == 2839  # 448² + 56 * sqrt(448² * 200) + 784 px, of 196 each
    width = most // 4 * 2
    assert np.isfinite(made.vision.encode(picture(rng, 2, width))).all()
    with pytest.raises(ImageError, match=f"{width + 2} x 2 patches .* allows 2,839 in all"):
        made.vision.encode(picture(rng, 2, width + 2))


@pytest.mark.parametrize("shape", list(SHAPES)[:6])
def test_decoder_with_a_picture(exported, rng, shape):
    made = exported(**SHAPES[shape])
    seen = picture(rng, 6, 10)
    ids = np.array([3, 4, 5, START, *[IMAGE] * 15, END, *rng.integers(3, 80, 12)])
    with torch.no_grad():
        batch = torch.tensor(ids)[None]
        theirs = made.reference(
            input_ids=batch, pixel_values=torch.tensor(seen.patches),
            image_grid_thw=torch.tensor([seen.grid_thw]),
            mm_token_type_ids=(batch == IMAGE).int(),
        ).logits[0].numpy()  # fmt: skip
    decoder = made.decoder
    positions, following = mrope_positions(ids, IMAGE, [seen.grid_thw])
    embeds = place_image(decoder.embed(ids), ids, IMAGE, made.vision.encode(seen))
    assert close(decoder.run(embeds, positions, decoder.new_cache(64), last_only=False), theirs)
    # the same in two passes, and the last row only
    cache = decoder.new_cache(64)
    decoder.run(embeds[:20], positions[:, :20], cache)
    last = decoder.run(embeds[20:], positions[:, 20:], cache)
    assert last.shape == (1, 101)
    assert close(last[0], theirs[-1])
    # and on, token by token, as transformers generates
    with torch.no_grad():
        generated = made.reference.generate(
            input_ids=batch, pixel_values=torch.tensor(seen.patches),
            image_grid_thw=torch.tensor([seen.grid_thw]),
            mm_token_type_ids=(batch == IMAGE).int(), max_new_tokens=12, do_sample=False,
        )[0, len(ids):].tolist()  # fmt: skip
    generation = Generation(decoder, cache, last, following, Limits(frozenset([2]), 12))
    list(generation)
    assert generation.token_ids == generated


def test_weights_keep_the_checkpoints_bytes(exported, tmp_path):
    made = exported()
    checkpoint = Checkpoint(made.directory)
    write_decoder(checkpoint, made.config.text, tmp_path, 8, None)
    table = checkpoint.tensor("model.embed_tokens.weight", (101, 64))
    assert (tmp_path / "embeddings.bin").read_bytes() == table.raw.tobytes()
    model = onnx.load(tmp_path / "decoder.onnx", load_external_data=False)
    shared = [t for t in model.graph.initializer if t.name == "model.embed_tokens.weight"]
    # the tied output layer reads the embedding file: the table is stored once
    assert [e.value for e in shared[0].external_data if e.key == "location"] == ["embeddings.bin"]
    stored = {t.name: t.data_type for t in model.graph.initializer}
    assert stored["model.layers.0.mlp.up_proj.weight"] == onnx.TensorProto.BFLOAT16
    # every stored byte is a parameter, twice two small float32 tables of 8 positions, or padding below 64
    parameters = (
        sum(p.numel() * 2 for n, p in made.reference.model.language_model.named_parameters())
        - table.raw.nbytes
    )
    excess = (tmp_path / "decoder.onnx.data").stat().st_size - parameters - 2 * 8 * 8 * 4
    assert 0 <= excess < 64 * len(stored)


def test_writing_twice_gives_the_same_bytes(exported, tmp_path):
    made = exported()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_decoder(Checkpoint(made.directory), made.config.text, tmp_path / name, 8, None)
    for file in ("decoder.onnx", "decoder.onnx.data", "embeddings.bin"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


INT4 = {"hidden_size": 128, "intermediate_size": 160}


@pytest.mark.parametrize("tied", [True, False])
def test_int4_computes_what_its_integers_say(tmp_path, rng, tied):
    """Transformers with the dequantised integers in place of the weights is the reference."""
    directory, out = tmp_path / "vlm", tmp_path / "out"
    out.mkdir()
    make_model(directory, INT4, {}, tied)
    recipe = IntegerRecipe(block=32, accuracy_level=0)
    decoder = open_decoder(directory, out, recipe)
    reference = load_reference(directory)
    kept = reference.model.language_model.embed_tokens.weight.detach().clone()
    with torch.no_grad():
        for name, module in reference.named_modules():
            if isinstance(module, torch.nn.Linear) and "visual" not in name:
                bits = recipe.head_bits if name == "lm_head" else recipe.bits
                weight = torch.tensor(
                    dequantize(round_to_nearest(Tensor.from_array(name, module.weight.numpy()), bits, 32))
                )
                assert (weight != module.weight).any()
                module.weight = torch.nn.Parameter(weight)  # a new one: tied embeddings stay as they are
    assert torch.equal(reference.model.language_model.embed_tokens.weight, kept)
    ids = rng.integers(3, 80, 24)
    with torch.no_grad():
        theirs = reference(input_ids=torch.tensor(ids)[None]).logits[0].numpy()
    ours = decoder.run(decoder.embed(ids), text_positions(0, 24), decoder.new_cache(24), last_only=False)
    assert close(ours, theirs)
    # The default rounds activations to 8 bits: 1/254 of the block's largest, some 3 sigma, so 1.2 % of a
    # typical value per product and, errors being independent, of each sum; seven sums a layer, two layers
    # and a head.
    fast = tmp_path / "fast"
    fast.mkdir()
    quick = open_decoder(directory, fast, IntegerRecipe(block=32))
    rough = quick.run(quick.embed(ids), text_positions(0, 24), quick.new_cache(24), last_only=False)
    typical = np.sqrt(np.mean((rough - theirs) ** 2) / np.mean(theirs**2))
    assert 1e-4 < typical < 0.012 * np.sqrt(7 * 2 + 1)
    sizes = [(d / "decoder.onnx.data").stat().st_size for d in (out, fast)]
    assert sizes[0] == sizes[1]


def test_max_length_is_the_tables_length(exported):
    decoder = exported().decoder
    assert decoder.geometry.max_length == MAX_LENGTH
    cache = decoder.new_cache(MAX_LENGTH)
    ids = np.full(MAX_LENGTH, 7)
    assert np.isfinite(decoder.run(decoder.embed(ids), text_positions(0, MAX_LENGTH), cache)).all()
    assert read_config(exported().directory).text.max_position_embeddings == 512

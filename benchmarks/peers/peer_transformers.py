"""transformers as a peer: Qwen2 in torch, bfloat16 or float32, its cache cropped back for the next question.

Contract  Stands alone: run by worker.py in an interpreter that need not have this package. The token table
          and the output layer are one tensor in memory (their shapes are equal), which saves 2 GB and no
          time. Where a step takes the prefix for granted its keys and values are random numbers: no time
          depends on them, and bfloat16 is slow at reading one.
Elsewhere the interface: worker.py.
"""

from typing import Any


def random_model(shape: dict[str, Any], dtype: str, tied: bool = False) -> Any:
    """A Qwen2 causal language model with random weights; every tensor begins at another place of one
    block."""
    import torch  # noqa: PLC0415
    from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: PLC0415

    config = Qwen2Config(
        hidden_size=shape["hidden"], num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"], intermediate_size=shape["intermediate"],
        vocab_size=shape["vocab"], rms_norm_eps=shape["rms_norm_eps"], rope_theta=shape["rope_theta"],
        max_position_embeddings=shape["max_length"], tie_word_embeddings=tied,
        bos_token_id=shape["vocab"] - 1, eos_token_id=shape["vocab"] - 1,
        head_dim=shape["hidden"] // shape["heads"],
    )  # fmt: skip
    kind = getattr(torch, dtype)
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    rotary = type(model.model.rotary_emb)(config)  # its table is computed, not stored
    model = model.to(kind).to_empty(device="cpu")
    model.model.rotary_emb = rotary
    if tied:
        model.tie_weights()
    block = torch.randn((1 << 22) + 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.02
            piece = (
                torch.roll(block, 7919 * number) * scale + float(parameter.dim() == 1 and "norm" in name)
            ).to(kind)
            flat = parameter.view(-1)
            for start in range(0, flat.numel(), len(piece)):
                flat[start : start + len(piece)] = piece[: flat.numel() - start]
    return model.eval()


WAYS: dict[str, list[str]] = {
    "prefill": ["one pass"],
    "token": ["one row"],
    "second": ["cache cropped"],
    "one": ["greedy"],
    "eight": ["batch, prefix cache repeated"],  # one by one takes eight times `one`
}


class Peer:
    """One model and one cache."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.ways = dict(WAYS)
        import torch  # noqa: PLC0415

        self.torch = torch
        torch.set_num_threads(settings["threads"])
        self.model = random_model(settings["shape"], settings["dtype"], tied=True).requires_grad_(False)
        self.work = settings["work"]
        self.cache: Any = None

    def versions(self) -> dict[str, str]:
        """What runs."""
        import transformers  # noqa: PLC0415

        attention = self.model.config._attn_implementation
        return {
            "transformers": transformers.__version__,
            "torch": self.torch.__version__,
            "attention": attention,
        }

    def prepare(self, step: str, way: str) -> None:
        """Everything that the step takes for granted."""
        if step == "prefill" or self.cache is None:
            self.cache = self._empty()
        if step != "prefill":
            self._rewind()

    def run(self, step: str, way: str) -> int:
        """The step; returns how many units were done."""
        work = self.work
        if step == "prefill":
            self._read(work["prefix"])
            return len(work["prefix"])
        if step == "token":
            return self._decode(0, work["tokens"])
        if step == "second":
            self._read(work["questions"][1])
            return 1
        if way.startswith("batch"):
            return self._batch()
        self._decode(self._read(work["questions"][0]), len(work["answers"][0]) - 1)
        return len(work["answers"][0])

    def _empty(self) -> Any:
        from transformers import DynamicCache  # noqa: PLC0415

        return DynamicCache(config=self.model.config)

    def _rewind(self) -> None:
        """The cache as it stands behind the prefix."""
        more = self.cache.get_seq_length() - len(self.work["prefix"])
        if more > 0:
            self.cache.crop(-more)  # as many from the end; a length to crop to is refused by 5.23
        elif more < 0:
            self._fill(-more)

    def _fill(self, length: int) -> None:
        """So many positions of random keys and values."""
        config = self.model.config
        sizes = (1, config.num_key_value_heads, length, config.head_dim)
        for layer in range(config.num_hidden_layers):
            keys, values = self.torch.randn(2, *sizes, dtype=self.model.dtype)
            self.cache.update(keys, values, layer)

    def _read(self, ids: list[int]) -> int:
        tokens = self.torch.tensor([ids])
        got = self.model(tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return int(got.logits[0, -1].argmax())

    def _decode(self, token: int, count: int) -> int:
        for _ in range(count):
            token = self._read([token])
        return count

    def _batch(self) -> int:
        """All questions at once, padded on the left of each question, behind a repeated cache."""
        import copy  # noqa: PLC0415

        torch, work = self.torch, self.work
        questions, count = work["questions"], len(work["questions"])
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(count)
        longest, prefix = max(len(q) for q in questions), len(work["prefix"])
        ids = torch.tensor([[0] * (longest - len(q)) + q for q in questions])
        mask = torch.tensor([[1] * prefix + [0] * (longest - len(q)) + [1] * len(q) for q in questions])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, prefix:]
        for _ in range(len(work["answers"][0])):
            got = self.model(
                ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
            ids = got.logits[:, -1].argmax(-1, keepdim=True)
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
            positions = positions[:, -1:] + 1
        return count * len(work["answers"][0])


def open_peer(settings: dict[str, Any]) -> Peer:
    """As worker.py wants it."""
    return Peer(settings)

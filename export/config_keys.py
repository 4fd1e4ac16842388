"""Keys of a `config.json`: taken one by one, so that none is ignored in silence.

Contract  A key is taken with its type, fixed to the one value that the graphs compute, or known to be
          irrelevant; whatever is left is a ConfigError that names it.
Elsewhere which keys mean what: config.py.
Source    docs/sources.md#config
"""

from collections.abc import Mapping
from typing import Any

from rexthinker_edge.runtime.errors import ConfigError

# Keys that change nothing the graphs compute, each with the reason.
IRRELEVANT: Mapping[str, str] = {
    "_name_or_path": "where it was once loaded from",
    "_attn_implementation_autoset": "how torch computes attention, not what",
    "attn_implementation": "how torch computes attention, not what",
    "attention_dropout": "training only",
    "bos_token_id": "the prompt has no start token",
    "chunk_size_feed_forward": "how torch computes it, not what",
    "dtype": "the tensors say their own",
    "eos_token_id": "generation_config.json decides",
    "id2label": "no classes here",
    "initializer_range": "training only",
    "label2id": "no classes here",
    "output_attentions": "what torch returns",
    "output_hidden_states": "what torch returns",
    "pad_token_id": "nothing is padded",
    "return_dict": "what torch returns",
    "tokens_per_second": "video only",
    "torch_dtype": "the tensors say their own",
    "transformers_version": "who wrote the file",
    "use_cache": "the runtime always keeps keys and values",
    "video_token_id": "video only",
    "vision_token_id": "never in a prompt",
}


class Keys:
    """One JSON object whose keys must all be taken before it is left."""

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        """`where`: how messages name it."""
        self.where, self.values = where, dict(values)

    def fail(self, key: str, seen: object, needed: str) -> ConfigError:
        """The refusal of one key's value."""
        return ConfigError(
            f"{self.where}: {key!r} is {seen!r}, this exporter computes {needed} only. "
            "Export another checkpoint, or a version that knows this one."
        )

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        """Remove and return a key's value; it must be of `kind` and, unless it is a bool, positive."""
        seen = self.values.pop(key, default)
        if kind is float and isinstance(seen, int) and not isinstance(seen, bool):
            seen = float(seen)
        if not isinstance(seen, kind) or isinstance(seen, bool) is not (kind is bool):
            raise ConfigError(
                f"{self.where}: {key!r} is {seen!r}, needed {kind.__name__}. "
                "Is this a Qwen2.5-VL configuration?"
            )
        if isinstance(seen, (int, float)) and not isinstance(seen, bool) and seen <= 0:
            raise self.fail(key, seen, "positive values")
        return seen

    def fixed(self, allowed: Mapping[str, Any]) -> None:
        """Remove keys that may have one value only."""
        for key, needed in allowed.items():
            seen = self.values.pop(key, needed)
            if seen != needed or isinstance(seen, bool) is not isinstance(needed, bool):
                raise self.fail(key, seen, f"{needed!r}")

    def finish(self) -> None:
        """Remove what is irrelevant; ConfigError on anything left."""
        rest = sorted(k for k in self.values if k not in IRRELEVANT)
        if rest:
            raise ConfigError(
                f"{self.where}: unknown key {rest[0]!r} (value {self.values[rest[0]]!r}); "
                "needed keys of Qwen2.5-VL. If it changes nothing it can be removed from the file; otherwise "
                "this exporter cannot honour it."
            )

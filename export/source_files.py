"""Reads what stands beside a checkpoint's weights: prompt settings, end tokens, tokenizer, whose model it is.

Layout    `rexthinker.json` (ours): {system, wording, min_pixels, max_pixels, max_new_tokens}, and optionally
          `model` {name, source, revision, licence, notice}. A published checkpoint has none: then the
          published Rex-Thinker's prompt is meant, and the caller must name the licence.
Contract  An unknown or missing key is an error. The tokenizer must know the special tokens under the ids that
          the configuration names: a foreign tokenizer would give confident nonsense.
Elsewhere the configuration: config.py; the manifest these go into: runtime/manifest.py.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rexthinker_edge.export.config import ModelConfig
from rexthinker_edge.runtime.errors import CheckpointError, OptionError
from rexthinker_edge.runtime.manifest import ModelCard, PromptSettings, TokenIds
from rexthinker_edge.runtime.prompt import IMAGE_PAD, SYSTEM, VISION_END, VISION_START, Wording
from rexthinker_edge.runtime.strict_json import StrictJsonError, parse, to_dataclass

SETTINGS_FILE = "rexthinker.json"
MERGED_PIXELS = 28 * 28
# facts of the published demo and training: 16 to 1,280 merged tokens a picture.
PUBLISHED_PROMPT = PromptSettings(SYSTEM, Wording.DETECT, 16 * MERGED_PIXELS, 1280 * MERGED_PIXELS, 2048)


def read_settings(directory: Path) -> tuple[PromptSettings, ModelCard | None]:
    """Prompt settings of a checkpoint, and its model card where the settings file has one.

    Raises:
        CheckpointError: the file is no JSON, or has an unknown or missing key.
    """
    path = directory / SETTINGS_FILE
    if not path.is_file():
        return PUBLISHED_PROMPT, None
    try:
        values = parse(path.read_text("utf-8"))
        model = values.pop("model", None) if isinstance(values, dict) else None
        card = None if model is None else to_dataclass(ModelCard, model, "model")
        return to_dataclass(PromptSettings, values), card
    except (StrictJsonError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{directory.name}/{SETTINGS_FILE}: {error}; needed the prompt settings the model was "
            "trained with. "
            "Mend the file, or remove it for the published Rex-Thinker prompt."
        ) from error


def model_card(found: ModelCard | None, given: dict[str, str | None], default_name: str) -> ModelCard:
    """Join the checkpoint's card with what the caller gave, who wins.

    Args:
        given: any of name, source, revision, licence, notice; None where not given.

    Raises:
        OptionError: nobody says under which licence the weights may be used.
    """
    values = (
        asdict(found) if found else {"name": default_name, "source": "local directory", "revision": "unknown"}
    )
    values |= {key: value for key, value in given.items() if value is not None}
    if not values.get("licence"):
        raise OptionError(
            f"licence: neither {SETTINGS_FILE} nor the command names one, the bundle must carry it. "
            "Give --licence, for example --licence 'IDEA License 1.0 (non-commercial research)'."
        )
    return ModelCard(**{"notice": "", **values})


def end_tokens(directory: Path) -> tuple[int, ...]:
    """Ids that end an answer, from generation_config.json, else from config.json.

    Raises:
        CheckpointError: neither names any.
    """
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        values: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        found = values.get("eos_token_id", (values.get("text_config") or {}).get("eos_token_id"))
        ids = [found] if isinstance(found, int) else found
        if isinstance(ids, list) and ids and all(isinstance(i, int) for i in ids):
            return tuple(ids)
    raise CheckpointError(
        f"{directory.name}: neither generation_config.json nor config.json has eos_token_id, needed to "
        "know where an "
        "answer ends. Copy the checkpoint's generation_config.json."
    )


def read_tokens(directory: Path, config: ModelConfig) -> TokenIds:
    """Token ids for the manifest, checked against tokenizer.json.

    Raises:
        CheckpointError: the tokenizer is missing, too large, or numbers the special tokens otherwise.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{directory.name}: no tokenizer.json, needed for the bundle. Save it with transformers' "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)."
        )
    tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
    expected = {
        IMAGE_PAD.name: config.image_token,
        VISION_START.name: config.vision_start_token,
        VISION_END.name: config.vision_end_token,
    }
    for name, needed in expected.items():
        if (seen := tokenizer.token_to_id(name)) != needed:
            raise CheckpointError(
                f"{directory.name}/tokenizer.json: {name} is token {seen}, config.json says {needed}. "
                "Use the tokenizer the model was trained with."
            )
    if (size := tokenizer.get_vocab_size(with_added_tokens=True)) > config.text.vocab:
        raise CheckpointError(
            f"{directory.name}/tokenizer.json: {size:,} tokens, the model has {config.text.vocab:,}. "
            "Use the tokenizer the model was trained with."
        )
    return TokenIds(config.image_token, end_tokens(directory))

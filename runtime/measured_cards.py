"""What was measured of a bundle, put into its manifest: how good its answers are, and how sure they must be.

Contract  Only the card's own key changes, and with it the digest; what cards are bound to stays. The manifest
          is written beside the bundle and renamed into it: a crash leaves the old or the new one.
Elsewhere the cards: quality.py, risk.py; the digests they are bound to: manifest_file.py; measuring:
          benchmarks/, calibration/risk.py.
Source    docs/bundle.md
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rexthinker_edge.runtime.bundle import Bundle, flush, open_bundle
from rexthinker_edge.runtime.manifest import MANIFEST
from rexthinker_edge.runtime.manifest_file import bare_digest, known_digests, read_manifest, refuse
from rexthinker_edge.runtime.quality import card_of_report
from rexthinker_edge.runtime.risk import RiskCard, unfit_card
from rexthinker_edge.runtime.strict_json import to_json


def riskless_digest(directory: Path) -> str:
    """The digest of a bundle but for what was measured of it: what cards are bound to."""
    return bare_digest(read_manifest(directory))


def write_risk(directory: Path, card: RiskCard | None) -> Bundle:
    """Put a risk card into a bundle's manifest, or take it out; nothing else changes but the digest.

    Raises:
        BundleError: it is no sound bundle, or the card belongs to another.
    """
    opened = open_bundle(directory)
    value = read_manifest(opened.path)
    # Only this key is touched: the rest stays as it was written, and so does what the card is bound to.
    value.pop("risk", None)
    if card is not None:
        if (problem := unfit_card(card, bare_digest(value))) is not None:
            refuse(opened.path / MANIFEST, problem, "Calibrate this bundle: evaluate --calibrate-risk.")
        value["risk"] = to_json(card)
    return _rewrite(opened.path, value)


def write_quality(directory: Path, reports: Iterable[Mapping[str, Any]]) -> Bundle:
    """Put what was measured of a bundle into its manifest; nothing else changes but the digest.

    Args:
        reports: of `evaluate --report`, parsed; each takes the place of an earlier one of the same dataset
            and candidates.

    Raises:
        BundleError: it is no sound bundle.
        OptionError: a report is none, or of another bundle.
    """
    opened = open_bundle(directory)
    value = read_manifest(opened.path)
    cards = {(card.dataset, card.boxes): card for card in opened.manifest.quality}
    for report in reports:
        card = card_of_report(report, known_digests(value), bare_digest(value))
        cards[card.dataset, card.boxes] = card
    value["quality"] = [to_json(cards[key]) for key in sorted(cards)]
    return _rewrite(opened.path, value)


def _rewrite(directory: Path, value: dict[str, Any]) -> Bundle:
    """Give a bundle another manifest, written beside it and renamed into it."""
    place = directory.absolute()
    partial = place.with_name(f".{place.name}.{MANIFEST}.partial")
    partial.write_text(
        json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    flush(partial)
    partial.replace(place / MANIFEST)
    flush(place)
    return open_bundle(place)

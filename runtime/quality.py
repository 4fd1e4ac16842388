"""Quality cards: what a bundle was seen to reach on a dataset, told by `info`.

Layout    A manifest may carry cards, one for each dataset and way of asking; shares are from 0 to 1.
Contract  A card names the bundle it was measured on, by its digest without what was measured of it; a bundle
          with another's card is refused. A report of `evaluate --report` becomes a card only of the bundle
          that was asked.
Elsewhere the figures: benchmarks/figures.py; the manifest: manifest.py; cards about risk: risk.py.
Source    docs/bundle.md#quality
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rexthinker_edge.runtime.errors import OptionError

REPORT = "rexthinker-edge/quality/1"
UNUSABLE = ("malformed", "truncated", "timeout", "ungrounded")
MOST_CARDS = 100
SHARES = ("exact", "density_f1", "rejected", "unusable")


@dataclass(frozen=True)
class QualityCard:
    """What came of asking a bundle a dataset.

    Attributes:
        dataset: its name, such as "workbench:full:1000000".
        boxes: whose candidates were asked about, "given" or "detector".
        items: questions asked.
        exact: of those whose truth is a set of candidates, the share that got exactly this set.
        density_f1: HumanRef's DensityF1, mean over IoU 0.5 to 0.95, of those that have an answer.
        rejected: of those that have none, the share said to be absent.
        unusable: share without a usable answer.
        bundle: digest of the bundle that answered, without its cards.
    """

    dataset: str
    boxes: str
    items: int
    exact: float | None
    density_f1: float | None
    rejected: float | None
    unusable: float
    bundle: str

    def describe(self) -> str:
        """One line for people; shares in percent."""
        known = {"exact answers": self.exact, "DensityF1": self.density_f1, "rejections": self.rejected}
        shares = [f"{name} {100 * value:.1f}" for name, value in known.items() if value is not None]
        shares.append(f"unusable {100 * self.unusable:.1f} %")
        return f"{self.dataset}, {self.items:,} items, {self.boxes} boxes: {', '.join(shares)}"


def unfit_quality(cards: Sequence[QualityCard], bundle: str) -> str | None:
    """What is wrong with a bundle's cards, or None; `bundle` is its digest without them."""
    if len(cards) > MOST_CARDS:
        return f"{len(cards)} quality cards, at most {MOST_CARDS} are read"
    if len({(card.dataset, card.boxes) for card in cards}) != len(cards):
        return "two quality cards are of one dataset"
    for card in cards:
        shares = [value for name in SHARES if (value := getattr(card, name)) is not None]
        if card.items < 1 or not all(0 <= value <= 1 for value in shares):
            return f"the quality card of {card.dataset} has no items or a share outside 0 to 1"
        if card.bundle != bundle:
            return f"the quality card of {card.dataset} is of bundle {card.bundle[:12]}…, not {bundle[:12]}…"
    return None


def card_of_report(report: Mapping[str, Any], digests: Sequence[str], bundle: str) -> QualityCard:
    """The card of a report that `evaluate --report` wrote.

    Args:
        digests: every digest that the bundle has or had, whatever cards it carried.
        bundle: its digest without cards.

    Raises:
        OptionError: it is no such report, or of another bundle.
    """
    again = "Measure this bundle: rexthinker-edge evaluate --dataset DATA --bundle DIR --report FILE."
    if report.get("schema") != REPORT:
        raise OptionError(f"quality: schema {report.get('schema')!r}, {REPORT} is needed. {again}")
    try:
        asked = report["subject"]
        if asked["kind"] != "bundle" or asked["digest"] not in digests:
            seen = f"{asked['name']} ({str(asked.get('digest'))[:12]}…)"
            raise OptionError(f"quality: a report of {seen}, one of this bundle is needed. {again}")
        items, statuses = int(report["items"]), report["statuses"]
        card = QualityCard(
            dataset=str(report["dataset"]), boxes=str(report["plan"]["boxes"]), items=items,
            exact=_share(report["exact"]["all"]["value"]),
            density_f1=_share(report["average"]["density_f1_mean"]),
            rejected=_share(report["rejected"]["value"]),
            unusable=sum(int(statuses[name]) for name in UNUSABLE) / max(items, 1), bundle=bundle,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise OptionError(f"quality: a report without {error}, a whole one is needed. {again}") from error
    if (problem := unfit_quality([card], bundle)) is not None:
        raise OptionError(f"quality: {problem}. {again}")
    return card


def _share(value: Any) -> float | None:
    return None if value is None else float(value)

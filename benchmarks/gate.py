"""The gate: whether a subject is close enough to the reference, for scripts to act on.

Contract  Judged on the measured values, not on their intervals; both stand in the report. A drop is in
          DensityF1 points over answerable items; rejections and everything else show as flips. Nothing
          compared, or items that only one run has, never passes; nor does a bound of what could not be told.
Elsewhere the figures: comparison.py; the command: package/commands/compare.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EXIT_CODE = 6  # of `compare` when the gate stays closed


@dataclass(frozen=True)
class Gate:
    """What is allowed: `max_drop` in points, `max_flips` and `min_same_top` as fractions; None: not asked."""

    max_drop: float | None = None
    max_flips: float | None = None
    min_same_top: float | None = None

    def judge(self, comparison: Mapping[str, Any]) -> dict[str, Any]:
        """What fails, per pair, in words; it passes when nothing does."""
        failures = [why for pair in comparison["pairs"] for why in self._failures(pair)]
        return {
            "max_drop": self.max_drop,
            "max_flips": self.max_flips,
            "min_same_top": self.min_same_top,
            "passed": not failures,
            "failures": failures,
        }

    def _failures(self, pair: Mapping[str, Any]) -> list[str]:
        name, found = pair["subject"], list[str]()
        if not pair["items"]:
            return [f"{name}: no item was answered by both"]
        if pair["missing"]:
            found.append(f"{name}: {pair['missing']} items are in one run alone")
        change = pair["difference"]["density_f1_mean"]["value"]
        if self.max_drop is not None and change is None:
            found.append(f"{name}: DensityF1 could not be compared, no item has an answer that is there")
        elif self.max_drop is not None and -change > self.max_drop:
            found.append(f"{name}: DensityF1 dropped by {-change:.2f} points, {self.max_drop:g} are allowed")
        flips = pair["flips"]["value"]
        if self.max_flips is not None and flips > self.max_flips:
            found.append(
                f"{name}: {100 * flips:.2f} % of the answers flipped, {100 * self.max_flips:g} % are allowed"
            )
        same = pair["tokens"]["forced"]["same_top"]
        if self.min_same_top is not None and (same is None or same < self.min_same_top):
            seen = "could not be compared" if same is None else f"agree in {100 * same:.2f} %"
            found.append(f"{name}: tokens {seen}, {100 * self.min_same_top:g} % are needed")
        return found

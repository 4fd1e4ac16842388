"""`evaluate --calibrate-risk`: how sure a bundle's answers must be, from a run, into its manifest.

Contract  The run must be the bundle's own, as it stands: a card tells of the very files that answered.
Elsewhere thresholds: calibration/risk.py; what they promise: docs/risk.md.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rexthinker_edge.runtime.errors import OptionError

if TYPE_CHECKING:
    from rexthinker_edge.benchmarks.runs import Finished

SHOWN_RISKS = (0.01, 0.02, 0.05, 0.1, 0.2)


def store_risk(bundle: Path, finished: "Finished") -> dict[str, Any]:
    """Put a card made of a finished run into the bundle's manifest; returns it as plain values.

    Raises:
        OptionError: the run is not this bundle's.
        DataError: there are too few answers.
        BundleError: the bundle is not sound.
    """
    from rexthinker_edge.benchmarks.distributions import answer_pairs  # noqa: PLC0415
    from rexthinker_edge.calibration.risk import make_card  # noqa: PLC0415
    from rexthinker_edge.runtime.bundle import open_bundle  # noqa: PLC0415
    from rexthinker_edge.runtime.measured_cards import riskless_digest, write_risk  # noqa: PLC0415
    from rexthinker_edge.runtime.strict_json import to_json  # noqa: PLC0415

    ran, stands = finished.header["subject"].get("digest"), open_bundle(bundle).digest
    if ran != stands:
        raise OptionError(
            f"{bundle}: its digest is {stands[:12]}…, the run's bundle had {str(ran)[:12]}…. It was changed "
            "meanwhile: evaluate it again."
        )
    asked = [item for item in finished.items if item.status is not None and item.truth is not None]
    source = f"{finished.header['dataset']}, {finished.header['plan']['boxes']} boxes"
    card = make_card(answer_pairs(asked), len(asked), source, riskless_digest(bundle))
    written = write_risk(bundle, card)
    assert written.manifest.risk == card
    for risk in SHOWN_RISKS:
        reached = [step for step in card.steps if step.bound <= risk]
        if reached:
            step = max(reached, key=lambda step: step.given)
            said = f"above {step.threshold:.4g}: {step.given / card.answers:.0%} of the answers are given"
        else:
            said = "not reached: too many are wrong, or too few were asked"
        click.echo(f"risk {risk:g}: {said}", err=True)
    value: dict[str, Any] = to_json(card)
    return value

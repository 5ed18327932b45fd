"""Who drafts, by the name that a user gives: "mtp", "ngram", or the path of an artifact."""

from __future__ import annotations

import os
from pathlib import Path

from dsv3c.runtime.artifact.plan import Plan
from dsv3c.runtime.engine.session import Session
from dsv3c.runtime.engine.speculation.draft_model import ModelDrafter
from dsv3c.runtime.engine.speculation.growth import cost
from dsv3c.runtime.engine.speculation.mtp import MtpDrafter
from dsv3c.runtime.engine.speculation.ngram import NgramDrafter
from dsv3c.runtime.engine.speculation.speculator import Speculator
from dsv3c.runtime.errors import SpeculationInvalid

Choice = str | os.PathLike[str] | None


def check(choice: Choice, plan: Plan) -> None:
    """Raises SpeculationInvalid for what the plan does not have, and for a path that leads nowhere."""
    if choice is None or choice == "ngram":
        return
    if choice == "mtp":
        if "mtp" not in plan.entries:
            reason = "the checkpoint has no layer for multi-token prediction"
            raise SpeculationInvalid(speculate=choice, reason=reason)
        return
    if not isinstance(choice, str | os.PathLike) or not Path(choice).exists():
        raise SpeculationInvalid(speculate=choice, reason='it is neither "mtp" nor "ngram", nor an artifact')


def draft_path(choice: Choice) -> Path | None:
    """The artifact of a draft model."""
    return None if choice in (None, "mtp", "ngram") else Path(choice)


def further_pages(choice: Choice, plan: Plan) -> int:
    """Pages that drafting takes for each sequence beside its own."""
    return MtpDrafter.pages(plan.page_size) if choice == "mtp" else 0


def speculator(choice: Choice, session: Session, draft: Session | None) -> Speculator | None:
    """draft: of the draft model. Raises SpeculationInvalid."""
    check(choice, session.plan)
    if choice is None:
        return None
    if choice == "ngram":
        return Speculator(session, NgramDrafter())
    if choice == "mtp":
        return Speculator(session, MtpDrafter(session))
    assert draft is not None
    return Speculator(session, ModelDrafter(draft, cost(session.plan, draft.plan, "decode")))

"""The state machine of an upgrade, as data.

registered -> gated -> canary -> promoted -> backfilling -> complete -> retired, with `refused`
beside `gated` and `rolled_back` reachable from every state before `retired`.
"""

import dataclasses
from collections.abc import Set

from iamcl2r_jax.gallery.errors import Refused

REGISTERED, REFUSED, GATED, CANARY, PROMOTED, BACKFILLING, COMPLETE, ROLLED_BACK, RETIRED = (
    STATES
) = (
    "registered",
    "refused",
    "gated",
    "canary",
    "promoted",
    "backfilling",
    "complete",
    "rolled_back",
    "retired",
)

# In these new items are embedded by both models, so that neither direction loses one.
BOTH = frozenset({CANARY, PROMOTED, BACKFILLING, COMPLETE})
# In these the new model searches its own generation where the backfill has been.
MIXED = frozenset({BACKFILLING, COMPLETE})


@dataclasses.dataclass(frozen=True)
class Transition:
    """One action.

    Attributes:
      sources: states that allow it.
      target: state that it leads to; None leaves the state as it is.
      otherwise: what to do where it is not allowed, for the message.
    """

    sources: Set[str]
    target: str | None
    otherwise: str


_JUDGED = frozenset({REGISTERED, REFUSED, GATED, ROLLED_BACK})
_BEFORE_RETIRED = frozenset(STATES) - {RETIRED, ROLLED_BACK}

TRANSITIONS: dict[str, Transition] = {
    "pass": Transition(_JUDGED, GATED, "roll it back first"),
    "fail": Transition(_JUDGED, REFUSED, "roll it back first"),
    "canary": Transition(
        {GATED, CANARY, ROLLED_BACK}, CANARY, "a model passes the gate before its canary"
    ),
    "promote": Transition({CANARY}, PROMOTED, "a canary comes before the promotion"),
    "backfill": Transition(
        {PROMOTED, BACKFILLING, COMPLETE}, BACKFILLING, "promote it before the backfill"
    ),
    "finish": Transition({BACKFILLING}, COMPLETE, "only a backfill finishes"),
    "pause": Transition(_BEFORE_RETIRED, None, "there is nothing to pause"),
    "resume": Transition(_BEFORE_RETIRED, None, "there is nothing to resume"),
    "rollback": Transition(_BEFORE_RETIRED, ROLLED_BACK, "there is nothing to roll back"),
    "retire": Transition(
        {PROMOTED, COMPLETE, ROLLED_BACK},
        RETIRED,
        "finish the backfill or roll back before old vectors are removed",
    ),
}


def after(action: str, state: str) -> str:
    """The state that an action leads to.

    Raises:
      Refused: if the state does not allow it.
    """
    transition = TRANSITIONS[action]
    if state not in transition.sources:
        command = "gate" if action in ("pass", "fail") else action
        raise Refused(
            f"{command}: the upgrade is {state}, which does not allow it; {transition.otherwise}"
        )
    return transition.target or state

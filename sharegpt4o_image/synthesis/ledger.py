# SPDX-License-Identifier: Apache-2.0
"""The spending cap of a run: dollars are reserved before a request leaves and settled when its answer is there.

A reservation is more than the dearest answer of its kind so far. As long as a kind has had no answer, what `plan`
would assume stands for it, and under a budget its requests are sent one by one with nothing else beside them. So the
run stops before the cap unless an answer costs far more than any before it.
"""

import asyncio
import math
from collections.abc import Mapping

from sharegpt4o_image.synthesis.journal import Journal, Stage
from sharegpt4o_image.synthesis.limits import Stopped, unless_stopped

_MARGIN = 1.5  # a reservation over the dearest answer of its stage and model so far (our choice)


class BudgetSpent(Exception):
    """What is left does not cover another request."""


class Ledger:
    """What a run has spent, may have spent, and may spend.

    Args:
        journal ([`Journal`]): what was spent before.
        budget_usd (`float`, *optional*): the most that the run may cost, from its first request on.
        assumed_usd (`dict`, *optional*): stage -> what one request is assumed to cost.
    """

    def __init__(
        self,
        journal: Journal,
        budget_usd: float | None,
        stop: asyncio.Event,
        assumed_usd: Mapping[Stage, float] | None = None,
    ):
        self._budget = math.inf if budget_usd is None else budget_usd
        self._stop = stop
        self.spent_usd = journal.spent_usd()
        self.reserved_usd = journal.reserved_usd()
        self._dearest = journal.dearest_answers()
        self._assumed = assumed_usd or {}
        self._num_open = 0
        self._is_trial_open = False
        self._settled = asyncio.Event()

    @property
    def left_usd(self) -> float:
        """What may still be spent or reserved; infinite without a budget."""
        return self._budget - self.spent_usd - self.reserved_usd

    @property
    def is_limited(self) -> bool:
        """Whether there is a budget."""
        return not math.isinf(self._budget)

    async def reserve(self, stage: Stage, model: str, discount: float = 1.0) -> float:
        """Reserve dollars for a request, waiting for others to be settled where that is needed.

        Raises [`BudgetSpent`] when nothing that is settled could help, and [`Stopped`] when the run is stopped.
        """
        while not self._stop.is_set():
            dollars = self._estimate(stage, model) * discount
            is_trial = self.is_limited and not self.knows(stage, model)
            must_wait = self._is_trial_open or (is_trial and self._num_open > 0)
            if not must_wait and dollars <= self.left_usd:
                self._num_open += 1
                self._is_trial_open = is_trial
                self.reserved_usd += dollars
                return dollars
            if self._num_open == 0:
                raise BudgetSpent(
                    f"the budget of {self._budget:.2f} USD does not cover another request: {self.spent_usd:.4f} are "
                    f"spent and {max(0.0, self.reserved_usd):.4f} may have been, the next one may cost {dollars:.4f}"
                )
            self._settled.clear()
            await unless_stopped(asyncio.ensure_future(self._settled.wait()), self._stop)
        raise Stopped

    def _estimate(self, stage: Stage, model: str) -> float:
        known = self._dearest.get((stage, model), self._assumed.get(stage, 0.0))
        return known * _MARGIN

    def adopt(self, num_requests: int) -> None:
        """Take over requests of an earlier invocation that are still open; their reservations are in the journal."""
        self._num_open += num_requests

    def settle(self, reserved_usd: float, cost_usd: float | None) -> None:
        """Put the cost in the place of its reservation; `None` when it is not known, which leaves the reservation."""
        self._num_open -= 1
        self._is_trial_open = False  # a trial is open alone
        if cost_usd is not None:
            self.reserved_usd -= reserved_usd
            self.spent_usd += cost_usd
        self._settled.set()

    def learn(self, stage: Stage, model: str, cost_usd: float) -> None:
        """Take over the cost of an answer, as what the next one of its kind may cost."""
        self._dearest[stage, model] = max(cost_usd, self._dearest.get((stage, model), 0.0))

    def knows(self, stage: Stage, model: str) -> bool:
        """Whether an answer of this kind was paid before."""
        return (stage, model) in self._dearest

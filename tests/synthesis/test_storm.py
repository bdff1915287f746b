# SPDX-License-Identifier: Apache-2.0
"""A teacher that fails in every way: nothing is lost, and nothing is paid twice unless it was lost on its way."""

from pathlib import Path

import pytest
from loopback_teacher import LoopbackTeacher, Spoil, storm_refusals

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.synthesis.config import Price, SynthesisConfig
from sharegpt4o_image.synthesis.records import iter_records
from sharegpt4o_image.synthesis.run import synthesize
from sharegpt4o_image.synthesis.status import read_status

TIMEOUT_SECONDS = 1.0
MAX_INVOCATIONS = 6


def weather(tmp_path: Path, num_samples: int, quota_at: int, seed: int) -> None:
    config = SynthesisConfig(num_topics=num_samples, num_edits=num_samples, timeout_seconds=TIMEOUT_SECONDS)
    spoil = Spoil(seed, TIMEOUT_SECONDS)
    run_dir = tmp_path / "run"
    with LoopbackTeacher(storm_refusals(seed, quota_at=quota_at), spoil=spoil) as teacher:
        config = config.model_copy(update={"base_url": teacher.base_url})
        with pytest.raises(UserError, match="insufficient_quota"):
            synthesize(run_dir, config)
        for _ in range(MAX_INVOCATIONS):
            summary = synthesize(run_dir, config)
            if not summary.unfinished:
                break
        assert summary.unfinished == {}
        teacher.fault = teacher.spoil = None
        assert synthesize(run_dir, config).new_attempts == 0

    status = summary.status
    assert sum(status.decided.values()) == 2 * num_samples
    assert status.records == len(list(iter_records(run_dir)))
    assert status.records + sum(status.rejected.values()) == 2 * num_samples
    allowed = ("moderation_blocked", "the source was rejected", "(3 answers)", "the edit changed nothing")
    assert [reason for reason in status.rejected if not any(words in reason for words in allowed)] == []
    counts = status.by_status
    assert set(counts) == {"ok", "retry", "blocked", "invalid", "lost", "quota"}
    # The teacher's own count: what it served is in the journal once, was spoiled, or was lost on its way.
    assert counts["ok"] == teacher.delivered.total()
    assert counts["lost"] == spoil.hidden.total()
    assert counts["invalid"] == spoil.spoiled.total()
    assert teacher.served.total() == counts["ok"] + counts["lost"] + counts["invalid"]
    assert counts["quota"] == 1
    assert set(spoil.hidden) == {"disconnect", "timeout"}
    assert set(spoil.spoiled) == {"truncated", "not JSON"}


def test_storm(tmp_path: Path) -> None:
    weather(tmp_path, num_samples=80, quota_at=100, seed=1)


@pytest.mark.slow
def test_long_storm(tmp_path: Path) -> None:
    weather(tmp_path, num_samples=1000, quota_at=1500, seed=2)


PRICES = dict.fromkeys(("offline-writer-1", "offline-painter-1"), Price(text_input=10, image_input=20, output=50))


def bill(teacher: LoopbackTeacher) -> float:
    """What the teacher's own count of tokens costs; both models have one price here."""
    [price] = set(PRICES.values())
    tokens = teacher.tokens
    return (
        tokens["text_input"] * price.text_input
        + tokens["image_input"] * price.image_input
        + tokens["output"] * price.output
    ) / 1e6


def test_the_bill_never_exceeds_the_budget(tmp_path: Path) -> None:
    """Everything would cost three times the budget; answers that are lost on their way are paid too."""
    config = SynthesisConfig(
        num_topics=40, num_edits=40, prices=PRICES, num_workers=8, timeout_seconds=TIMEOUT_SECONDS
    )
    with LoopbackTeacher() as teacher:
        synthesize(tmp_path / "whole", config.model_copy(update={"base_url": teacher.base_url}))
        whole = bill(teacher)
    budget = whole / 3
    spoil = Spoil(3, TIMEOUT_SECONDS)
    with LoopbackTeacher(spoil=spoil) as teacher:
        config = config.model_copy(update={"base_url": teacher.base_url})
        summary = synthesize(tmp_path / "run", config, budget_usd=budget)
        assert summary.end_of_budget is not None
        assert 0.8 * budget < bill(teacher) <= budget
        again = synthesize(tmp_path / "run", config, budget_usd=budget)
        assert again.end_of_budget is not None
        assert bill(teacher) <= budget
        status = read_status(tmp_path / "run")
        assert status.spent_usd <= bill(teacher) <= status.spent_usd + status.possibly_spent_usd
        teacher.spoil = None
        finished = synthesize(tmp_path / "run", config, budget_usd=2 * whole)
        assert (finished.end_of_budget, finished.unfinished) == (None, {})
        assert finished.status.records == 80


def test_a_budget_without_a_price_is_refused(tmp_path: Path) -> None:
    config = SynthesisConfig(image_model="somebody-elses-painter")
    with pytest.raises(UserError, match="needs the price of somebody-elses-painter"):
        synthesize(tmp_path / "run", config, budget_usd=1.0)
    assert not (tmp_path / "run").exists()

# SPDX-License-Identifier: Apache-2.0
"""Masks are drawn by (seed, epoch, sample) alone, at their rates, each without regard to the others."""

import numpy as np
import pytest

from sharegpt4o_image.training.conditions import Dropout, draw

NUM_SAMPLES = 4000
TOLERANCE = 4 * 0.5 / NUM_SAMPLES**0.5  # four standard deviations of a share at most


def drawn(num_sources=1, seed=0, epoch=0, num_codes=4, **rates):
    dropout = Dropout(**rates)
    return [draw(dropout, seed, epoch, f"row-{i}", num_sources, num_codes, 6) for i in range(NUM_SAMPLES)]


def share(flags):
    return sum(flags) / NUM_SAMPLES


def test_the_masks_of_edits_come_at_their_rates_and_exclude_each_other():
    samples = drawn(null=0.1, instruction=0.05, source_code=0.5)
    assert share(one.is_null for one in samples) == pytest.approx(0.1, abs=TOLERANCE)
    assert share(one.drops_text for one in samples) == pytest.approx(0.05, abs=TOLERANCE)
    assert not any(one.is_null and one.drops_text for one in samples)
    assert share(one.dropped_source_codes.all() for one in samples) == pytest.approx(0.5, abs=TOLERANCE)
    assert share(one.dropped_source_codes.any() for one in samples) == pytest.approx(0.5, abs=TOLERANCE)
    both = share(one.is_null and one.dropped_source_codes[0, 0] for one in samples)
    assert both == pytest.approx(0.05, abs=TOLERANCE)  # independent


def test_sources_of_one_edit_are_dropped_independently():
    samples = drawn(num_sources=2, source_code=0.5)
    together = share(one.dropped_source_codes[:, 0].all() for one in samples)
    assert together == pytest.approx(0.25, abs=TOLERANCE)


def test_codes_are_dropped_one_by_one_at_token_granularity():
    samples = drawn(source_code=0.5, source_code_granularity="token")
    dropped = np.stack([one.dropped_source_codes[0] for one in samples])
    assert dropped.mean(0) == pytest.approx(0.5, abs=TOLERANCE)
    assert (dropped[:, 0] & dropped[:, 1]).mean() == pytest.approx(0.25, abs=TOLERANCE)


def test_the_prompt_of_text_to_image_is_dropped_whole_or_token_by_token():
    blocks = drawn(num_sources=0, prompt=0.1, null=1.0, instruction=1.0)  # the rates of edits do not matter here
    assert share(one.is_null for one in blocks) == pytest.approx(0.1, abs=TOLERANCE)
    assert not any(one.drops_text or one.dropped_text is not None for one in blocks)
    tokens = np.stack([one.dropped_text for one in drawn(num_sources=0, prompt=0.1, prompt_granularity="token")])
    assert tokens.shape == (NUM_SAMPLES, 6)
    assert tokens.mean(0) == pytest.approx(0.1, abs=TOLERANCE)


def test_rates_of_0_and_1_are_never_and_always():
    never = drawn(num_sources=1)
    assert not any(one.is_null or one.drops_text or one.dropped_source_codes.any() for one in never)
    assert all(one.is_null and one.dropped_source_codes.all() for one in drawn(null=1.0, source_code=1.0))
    assert all(one.drops_text for one in drawn(instruction=1.0))


def test_another_rate_does_not_change_what_a_mask_hits():
    few, many = drawn(null=0.1, source_code=0.5), drawn(null=0.3, instruction=0.2, source_code=0.7)
    for one, other in zip(few, many, strict=True):
        assert one.is_null <= other.is_null
        assert (one.dropped_source_codes <= other.dropped_source_codes).all()
    assert [one.drops_text for one in drawn(instruction=0.2)] == [one.drops_text for one in many]


def test_draws_differ_by_epoch_seed_and_sample_and_come_again():
    first = [one.is_null for one in drawn(null=0.5)]
    assert [one.is_null for one in drawn(null=0.5)] == first
    for others in (drawn(null=0.5, epoch=1), drawn(null=0.5, seed=1)):
        agreement = share(one.is_null == before for one, before in zip(others, first, strict=True))
        assert agreement == pytest.approx(0.5, abs=TOLERANCE)

# SPDX-License-Identifier: Apache-2.0
"""Evaluation: benchmarks, their detectors and judges, and pure aggregation of verdicts."""

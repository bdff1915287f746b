# SPDX-License-Identifier: Apache-2.0
"""Builders: finished runs -> Parquet data sets that `load_dataset` reads, and checkpoint conversion."""

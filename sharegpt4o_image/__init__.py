# SPDX-License-Identifier: Apache-2.0
"""ShareGPT-4o-Image: data synthesis, data sets, training, generation and evaluation for Janus-4o."""

__version__ = "0.1.0"

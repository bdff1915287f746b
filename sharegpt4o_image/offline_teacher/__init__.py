# SPDX-License-Identifier: Apache-2.0
"""The embedded default teacher: an OpenAI-compatible app that draws simple scenes, with no key and no network."""

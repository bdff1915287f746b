# SPDX-License-Identifier: Apache-2.0
"""Synthesis: taxonomy -> topics -> prompts -> images -> records, with any OpenAI-compatible teacher."""

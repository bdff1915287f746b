# SPDX-License-Identifier: Apache-2.0
"""Training: the TRL trainer for the image-token loss, and the command that rebuilds the tiny checkpoints."""

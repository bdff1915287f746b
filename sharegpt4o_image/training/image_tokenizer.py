# SPDX-License-Identifier: Apache-2.0
"""Train the image tokenizer (VQ autoencoder) of the tiny checkpoints: pictures -> codes -> pictures.

The released Janus models come with a trained VQ-16; only the tiny checkpoints need this. The loss is our own choice
(no perceptual or adversarial term: the pictures are flat shapes).
"""

import logging
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn
from transformers.models.janus.modeling_janus import JanusVQVAE

logger = logging.getLogger(__name__)

_COMMITMENT = 0.25  # weight of the commitment term (van den Oord et al. 2017, beta)
_CONTINUOUS_SHARE = 0.2  # share of the run before the codebook comes in; it then starts from k-means centres
_KMEANS_LATENTS = 24_000  # encoder outputs from which the first codebook is made
_RESTART_EVERY_STEPS = 100  # unused codes are moved onto encoder outputs this often ...
_RESTART_SHARE = 0.6  # ... until this share of the run, so that the codebook can settle
_WARMUP_SHARE = 0.05
_LOG_EVERY_STEPS = 100


def quantize(latents_BDHW: Tensor, codebook_VD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest codes on the unit sphere, with straight-through gradient (ViT-VQGAN, as in Janus' VQ-16).

    Returns:
        the quantised unit vectors (B, D, H, W), the codes (B, H, W), and the codebook + commitment loss.
    """
    z_BHWD = F.normalize(latents_BDHW.permute(0, 2, 3, 1), dim=-1)
    codebook_VD = F.normalize(codebook_VD, dim=-1)
    codes_BHW = (z_BHWD @ codebook_VD.T).argmax(-1)
    q_BHWD = F.embedding(codes_BHW, codebook_VD)
    loss = F.mse_loss(q_BHWD, z_BHWD.detach()) + _COMMITMENT * F.mse_loss(z_BHWD, q_BHWD.detach())
    straight_through = z_BHWD + (q_BHWD - z_BHWD).detach()
    return straight_through.permute(0, 3, 1, 2), codes_BHW, loss


@torch.no_grad()
def restart_dead_codes(codebook: nn.Embedding, usage_V: Tensor, latents_BDHW: Tensor) -> int:
    """Move every code that `usage_V` counts zero times onto a random encoder output; returns how many moved."""
    dead = (usage_V == 0).nonzero().flatten()
    candidates_ND = F.normalize(latents_BDHW.permute(0, 2, 3, 1).flatten(0, 2), dim=-1)
    chosen = torch.randint(len(candidates_ND), (len(dead),))
    codebook.weight[dead] = candidates_ND[chosen]
    return len(dead)


@torch.no_grad()
def fit_codebook(vqmodel: JanusVQVAE, batches: Iterator[Tensor]) -> None:
    """Set the codebook to the k-means centres of what the encoder gives now."""
    latents: list[Tensor] = []
    while sum(map(len, latents)) < _KMEANS_LATENTS:
        latents_BDHW = vqmodel.quant_conv(vqmodel.encoder(next(batches)))
        latents.append(F.normalize(latents_BDHW.permute(0, 2, 3, 1).flatten(0, 2), dim=-1))
    codebook = vqmodel.quantize.embedding.weight
    centres, _ = kmeans2(torch.cat(latents).numpy(), len(codebook), iter=15, minit="points", missing="warn", rng=0)
    codebook.copy_(torch.from_numpy(centres))


def train_image_tokenizer(
    vqmodel: JanusVQVAE, batches: Iterator[Tensor], num_steps: int, learning_rate: float = 2e-3
) -> list[dict[str, float]]:
    """Train `vqmodel` in place and freeze it: first without quantisation, then with.

    Args:
        vqmodel: an initialised autoencoder.
        batches: pixel values (B, 3, H, W) in [-1, 1]; one batch is drawn a step.
        num_steps: optimizer steps.
        learning_rate: peak of the schedule.

    Returns:
        The log: `step`, `reconstruction` (mean absolute + mean squared error) and `codes_used` at intervals.
    """
    vqmodel.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(vqmodel.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=num_steps, pct_start=_WARMUP_SHARE
    )
    codebook = vqmodel.quantize.embedding
    usage_V = torch.zeros(codebook.num_embeddings, dtype=torch.long)
    first_quantized_step = int(num_steps * _CONTINUOUS_SHARE)
    log = []
    for step in range(num_steps):
        if step == first_quantized_step:
            fit_codebook(vqmodel, batches)
        pixels_BCHW = next(batches)
        latents_BDHW = vqmodel.quant_conv(vqmodel.encoder(pixels_BCHW))
        quantized_BDHW, codes_BHW, code_loss = quantize(latents_BDHW, codebook.weight)
        if step < first_quantized_step:
            quantized_BDHW, code_loss = F.normalize(latents_BDHW, dim=1), torch.zeros(())
        decoded_BCHW = vqmodel.decoder(vqmodel.post_quant_conv(quantized_BDHW))
        reconstruction = F.l1_loss(decoded_BCHW, pixels_BCHW) + F.mse_loss(decoded_BCHW, pixels_BCHW)
        optimizer.zero_grad(set_to_none=True)
        (reconstruction + code_loss).backward()
        nn.utils.clip_grad_norm_(vqmodel.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        usage_V += codes_BHW.flatten().bincount(minlength=len(usage_V))
        if step % _LOG_EVERY_STEPS == 0 or step == num_steps - 1:
            error, used = reconstruction.item(), int((usage_V > 0).sum())
            log.append({"step": step, "reconstruction": round(error, 4), "codes_used": used})
            logger.info("image tokenizer: step %d/%d, reconstruction %.4f, codes %d", step, num_steps, error, used)
        if step % _RESTART_EVERY_STEPS == 0:
            if first_quantized_step + _RESTART_EVERY_STEPS < step < num_steps * _RESTART_SHARE:
                restart_dead_codes(codebook, usage_V, latents_BDHW)
            usage_V.zero_()
    vqmodel.eval().requires_grad_(False)
    return log

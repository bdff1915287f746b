# SPDX-License-Identifier: Apache-2.0
"""Train the image tokenizer (VQ autoencoder) of the tiny checkpoints: pictures -> codes -> pictures.

The released Janus models come with a trained VQ-16; only the tiny checkpoints need this, and the method is our own
choice. The codes are k-means clusters of the pictures' patches; the encoder learns to name the cluster of each patch,
the decoder to draw the picture from the names. So a cell's code follows from the cell alone. An autoencoder trained
the usual way lets every code depend on the whole picture (attention, `GroupNorm`), and the language model then has to
learn noise: see `docs/log.md`.
"""

import logging
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn
from transformers.models.janus.modeling_janus import JanusVQVAE, JanusVQVAEAttnBlock, JanusVQVAEEncoder

logger = logging.getLogger(__name__)

# B batch, D code width, V codes, H W pixels or cells, N patches, C values of a patch (3 channels x its pixels)

_CODEBOOK_PICTURES = 4_096  # pictures whose patches are clustered
_CODEBOOK_PATCHES = 24_000  # of their distinct patches, drawn with the square root of their frequency
_TEMPERATURE = 0.07  # of the cosines by which the encoder names a cluster
_NAMING_WEIGHT = 0.1  # weight of the encoder's cross entropy beside the decoder's error
_PIXEL_NOISE = 0.02  # standard deviation added to what the encoder sees, of values in [-1, 1]
_LOCAL_BIAS = 2.0  # see `start_local`
_WARMUP_SHARE = 0.05
_LOG_EVERY_STEPS = 100


def patches_of(pixels_BCHW: Tensor, patch_size: int) -> Tensor:
    """(B, 3, H, W) -> the patches (N, C), picture by picture and row by row."""
    return F.unfold(pixels_BCHW, patch_size, stride=patch_size).transpose(1, 2).flatten(0, 1)


def spread_points(points_ND: Tensor, num_points: int, generator: torch.Generator) -> Tensor:
    """The start of k-means++: indices of points, each drawn with its squared distance from those before as weight."""
    chosen = [0]
    distance_N = (points_ND - points_ND[0]).square().sum(-1)
    while len(chosen) < num_points:
        chosen.append(int(torch.multinomial(distance_N, 1, generator=generator)))
        distance_N = torch.minimum(distance_N, (points_ND - points_ND[chosen[-1]]).square().sum(-1))
    return torch.tensor(chosen)


def cluster_patches(pixels_BCHW: Tensor, patch_size: int, num_clusters: int, seed: int) -> Tensor:
    """Cluster centres (V, C) of the patches of `pixels`.

    Plain background is most of every picture, so patches count with the square root of their frequency.
    """
    generator = torch.Generator().manual_seed(seed)
    distinct_NC, counts_N = patches_of(pixels_BCHW, patch_size).unique(dim=0, return_counts=True)
    drawn = torch.multinomial(counts_N.float().sqrt(), _CODEBOOK_PATCHES, replacement=True, generator=generator)
    points_NC = distinct_NC[drawn]
    start_VC = points_NC[spread_points(points_NC, num_clusters, generator)]
    centres, _ = kmeans2(points_NC.numpy(), start_VC.numpy(), iter=10, minit="matrix", missing="raise")
    return torch.from_numpy(centres)


def nearest_clusters(pixels_BCHW: Tensor, centres_VC: Tensor, patch_size: int) -> Tensor:
    """The cluster of every patch: (B, cells) int64."""
    clusters_N = torch.cdist(patches_of(pixels_BCHW, patch_size), centres_VC).argmin(-1)
    return clusters_N.view(len(pixels_BCHW), -1)


@torch.no_grad()
def start_codebook(codebook: nn.Embedding, centres_VC: Tensor) -> None:
    """Give each cluster a vector: its centre in the directions in which centres differ most."""
    centred_VC = centres_VC - centres_VC.mean(0)
    directions_CD = torch.linalg.svd(centred_VC, full_matrices=False).Vh.T[:, : codebook.embedding_dim]
    codebook.weight.copy_(F.normalize(centred_VC @ directions_CD, dim=-1))


@torch.no_grad()
def start_local(encoder: JanusVQVAEEncoder) -> None:
    """Let an untrained encoder see little but the neighbourhood of each cell.

    Its attention adds nothing at first. The two channels of each `GroupNorm` group (64 channels, 32 groups) get biases
    of opposite sign, which outweigh the picture in the group's mean and variance.
    """
    for module in encoder.modules():
        if isinstance(module, JanusVQVAEAttnBlock):
            nn.init.zeros_(module.proj_out.weight)
            nn.init.zeros_(module.proj_out.bias)
    bias_D = encoder.conv_in.bias
    assert bias_D is not None
    bias_D[0::2] += _LOCAL_BIAS
    bias_D[1::2] -= _LOCAL_BIAS


def train_image_tokenizer(
    vqmodel: JanusVQVAE, batches: Iterator[tuple[Tensor, Tensor]], num_steps: int, learning_rate: float, seed: int
) -> list[dict[str, float]]:
    """Train `vqmodel` in place and freeze it.

    Args:
        vqmodel: an initialised autoencoder.
        batches: pairs of pixel values (B, 3, H, W) in [-1, 1]: pictures as they are drawn at this size, and the same
            ones as a user's picture arrives, resized. One batch is drawn a step, more at the start for the clusters.
        num_steps: optimizer steps.
        learning_rate: peak of the schedule.
        seed: of the clusters.

    Returns:
        The log: `step`, `reconstruction` (mean absolute + mean squared error) and `named` (the share of cells to which
        the encoder gives the code of their cluster) at intervals.
    """
    vqmodel.train().requires_grad_(True)
    start_local(vqmodel.encoder)
    codebook = vqmodel.quantize.embedding
    pictures: list[Tensor] = []
    while sum(map(len, pictures)) < _CODEBOOK_PICTURES:
        pictures.append(next(batches)[0])
    patch_size = 2 ** (len(vqmodel.config.channel_multiplier) - 1)
    centres_VC = cluster_patches(torch.cat(pictures), patch_size, len(codebook.weight), seed)
    start_codebook(codebook, centres_VC)
    optimizer, schedule = _optimizer(vqmodel.parameters(), num_steps, learning_rate)
    log = []
    for step in range(num_steps):
        drawn_BCHW, resized_BCHW = next(batches)
        clusters_BP = nearest_clusters(drawn_BCHW, centres_VC, patch_size)
        logits_BVP = _cluster_logits(vqmodel, resized_BCHW + _PIXEL_NOISE * torch.randn_like(resized_BCHW))
        naming = F.cross_entropy(logits_BVP, clusters_BP)
        reconstruction = _error(_decode(vqmodel, clusters_BP), drawn_BCHW)
        optimizer.zero_grad(set_to_none=True)
        (reconstruction + _NAMING_WEIGHT * naming).backward()
        nn.utils.clip_grad_norm_(vqmodel.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % _LOG_EVERY_STEPS == 0 or step == num_steps - 1:
            named = (logits_BVP.argmax(1) == clusters_BP).float().mean().item()
            log.append({"step": step, "reconstruction": round(reconstruction.item(), 4), "named": round(named, 4)})
            logger.info("image tokenizer: step %d of %d, %s", step, num_steps, log[-1])
    vqmodel.eval().requires_grad_(False)
    return log


def train_decoder(
    vqmodel: JanusVQVAE,
    encode: Callable[[Tensor], Tensor],
    batches: Iterator[tuple[Tensor, Tensor]],
    num_steps: int,
    learning_rate: float,
) -> list[dict[str, float]]:
    """Train the decoder alone, in place, on the codes that the finished encoder gives; the codes stay as they are.

    Args:
        vqmodel: what [`train_image_tokenizer`] trained.
        encode: pixel values (B, 3, H, W) in [-1, 1] -> codes (B, P).
        batches: see [`train_image_tokenizer`].
        num_steps: optimizer steps.
        learning_rate: peak of the schedule.

    Returns:
        The log: `step` and `reconstruction` at intervals.
    """
    parameters = [*vqmodel.decoder.parameters(), *vqmodel.post_quant_conv.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer, schedule = _optimizer(parameters, num_steps, learning_rate)
    log = []
    for step in range(num_steps):
        drawn_BCHW, resized_BCHW = next(batches)
        reconstruction = _error(_decode(vqmodel, encode(resized_BCHW)), drawn_BCHW)
        optimizer.zero_grad(set_to_none=True)
        reconstruction.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % _LOG_EVERY_STEPS == 0 or step == num_steps - 1:
            log.append({"step": step, "reconstruction": round(reconstruction.item(), 4)})
            logger.info("decoder: step %d of %d, %s", step, num_steps, log[-1])
    vqmodel.eval().requires_grad_(False)
    return log


def _optimizer(
    parameters: Iterable[nn.Parameter], num_steps: int, learning_rate: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW, and a short warm-up before a long decay."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=num_steps, pct_start=_WARMUP_SHARE
    )


def _error(decoded_BCHW: Tensor, pixels_BCHW: Tensor) -> Tensor:
    """Mean absolute + mean squared error."""
    return F.l1_loss(decoded_BCHW, pixels_BCHW) + F.mse_loss(decoded_BCHW, pixels_BCHW)


def _cluster_logits(vqmodel: JanusVQVAE, pixels_BCHW: Tensor) -> Tensor:
    """How well each code fits each cell: (B, V, P)."""
    latents_BDHW = vqmodel.quant_conv(vqmodel.encoder(pixels_BCHW))
    codebook_VD = F.normalize(vqmodel.quantize.embedding.weight, dim=-1)
    return codebook_VD @ F.normalize(latents_BDHW.flatten(2), dim=1) / _TEMPERATURE


def _decode(vqmodel: JanusVQVAE, codes_BP: Tensor) -> Tensor:
    """As `JanusVQVAE.decode`."""
    return vqmodel.decoder(vqmodel.post_quant_conv(vqmodel.quantize.get_codebook_entry(codes_BP)))

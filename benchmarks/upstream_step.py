# SPDX-License-Identifier: Apache-2.0
"""A stand-in for upstream's training step (`train_janus.py` at 19ac7d7), rebuilt from facts about it.

In brackets the defects of upstream's that cost time. All parameters are in AdamW with fp32 states, image tokenizer and
vocabulary head too (T9); pictures are encoded in every step, in train mode and with the graph (T10); sources are
opened and sized twice (T14); a zero picture goes through the vision tower where a batch has no source (T15); three
`.item()` a micro-batch. The loss leaves out the first code (T1). Its attention is transformers' default, "sdpa".

Left out, each in upstream's favour: pictures are decoded outside of the timed step, the GPU's cache is not emptied
(every second update there), and DeepSpeed's own work is missing.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor

# S samples, L prompt tokens, P image tokens, T tokens of a sample with its codes, D width, V codes, N sources


def upstream_batch(processor: Janus4oProcessor, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Left-padded prompts and pixels; a source is sized once for the image tokenizer, once for the tower."""
    prompts = [processor.image_generation_ids(row["input_prompt"], len(row["input_image"])) for row in rows]
    batch = dict(processor.pad_left(prompts))
    batch["target_pixels"] = processor.source_pixels([row["output_image"] for row in rows])
    if any(row["input_image"] for row in rows):
        for name in ("source_pixels", "tower_pixels"):
            batch[name] = processor.source_pixels([image for row in rows for image in row["input_image"]])
    return batch


def encode_with_graph(model: Janus4oForImageGeneration, pixels: Tensor) -> Tensor:
    """Codes (N, P), the graph kept, with the losses of the image tokenizer, which nobody reads."""
    vqmodel = model.model.vqmodel
    latents_NEHW = vqmodel.quant_conv(vqmodel.encoder(pixels.to(vqmodel.quant_conv.weight)))
    z_NPE = F.normalize(latents_NEHW.permute(0, 2, 3, 1).flatten(1, 2), dim=-1)
    codebook_VE = F.normalize(vqmodel.quantize.embedding.weight, dim=-1)
    squares = z_NPE.pow(2).sum(-1, keepdim=True) + codebook_VE.pow(2).sum(-1)
    codes_NP = (squares - 2 * z_NPE @ codebook_VE.T).argmin(-1)
    nearest_NPE = codebook_VE[codes_NP]
    F.mse_loss(nearest_NPE.detach(), z_NPE) + F.mse_loss(nearest_NPE, z_NPE.detach())
    return codes_NP


def upstream_losses(model: Janus4oForImageGeneration, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross entropy of the codes after the first (S, P - 1), and how many of them are guessed right."""
    codes_SP = encode_with_graph(model, batch["target_pixels"])
    embeds_SLD = upstream_prompt(model, batch)
    embeds_STD = torch.cat([embeds_SLD, model.embed_codes(codes_SP).to(embeds_SLD)], dim=1)  # T = L + P
    num_codes = codes_SP.shape[1]
    hidden_STD = model.model.language_model(
        inputs_embeds=embeds_STD,
        attention_mask=F.pad(batch["attention_mask"], (0, num_codes), value=1),
        use_cache=False,
    ).last_hidden_state
    logits_SPV = model.model.generation_head(hidden_STD[:, -num_codes:])[:, :-1].float()
    losses_SP = F.cross_entropy(logits_SPV.transpose(1, 2), codes_SP[:, 1:], reduction="none")
    return losses_SP, (logits_SPV.detach().argmax(-1) == codes_SP[:, 1:]).sum()


def upstream_prompt(model: Janus4oForImageGeneration, batch: dict[str, Tensor]) -> Tensor:
    """Prompt embeddings (S, L, D), source blocks filled in."""
    ids = batch["input_ids"]
    embeds_SLD = model.get_input_embeddings()(ids)
    if "source_pixels" not in batch:
        model.model.get_image_features(torch.zeros_like(batch["target_pixels"][:1]).to(embeds_SLD))
        return embeds_SLD
    code_NPD = model.embed_codes(encode_with_graph(model, batch["source_pixels"])).to(embeds_SLD)
    semantic_NPD = model.model.get_image_features(batch["tower_pixels"].to(embeds_SLD)).pooler_output
    is_placeholder, is_code = ids == model.config.image_token_id, model._source_code_positions(ids)
    embeds_SLD = embeds_SLD.masked_scatter(is_placeholder[..., None], semantic_NPD.to(embeds_SLD))
    return embeds_SLD.masked_scatter(is_code[..., None], code_NPD)


class UpstreamMetrics:
    """Sums that wait for the device three times a micro-batch."""

    def __init__(self) -> None:
        self.num_right = self.num_codes = self.loss = 0.0

    def add(self, losses: Tensor, loss: Tensor, num_right: Tensor) -> None:
        """Count a micro-batch."""
        self.num_right += num_right.item()
        self.num_codes += torch.ones_like(losses).sum().item()
        self.loss += loss.item()


class FullPrecisionAdamW:
    """AdamW over all parameters, with fp32 master weights of half-precision ones; a missing gradient is zero."""

    def __init__(self, model: nn.Module, learning_rate: float):
        self._parameters = list(model.parameters())
        self._masters = [p if p.dtype == torch.float32 else p.detach().float() for p in self._parameters]
        self._optimizer = torch.optim.AdamW(self._masters, lr=learning_rate, weight_decay=0.1)

    @torch.no_grad()
    def step(self) -> None:
        """One update."""
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            master.grad = gradient.to(master.dtype)
        self._optimizer.step()
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            if master is not parameter:
                parameter.copy_(master)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for tensor in (*self._parameters, *self._masters):
            tensor.grad = None

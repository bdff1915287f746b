# SPDX-License-Identifier: Apache-2.0
"""Janus-4o: transformers' Janus, made to edit images and to train on image codes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, JanusForConditionalGeneration
from transformers.utils import ModelOutput, logging

from .configuration_janus4o import Janus4oConfig
from .generation_janus4o import Janus4oGenerationMixin, positions_of

# B batch, L prompt tokens, P image tokens (576), N source images, D width, V codes, H W pixels

logger = logging.get_logger(__name__)

IGNORED_CODE = -100  # a source code with this value leaves its position as a pad

AUTO_MAP = {
    "AutoConfig": "configuration_janus4o.Janus4oConfig",
    "AutoModel": "modeling_janus4o.Janus4oForImageGeneration",
    "AutoModelForImageTextToText": "modeling_janus4o.Janus4oForImageGeneration",
}


@dataclass
class Janus4oOutput(ModelOutput):
    """What a forward pass over image codes gives.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Cross entropy over all P target codes.
        logits (`torch.FloatTensor` of shape `(B, P, V)`):
            `logits[:, p]` predicts target code `p`; `(B, 1, V)`, for code 0 alone, without `target_codes`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None


class Janus4oForImageGeneration(Janus4oGenerationMixin, JanusForConditionalGeneration):
    """Janus with image generation, image editing and the image-token loss of the ShareGPT-4o-Image paper.

    Text generation (`forward` and `generate` with `pixel_values` / `labels`) is inherited unchanged.
    """

    config_class = Janus4oConfig
    # A half-precision encoder gives other codes where two are about as near: the image tokenizer is loaded in fp32.
    _keep_in_fp32_modules_strict = ["vqmodel"]  # noqa: RUF012 (transformers declares it so)
    # The loss is divided by `num_items_in_batch` here, so the Trainer must not scale it for accumulation.
    accepts_loss_kwargs = True

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As the parent's; the folder names this class for every auto class that should find it.

        `register_for_auto_class` alone keeps only the last of several.
        """
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(*args, **kwargs)

    # ------------------------------------------------------------------ image tokenizer

    @torch.no_grad()
    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Pictures -> codes.

        Both the encoder's output and the codebook are L2-normalised before the nearest code is looked up, as in the
        reference VQ-16 (`JanusVQVAE.encode` of transformers 5.23 omits it and returns other codes).

        Args:
            pixel_values: (B, 3, H, W) in [-1, 1].

        Returns:
            codes (B, P), int64.
        """
        vqmodel, side = self.model.vqmodel, self.config.vision_config.image_size
        if pixel_values.shape[1:] != (3, side, side):
            raise ValueError(f"pixel_values has shape {tuple(pixel_values.shape)}, expected (B, 3, {side}, {side}).")
        parameter = vqmodel.quant_conv.weight
        if parameter.dtype != torch.float32:
            logger.warning_once(
                f"The image tokenizer is in {parameter.dtype}: some codes will differ from those of fp32. "
                "`from_pretrained(..., dtype=...)` keeps it in fp32, `model.to(dtype)` does not."
            )
        with full_precision(parameter.device):
            latents_BDHW = vqmodel.quant_conv(vqmodel.encoder(pixel_values.to(parameter)))
            z_BPD = F.normalize(latents_BDHW.permute(0, 2, 3, 1).flatten(1, 2), dim=-1)
            codebook_VD = F.normalize(vqmodel.quantize.embedding.weight, dim=-1)
            squares = z_BPD.pow(2).sum(-1, keepdim=True) + codebook_VD.pow(2).sum(-1)
            distance_BPV = squares - 2 * z_BPD @ codebook_VD.T
        return distance_BPV.argmin(-1)

    @torch.no_grad()
    def decode_image(self, codes: Tensor) -> Tensor:
        """Codes (B, P) -> pictures (B, 3, H, W), nominally in [-1, 1] (not clipped)."""
        num_codes = self.config.num_image_tokens
        if codes.dim() != 2 or codes.shape[1] != num_codes:
            raise ValueError(f"codes has shape {tuple(codes.shape)}, expected (B, {num_codes}).")
        self._check_codes(codes, "codes")
        return self._decode_codes(codes)

    @torch.no_grad()
    def _decode_codes(self, codes: Tensor) -> Tensor:
        vqmodel = self.model.vqmodel
        with full_precision(codes.device):
            entries_BEHW = vqmodel.quantize.get_codebook_entry(codes)
            if codes.device.type == "cpu":  # faster there (`docs/performance.md`); the layers keep the format
                entries_BEHW = entries_BEHW.contiguous(memory_format=torch.channels_last)
            return vqmodel.decoder(vqmodel.post_quant_conv(entries_BEHW)).contiguous()

    @torch.no_grad()
    def preview_image(self, codes: Tensor) -> Tensor:
        """The first n codes (B, n) of pictures -> pictures (B, 3, H, W) whose cells without a code are mid-grey.

        The missing codes are decoded as copies of the last one (our choice); the decoder looks at neighbours, so the
        edge of what is drawn may still change.
        """
        num_codes, num_known = self.config.num_image_tokens, codes.shape[1]
        if not 0 < num_known <= num_codes:
            raise ValueError(f"codes has shape {tuple(codes.shape)}, expected (B, n) with n from 1 to {num_codes}.")
        missing = codes[:, -1:].expand(-1, num_codes - num_known)
        pixels_BCHW = self.decode_image(torch.cat([codes, missing], dim=1))
        cells = self.config.vq_config.num_patches
        is_known = (torch.arange(num_codes, device=codes.device) < num_known).view(1, 1, cells, cells)
        patch = pixels_BCHW.shape[-1] // cells
        return pixels_BCHW * is_known.repeat_interleave(patch, 2).repeat_interleave(patch, 3)

    def _check_codes(self, codes: Tensor, name: str, is_ignored_allowed: bool = False) -> None:
        known = codes[codes != IGNORED_CODE] if is_ignored_allowed else codes
        if known.numel() == 0:
            return
        low, high = (int(bound) for bound in torch.stack(known.aminmax()))
        last = self.config.vq_config.num_embeddings - 1
        if low < 0 or high > last:
            raise ValueError(f"{name} has codes from {low} to {high}; the codebook has 0 to {last}.")

    # ------------------------------------------------------------------ prompt embeddings

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Codes (B, P) -> the language model's input embeddings (B, P, D)."""
        return self.prepare_embeddings_for_image_generation(codes)

    def embed_prompt(
        self, input_ids: Tensor, source_pixel_values: Tensor | None = None, source_codes: Tensor | None = None
    ) -> Tensor:
        """Prompt tokens -> embeddings (B, L, D), the source blocks filled in.

        Args:
            input_ids: (B, L), laid out by `Janus4oProcessor`.
            source_pixel_values: (N, 3, H, W) in [-1, 1], all sources in order of the rows.
            source_codes: (N, P); positions with `-100` stay pad embeddings. Encoded from the pixels when absent.
        """
        embeds_BLD = self.get_input_embeddings()(input_ids)
        is_placeholder = input_ids == self.config.image_token_id  # (B, L)
        is_code = self._source_code_positions(input_ids)  # (B, L)
        num_sources = 0 if source_pixel_values is None else len(source_pixel_values)
        self._check_sources(is_placeholder, is_code, num_sources, source_codes)
        if source_pixel_values is None:
            return embeds_BLD
        if source_codes is None:
            source_codes = self.encode_image(source_pixel_values)
        semantic_NPD = self.model.get_image_features(source_pixel_values.to(embeds_BLD)).pooler_output
        embeds_BLD = embeds_BLD.masked_scatter(is_placeholder[..., None], semantic_NPD.to(embeds_BLD))
        kept = source_codes != IGNORED_CODE  # (N, P)
        code_NPD = self.embed_codes(source_codes.clamp(min=0))
        filled = is_code.masked_scatter(is_code, kept)  # (B, L)
        return embeds_BLD.masked_scatter(filled[..., None], code_NPD[kept].to(embeds_BLD))

    def drop_source_codes(self, embeds_BLD: Tensor, input_ids: Tensor) -> Tensor:
        """Prompt embeddings with pads where the source codes stand: the l_o row (paper section 2)."""
        pad_D = self.get_input_embeddings()(torch.tensor(self.config.pad_token_id, device=input_ids.device))
        is_code = self._source_code_positions(input_ids)
        return torch.where(is_code[..., None], pad_D, embeds_BLD)

    def _source_code_positions(self, input_ids: Tensor) -> Tensor:
        """Where the P pads of every `boi, P pads, eoi` block stand: bool (B, L)."""
        config, num_codes = self.config, self.config.num_image_tokens
        positions = torch.zeros_like(input_ids, dtype=torch.bool)
        num_starts = input_ids.shape[1] - num_codes - 1
        if num_starts <= 0:
            return positions
        is_start = (
            (input_ids[:, :num_starts] == config.boi_token_id)
            & (input_ids[:, 1 : num_starts + 1] == config.pad_token_id)
            & (input_ids[:, num_codes + 1 :] == config.eoi_token_id)
        )
        rows, starts = is_start.nonzero(as_tuple=True)
        offsets = torch.arange(1, num_codes + 1, device=input_ids.device)
        positions[rows[:, None], starts[:, None] + offsets] = True
        return positions

    def _check_sources(
        self, is_placeholder: Tensor, is_code: Tensor, num_sources: int, source_codes: Tensor | None
    ) -> None:
        num_codes = self.config.num_image_tokens
        found = (int(is_placeholder.sum()), int(is_code.sum()))
        if found != (num_sources * num_codes, num_sources * num_codes):
            raise ValueError(
                f"The prompts have room for {found[0] / num_codes:g} source images and {found[1] / num_codes:g} "
                f"source code blocks, but {num_sources} source images were given."
            )
        if source_codes is not None and source_codes.shape != (num_sources, num_codes):
            raise ValueError(
                f"source_codes has shape {tuple(source_codes.shape)}, expected {(num_sources, num_codes)}: "
                "one row of codes for each source image."
            )
        if source_codes is not None:
            self._check_codes(source_codes, "source_codes", is_ignored_allowed=True)

    # ------------------------------------------------------------------ model and loss

    def forward(  # noqa: D417 (the arguments for text are described by the parent)
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        source_pixel_values: Tensor | None = None,
        source_codes: Tensor | None = None,
        target_codes: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Predict target codes (with `target_codes` or `source_pixel_values`), or text as the parent class does.

        Args:
            input_ids: (B, L), laid out by `Janus4oProcessor`, ending in boi.
            attention_mask: (B, L), 0 on left padding.
            source_pixel_values: (N, 3, H, W) in [-1, 1].
            source_codes: (N, P), see [`embed_prompt`].
            target_codes: (B, P), the codes to predict.
            num_items_in_batch: divide the summed loss by this instead of by B * P (gradient accumulation).

        The other arguments are the parent's, for text; `generate` reads them off this signature.

        Returns:
            [`Janus4oOutput`]; the parent's output for text.
        """
        if any(given is not None for given in (target_codes, source_pixel_values, source_codes)):
            return self._predict_codes(
                input_ids, attention_mask, source_pixel_values, source_codes, target_codes, num_items_in_batch
            )
        if num_items_in_batch is not None:
            kwargs["num_items_in_batch"] = num_items_in_batch
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def _predict_codes(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        source_pixel_values: Tensor | None,
        source_codes: Tensor | None,
        target_codes: Tensor | None,
        num_items_in_batch: Tensor | int | None,
    ) -> Janus4oOutput:
        """Prompt and target codes in one pass; the vocabulary head is not used."""
        embeds_BLD = self.embed_prompt(input_ids, source_pixel_values, source_codes)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        num_predicted = 1
        if target_codes is not None:
            if target_codes.dim() != 2 or len(target_codes) != len(input_ids):
                raise ValueError(
                    f"target_codes has shape {tuple(target_codes.shape)}, expected {len(input_ids)} rows of codes."
                )
            self._check_codes(target_codes, "target_codes")
            num_predicted = target_codes.shape[1]
            known_BPD = self.embed_codes(target_codes[:, :-1]).to(embeds_BLD.dtype)
            embeds_BLD = torch.cat([embeds_BLD, known_BPD], dim=1)  # (B, L + P - 1, D)
            attention_mask = F.pad(attention_mask, (0, num_predicted - 1), value=1)
        hidden_BLD = self.model.language_model(
            inputs_embeds=embeds_BLD,
            attention_mask=attention_mask,
            position_ids=positions_of(attention_mask),
            use_cache=False,
        ).last_hidden_state
        logits_BPV = self.model.generation_head(hidden_BLD[:, -num_predicted:])
        loss = None if target_codes is None else image_token_loss(logits_BPV, target_codes, num_items_in_batch)
        return Janus4oOutput(loss=loss, logits=logits_BPV)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Without autocast, and without the TF32 convolutions that cuDNN takes for fp32 ones by default."""
    tf32 = torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)
    with torch.autocast(device.type, enabled=False), tf32:
        yield


def image_token_loss(
    logits_BPV: Tensor, target_codes: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Cross entropy of all P target codes (paper section 2): the mean, or the sum over `num_items_in_batch`.

    Unlike upstream's script, the first code is trained too: `logits[:, 0]` comes from the position of boi.
    """
    reduction = "mean" if num_items_in_batch is None else "sum"
    loss = F.cross_entropy(logits_BPV.flatten(0, 1).float(), target_codes.flatten().long(), reduction=reduction)
    return loss if num_items_in_batch is None else loss / num_items_in_batch


__all__ = ["Janus4oForImageGeneration"]

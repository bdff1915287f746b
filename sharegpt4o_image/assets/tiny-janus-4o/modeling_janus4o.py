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

from .configuration_janus4o import PROCESSOR_OPTIONS, Janus4oConfig
from .generation_janus4o import Janus4oGenerationMixin, positions_of
from .packing_janus4o import PackedRow

# B batch, L prompt tokens, S samples (B, or those of a packed row), P image tokens (576), N source images, D width,
# V codes, H W pixels

logger = logging.get_logger(__name__)

IGNORED_CODE = -100  # as a source code it leaves its position as a pad, as a target it is not trained

AUTO_MAP = {
    "AutoConfig": "configuration_janus4o.Janus4oConfig",
    "AutoModel": "modeling_janus4o.Janus4oForImageGeneration",
    "AutoModelForImageTextToText": "modeling_janus4o.Janus4oForImageGeneration",
}


@dataclass
class Janus4oOutput(ModelOutput):
    """What a forward pass over image codes gives.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*):
            Cross entropy over all P target codes.
        logits (`torch.FloatTensor` of shape `(S, P, V)`):
            `logits[:, p]` predicts target code `p`; `(S, 1, V)`, for code 0 alone, without `target_codes`.
        target_codes (`torch.LongTensor` of shape `(S, P)`, *optional*):
            The codes that were predicted: those given, or those of `target_pixel_values`; `-100` was not trained.
        token_losses (`torch.FloatTensor` of shape `(S, P)`, *optional*):
            Cross entropy of each target code, 0 where it was not trained; without gradient.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    target_codes: torch.LongTensor | None = None
    token_losses: torch.FloatTensor | None = None


class Janus4oForImageGeneration(Janus4oGenerationMixin, JanusForConditionalGeneration):
    """Janus with image generation, image editing and the image-token loss of the ShareGPT-4o-Image paper.

    Text generation (`forward` and `generate` with `pixel_values` / `labels`) is inherited unchanged.
    """

    config_class = Janus4oConfig
    # A half-precision encoder gives other codes where two are about as near: the image tokenizer is loaded in fp32.
    _keep_in_fp32_modules_strict = ["vqmodel"]  # noqa: RUF012 (transformers declares it so)
    # The loss is divided by `num_items_in_batch` here, so the Trainer must not scale it for accumulation.
    accepts_loss_kwargs = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As the parent's; the model's `processor` then comes from the same place and revision."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # output_loading_info
        model._loaded_from = {name: kwargs[name] for name in PROCESSOR_OPTIONS if name in kwargs}
        return loaded

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
        self,
        input_ids: Tensor,
        source_pixel_values: Tensor | None = None,
        source_codes: Tensor | None = None,
        dropped_source_codes: Tensor | None = None,
    ) -> Tensor:
        """Prompt tokens -> embeddings (B, L, D), the source blocks filled in.

        Args:
            input_ids: (B, L), laid out by `Janus4oProcessor`.
            source_pixel_values: (N, 3, H, W) in [-1, 1], all sources in order of the rows.
            source_codes: (N, P); positions with `-100` stay pad embeddings. Encoded from the pixels when absent.
            dropped_source_codes: bool (N, P), true where a code's position stays a pad embedding, too.
        """
        embeds_BLD = self.get_input_embeddings()(input_ids)
        is_placeholder = input_ids == self.config.image_token_id  # (B, L)
        is_code = self._source_code_positions(input_ids)  # (B, L)
        num_sources = 0 if source_pixel_values is None else len(source_pixel_values)
        self._check_sources(is_placeholder, is_code, num_sources, source_codes)
        if source_pixel_values is None:
            return self._with_vision_tower_in_graph(embeds_BLD, is_placeholder)
        if source_codes is None:
            source_codes = self.encode_image(source_pixel_values)
        if dropped_source_codes is not None:
            source_codes = source_codes.masked_fill(dropped_source_codes, IGNORED_CODE)
        embeds_BLD = self._fill_in_semantics(embeds_BLD, is_placeholder, source_pixel_values)
        kept = source_codes != IGNORED_CODE  # (N, P)
        code_NPD = self.embed_codes(source_codes.clamp(min=0))
        filled = is_code.masked_scatter(is_code, kept)  # (B, L)
        return embeds_BLD.masked_scatter(filled[..., None], code_NPD[kept].to(embeds_BLD))

    def _fill_in_semantics(self, embeds_BLD: Tensor, is_placeholder: Tensor, source_pixel_values: Tensor) -> Tensor:
        semantic_NPD = self.model.get_image_features(source_pixel_values.to(embeds_BLD)).pooler_output
        return embeds_BLD.masked_scatter(is_placeholder[..., None], semantic_NPD.to(embeds_BLD))

    def _with_vision_tower_in_graph(self, embeds_BLD: Tensor, is_placeholder: Tensor) -> Tensor:
        """In training, give the vision tower a zero gradient when a batch has no source.

        Then each process of a distributed step has gradients of the same parameters. A blank picture goes through the
        tower and into none of the positions.
        """
        is_trained = any(parameter.requires_grad for parameter in self.model.vision_model.parameters())
        is_trained |= any(parameter.requires_grad for parameter in self.model.aligner.parameters())
        if not (self.training and torch.is_grad_enabled() and is_trained):
            return embeds_BLD
        side = self.config.vision_config.image_size
        return self._fill_in_semantics(embeds_BLD, is_placeholder, embeds_BLD.new_zeros(1, 3, side, side))

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
        dropped_source_codes: Tensor | None = None,
        target_codes: Tensor | None = None,
        target_pixel_values: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Predict target codes (with a target or `source_pixel_values`), or text as the parent class does.

        Args:
            input_ids: (B, L), laid out by `Janus4oProcessor`, ending in boi; packed, the prompts back to back (1, L).
            attention_mask: (B, L), 0 on left padding.
            source_pixel_values: (N, 3, H, W) in [-1, 1].
            source_codes: (N, P), see [`embed_prompt`].
            dropped_source_codes: bool (N, P), see [`embed_prompt`].
            target_codes: (S, P), the codes to predict, or the first of them; `-100` is not trained.
            target_pixel_values: (S, 3, H, W) in [-1, 1], encoded when there are no `target_codes`.
            prompt_lengths: (S,), tokens of each prompt of a packed row: its samples do not see each other.
            labels: (S, P), `-100` where a target code is not trained; any other value is not looked at.
            num_items_in_batch: divide the summed loss by this instead of by S * P (gradient accumulation).

        The other arguments are the parent's, for text; `generate` reads them off this signature.

        Returns:
            [`Janus4oOutput`]; the parent's output for text.
        """
        if target_codes is None and target_pixel_values is not None:
            target_codes = self.encode_image(target_pixel_values)
        if any(given is not None for given in (target_codes, source_pixel_values, source_codes)):
            self._check_target_codes(target_codes, len(input_ids if prompt_lengths is None else prompt_lengths))
            embeds_BLD = self.embed_prompt(input_ids, source_pixel_values, source_codes, dropped_source_codes)
            hidden_SPD = self._hidden_states(embeds_BLD, attention_mask, prompt_lengths, target_codes)
            return self._predict_codes(hidden_SPD, target_codes, labels, num_items_in_batch)
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
        hidden_SPD: Tensor,
        target_codes: Tensor | None,
        labels: Tensor | None,
        num_items_in_batch: Tensor | int | None,
    ) -> Janus4oOutput:
        """Logits of the codes by the generation head, and their loss where there is a target."""
        logits_SPV = self.model.generation_head(hidden_SPD)  # the vocabulary head is not used
        if target_codes is None:
            return Janus4oOutput(logits=logits_SPV)
        if labels is not None:
            target_codes = target_codes.masked_fill(labels == IGNORED_CODE, IGNORED_CODE)
        losses_SP = image_token_losses(logits_SPV, target_codes)
        return Janus4oOutput(
            loss=image_token_loss(losses_SP, target_codes, num_items_in_batch),
            logits=logits_SPV,
            target_codes=target_codes,
            token_losses=losses_SP.detach(),
        )

    def _check_target_codes(self, target_codes: Tensor | None, num_samples: int) -> None:
        if target_codes is None:
            return
        num_codes = self.config.num_image_tokens
        is_matrix = target_codes.dim() == 2 and len(target_codes) == num_samples
        if not (is_matrix and 0 < target_codes.shape[1] <= num_codes):
            raise ValueError(
                f"target_codes has shape {tuple(target_codes.shape)}, expected {num_samples} rows of {num_codes} "
                "codes, or of the first of them."
            )
        self._check_codes(target_codes, "target_codes", is_ignored_allowed=True)

    def _hidden_states(
        self,
        embeds_BLD: Tensor,
        attention_mask: Tensor | None,
        prompt_lengths: Tensor | None,
        target_codes: Tensor | None,
    ) -> Tensor:
        if prompt_lengths is None:
            return self._hidden_of_batch(embeds_BLD, attention_mask, target_codes)
        return self._hidden_of_packed_row(embeds_BLD, prompt_lengths, target_codes)

    def _hidden_of_batch(
        self, embeds_BLD: Tensor, attention_mask: Tensor | None, target_codes: Tensor | None
    ) -> Tensor:
        """The hidden states that predict the codes: (B, P, D), or (B, 1, D) without a target."""
        if attention_mask is None:
            attention_mask = embeds_BLD.new_ones(embeds_BLD.shape[:2], dtype=torch.long)
        num_predicted = 1
        if target_codes is not None:
            num_predicted = target_codes.shape[1]
            known_BPD = self.embed_codes(target_codes[:, :-1].clamp(min=0)).to(embeds_BLD.dtype)
            embeds_BLD = torch.cat([embeds_BLD, known_BPD], dim=1)  # (B, L + P - 1, D)
            attention_mask = F.pad(attention_mask, (0, num_predicted - 1), value=1)
        hidden_BLD = self.model.language_model(
            inputs_embeds=embeds_BLD,
            attention_mask=attention_mask,
            position_ids=positions_of(attention_mask),
            use_cache=False,
        ).last_hidden_state
        return hidden_BLD[:, -num_predicted:]

    def _hidden_of_packed_row(self, embeds_1LD: Tensor, prompt_lengths: Tensor, target_codes: Tensor | None) -> Tensor:
        """As [`_hidden_of_batch`], for prompts back to back: (S, P, D).

        Without `attention_mask` and cache, every attention implementation keeps the samples apart: FlashAttention and
        `"janus4o_packed"` by their borders, the others by the positions, which begin again with each sample.
        """
        lengths = prompt_lengths.tolist()
        if target_codes is None or len(embeds_1LD) != 1 or sum(lengths) != embeds_1LD.shape[1]:
            raise ValueError(
                f"A packed row is (1, L) ids with L the sum of prompt_lengths, and target_codes; got {sum(lengths)} "
                f"tokens for embeddings of shape {tuple(embeds_1LD.shape)}."
            )
        row = PackedRow(lengths, target_codes.shape[1])
        known_SPD = self.embed_codes(target_codes[:, :-1].clamp(min=0)).to(embeds_1LD.dtype)
        hidden_1TD = self.model.language_model(
            inputs_embeds=row.interleave(embeds_1LD, known_SPD),
            attention_mask=None,
            position_ids=row.position_ids(embeds_1LD.device),
            use_cache=False,
            **row.attention_kwargs(embeds_1LD.device),
        ).last_hidden_state
        return row.predicting(hidden_1TD)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Without autocast, and without the TF32 convolutions that cuDNN takes for fp32 ones by default."""
    tf32 = torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)
    with torch.autocast(device.type, enabled=False), tf32:
        yield


def image_token_losses(logits_SPV: Tensor, target_codes: Tensor) -> Tensor:
    """Cross entropy (S, P) of each target code, in fp32; 0 where the code is `-100`.

    Unlike upstream's script, the first code is trained too: `logits[:, 0]` comes from the position of boi.
    """
    targets_SP = target_codes.long()
    losses = F.cross_entropy(
        logits_SPV.flatten(0, 1).float(), targets_SP.flatten(), reduction="none", ignore_index=IGNORED_CODE
    )
    return losses.view_as(targets_SP)


def image_token_loss(
    losses_SP: Tensor, target_codes: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """The loss of the paper (section 2): the mean over the trained codes, or the sum over `num_items_in_batch`.

    Codes of `-100` do not count; if there is nothing else, the loss is 0.
    """
    if num_items_in_batch is None:
        num_items_in_batch = (target_codes != IGNORED_CODE).sum()
    return losses_SP.sum() / torch.as_tensor(num_items_in_batch, device=losses_SP.device).clamp(min=1)


__all__ = ["Janus4oForImageGeneration"]

# SPDX-License-Identifier: Apache-2.0
"""The loop that everybody writes, which the fast decode steps are held against."""

import torch
from PIL import Image
from torch import nn
from transformers import DynamicCache

from sharegpt4o_image.janus4o.generation_janus4o import positions_of
from sharegpt4o_image.janus4o.sampling_janus4o import Guidance


def picture(seed):
    levels = torch.randint(256, (32, 32, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(levels.numpy())


@torch.no_grad()
def oracle_logits(model, processor, prompts, images=None, scale=5.0, freedom=5.0, forced=None):
    """Guided logits (B, P, V) of greedy or `forced` codes (B, P), and the codes, by the layers as they are, over a
    cache that grows: every picture is a row of each branch."""
    batch = processor.prepare_image_generation(prompts, images)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    embeds = {"cond": model.embed_prompt(ids, batch.get("source_pixel_values"))}
    if images is not None:
        no_codes = torch.full((len(batch["source_pixel_values"]), model.config.num_image_tokens), -100)
        embeds["part"] = model.embed_prompt(ids, batch["source_pixel_values"], no_codes)
    embeds["uncond"] = model.get_input_embeddings()(processor.unconditional_ids(ids, mask))
    names, num_branches = tuple(embeds), len(embeds)
    inputs, mask = torch.cat(list(embeds.values())), mask.repeat(num_branches, 1)
    cache, codes, guided = DynamicCache(), [], []
    for place in range(model.config.num_image_tokens):
        positions = positions_of(mask)[:, -inputs.shape[1] :]
        hidden = model.model.language_model(
            inputs_embeds=inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]
        logits = model.model.generation_head(hidden).float()
        guided.append(Guidance(scale, freedom).guide(dict(zip(names, logits.chunk(num_branches), strict=True))))
        codes.append(guided[-1].argmax(-1) if forced is None else forced[:, place])
        inputs = model.embed_codes(codes[-1].repeat(num_branches)[:, None])
        mask = nn.functional.pad(mask, (0, 1), value=1)
    return torch.stack(guided, 1), torch.stack(codes, 1)


def oracle(*args, **options):
    """The greedy codes alone."""
    return oracle_logits(*args, **options)[1]


def greedy(model, prompts, **options):
    options = {"guidance_scale": 5.0, "edit_freedom": 5.0} | options
    return model.generate_image(prompts, do_sample=False, output_type="codes", **options)

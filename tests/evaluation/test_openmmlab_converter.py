# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of mmdet 2 converted to transformers computes what mmdet computes, written out here in plain torch."""

import hashlib
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.mask2former_detector import Mask2FormerDetector
from sharegpt4o_image.evaluation.openmmlab_converter import OFFICIAL_FILE, load_openmmlab, sha256_of, slices_of

BLOCKS = {"depths": (2, 2, 18, 2), "swin_heads": (3, 6, 12, 24), "encoder_layers": 6, "decoder_layers": 9}
DIMS = {"embed": 96, "window": 7, "dim": 256, "heads": 8, "encoder_ffn": 1024, "decoder_ffn": 2048}
OFFICIAL = BLOCKS | DIMS | {"queries": 100, "classes": 80}

FEW_BLOCKS = {"depths": (2, 1, 3, 2), "swin_heads": (1, 2, 4, 8), "encoder_layers": 2, "decoder_layers": 4}
FEW_DIMS = {"embed": 16, "window": 3, "dim": 64, "heads": 4, "encoder_ffn": 48, "decoder_ffn": 80}
SMALL = FEW_BLOCKS | FEW_DIMS | {"queries": 7, "classes": 5}


# ------------------------------------------------------------------ mmdet's names and shapes


def linear(name, rows, columns):
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name, dims):
    return {f"{name}.weight": (dims,), f"{name}.bias": (dims,)}


def backbone_shapes(embed, depths, swin_heads, window, **_):
    shapes = {"patch_embed.projection.weight": (embed, 3, 4, 4), "patch_embed.projection.bias": (embed,)}
    shapes |= norm("patch_embed.norm", embed)
    for stage, (depth, heads) in enumerate(zip(depths, swin_heads, strict=True)):
        dims = embed * 2**stage
        for block in range(depth):
            name = f"stages.{stage}.blocks.{block}"
            shapes |= norm(f"{name}.norm1", dims)
            shapes[f"{name}.attn.w_msa.relative_position_bias_table"] = ((2 * window - 1) ** 2, heads)
            shapes[f"{name}.attn.w_msa.relative_position_index"] = (window**2, window**2)
            shapes |= linear(f"{name}.attn.w_msa.qkv", 3 * dims, dims) | linear(f"{name}.attn.w_msa.proj", dims, dims)
            shapes |= norm(f"{name}.norm2", dims)
            shapes |= linear(f"{name}.ffn.layers.0.0", 4 * dims, dims) | linear(f"{name}.ffn.layers.1", dims, 4 * dims)
        if stage < 3:
            shapes |= norm(f"stages.{stage}.downsample.norm", 4 * dims)
            shapes[f"stages.{stage}.downsample.reduction.weight"] = (2 * dims, 4 * dims)
        shapes |= norm(f"norm{stage}", dims)
    return {f"backbone.{name}": shape for name, shape in shapes.items()}


def pixel_decoder_shapes(embed, dim, heads, encoder_ffn, encoder_layers, **_):
    shapes = {}
    for level in range(3):
        shapes[f"input_convs.{level}.conv.weight"] = (dim, embed * 2 ** (3 - level), 1, 1)
        shapes[f"input_convs.{level}.conv.bias"] = (dim,)
        shapes |= norm(f"input_convs.{level}.gn", dim)
    for layer in range(encoder_layers):
        name = f"encoder.layers.{layer}"
        shapes |= linear(f"{name}.attentions.0.sampling_offsets", heads * 3 * 4 * 2, dim)
        shapes |= linear(f"{name}.attentions.0.attention_weights", heads * 3 * 4, dim)
        shapes |= linear(f"{name}.attentions.0.value_proj", dim, dim)
        shapes |= linear(f"{name}.attentions.0.output_proj", dim, dim)
        shapes |= linear(f"{name}.ffns.0.layers.0.0", encoder_ffn, dim)
        shapes |= linear(f"{name}.ffns.0.layers.1", dim, encoder_ffn)
        shapes |= norm(f"{name}.norms.0", dim) | norm(f"{name}.norms.1", dim)
    shapes["level_encoding.weight"] = (3, dim)
    shapes |= {"lateral_convs.0.conv.weight": (dim, embed, 1, 1)} | norm("lateral_convs.0.gn", dim)
    shapes |= {"output_convs.0.conv.weight": (dim, dim, 3, 3)} | norm("output_convs.0.gn", dim)
    shapes |= {"mask_feature.weight": (dim, dim, 1, 1), "mask_feature.bias": (dim,)}
    return {f"panoptic_head.pixel_decoder.{name}": shape for name, shape in shapes.items()}


def decoder_shapes(dim, decoder_ffn, decoder_layers, queries, classes, **_):
    shapes = {}
    for layer in range(decoder_layers):
        name = f"transformer_decoder.layers.{layer}"
        for attention in range(2):
            shapes[f"{name}.attentions.{attention}.attn.in_proj_weight"] = (3 * dim, dim)
            shapes[f"{name}.attentions.{attention}.attn.in_proj_bias"] = (3 * dim,)
            shapes |= linear(f"{name}.attentions.{attention}.attn.out_proj", dim, dim)
        shapes |= linear(f"{name}.ffns.0.layers.0.0", decoder_ffn, dim)
        shapes |= linear(f"{name}.ffns.0.layers.1", dim, decoder_ffn)
        for number in range(3):
            shapes |= norm(f"{name}.norms.{number}", dim)
    shapes |= norm("transformer_decoder.post_norm", dim)
    shapes |= {
        "query_embed.weight": (queries, dim),
        "query_feat.weight": (queries, dim),
        "level_embed.weight": (3, dim),
    }
    shapes |= linear("cls_embed", classes + 1, dim)
    for number in (0, 2, 4):
        shapes |= linear(f"mask_embed.{number}", dim, dim)
    return {f"panoptic_head.{name}": shape for name, shape in shapes.items()}


def all_shapes(sizes):
    return backbone_shapes(**sizes) | pixel_decoder_shapes(**sizes) | decoder_shapes(**sizes)


def position_index(window):
    """mmdet's `double_step_seq`."""
    steps = (torch.arange(window)[:, None] * (2 * window - 1) + torch.arange(window)[None]).reshape(1, -1)
    return (steps + steps.T).flip(1)


def random_weights(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in all_shapes(sizes).items():
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name.endswith("relative_position_index"):
            value = position_index(sizes["window"])
        elif len(shape) > 1 and "query" not in name and "level" not in name and "table" not in name:
            value = value / math.sqrt(math.prod(shape[1:]))
        elif len(shape) == 1:
            value = value * 0.3 + (name.split(".")[-1] == "weight")
        weights[name] = value
    return weights


def single(weights):
    return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}


def doubled(weights):
    return {name: value.double() if value.is_floating_point() else value for name, value in weights.items()}


@pytest.fixture(scope="module")
def weights():
    return single(random_weights(SMALL))


@pytest.fixture(scope="module")
def small_file(weights, tmp_path_factory):
    return save(weights, tmp_path_factory.mktemp("mmdet") / "small.pth")


def save(weights, path):
    """As mmcv saves it, with what else it writes, in the format of torch before 1.6 as mmdet's model zoo has it."""
    meta = {"mmcv_version": "1.5.0", "CLASSES": ("person", "bicycle"), "epoch": 1, "config": "x = 1", "seed": 0}
    checkpoint = {"meta": meta, "state_dict": weights}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    return path


# ------------------------------------------------------------------ mmdet's forward


class Mmdet:
    """What mmdet 2 and mmcv 1 compute from an input (N, 3, H, W)."""

    def __init__(self, weights, sizes):
        self.weights = weights
        self.sizes = sizes

    def __call__(self, pixels):
        return self.head(*self.pixel_decoder(self.swin(pixels)))

    def linear(self, name, x):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def layer_norm(self, name, x):
        weight = self.weights[f"{name}.weight"]
        return F.layer_norm(x, weight.shape, weight, self.weights[f"{name}.bias"], eps=1e-5)

    def conv_norm(self, name, x, padding=0):
        x = F.conv2d(x, self.weights[f"{name}.conv.weight"], self.weights.get(f"{name}.conv.bias"), padding=padding)
        return F.group_norm(x, 32, self.weights[f"{name}.gn.weight"], self.weights[f"{name}.gn.bias"], eps=1e-5)

    def ffn(self, name, x, activation):
        return self.linear(f"{name}.layers.1", activation(self.linear(f"{name}.layers.0.0", x)))

    # -------------------------------------------------------------- backbone

    def swin(self, pixels):
        projection = "backbone.patch_embed.projection"
        x = F.conv2d(pixels, self.weights[f"{projection}.weight"], self.weights[f"{projection}.bias"], stride=4)
        height, width = x.shape[2:]
        x = self.layer_norm("backbone.patch_embed.norm", x.flatten(2).transpose(1, 2))
        outs = []
        for stage, depth in enumerate(self.sizes["depths"]):
            for block in range(depth):
                x = self.swin_block(f"backbone.stages.{stage}.blocks.{block}", x, height, width, stage, block % 2 == 1)
            out = self.layer_norm(f"backbone.norm{stage}", x)
            outs.append(out.view(-1, height, width, out.shape[-1]).permute(0, 3, 1, 2))
            if stage < 3:
                x = x.view(-1, height, width, x.shape[-1]).permute(0, 3, 1, 2)
                x = F.pad(x, (0, width % 2, 0, height % 2))
                height, width = (height + 1) // 2, (width + 1) // 2
                x = F.unfold(x, kernel_size=2, stride=2).transpose(1, 2)
                x = self.layer_norm(f"backbone.stages.{stage}.downsample.norm", x)
                x = self.linear(f"backbone.stages.{stage}.downsample.reduction", x)
        return outs

    def swin_block(self, name, x, height, width, stage, is_shifted):
        windows = self.layer_norm(f"{name}.norm1", x).view(len(x), height, width, -1)
        x = x + self.shift_window_attention(f"{name}.attn.w_msa", windows, stage, is_shifted).reshape(x.shape)
        return x + self.ffn(f"{name}.ffn", self.layer_norm(f"{name}.norm2", x), F.gelu)

    def shift_window_attention(self, name, x, stage, is_shifted):
        window = self.sizes["window"]
        shift = window // 2 if is_shifted else 0
        batch, height, width, dims = x.shape
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        padded = x.shape[1:3]
        x = torch.roll(x, (-shift, -shift), (1, 2))
        regions = torch.zeros(1, *padded, 1)
        if shift:
            slices = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
            for number, (rows, columns) in enumerate((rows, columns) for rows in slices for columns in slices):
                regions[:, rows, columns] = number
        regions = self.partition(regions, window)[..., 0]  # (windows, window^2)
        mask = torch.where(regions[:, None] != regions[:, :, None], -100.0, 0.0)
        x = self.window_attention(name, self.partition(x, window), mask, self.sizes["swin_heads"][stage])
        x = x.view(batch, padded[0] // window, padded[1] // window, window, window, dims)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(batch, *padded, dims)
        return torch.roll(x, (shift, shift), (1, 2))[:, :height, :width]

    def partition(self, x, window):
        batch, height, width, dims = x.shape
        x = x.view(batch, height // window, window, width // window, window, dims)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window**2, dims)

    def window_attention(self, name, x, mask, heads):
        num_windows, places, dims = x.shape
        qkv = self.linear(f"{name}.qkv", x).reshape(num_windows, places, 3, heads, dims // heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        scores = query * (dims // heads) ** -0.5 @ key.transpose(-2, -1)
        index = self.weights[f"{name}.relative_position_index"]
        bias = self.weights[f"{name}.relative_position_bias_table"][index.view(-1)].view(places, places, heads)
        scores = scores + bias.permute(2, 0, 1)
        scores = scores.view(-1, len(mask), heads, places, places) + mask[None, :, None]
        x = scores.view(-1, heads, places, places).softmax(-1) @ value
        return self.linear(f"{name}.proj", x.transpose(1, 2).reshape(num_windows, places, dims))

    # -------------------------------------------------------------- pixel decoder

    def positions(self, height, width, like):
        """(dims, height, width): `SinePositionalEncoding(num_feats=dims / 2, normalize=True)` without padding."""
        num_features = self.sizes["dim"] // 2
        rows = torch.arange(1, height + 1, dtype=like.dtype)[:, None].expand(height, width)
        columns = torch.arange(1, width + 1, dtype=like.dtype)[None].expand(height, width)
        rows, columns = (x / (x[-1, -1] + 1e-6) * 2 * math.pi for x in (rows, columns))
        exponents = torch.arange(num_features, dtype=like.dtype) // 2 * 2 / num_features
        rows, columns = (x[..., None] / 10000**exponents for x in (rows, columns))
        pairs = [torch.stack((x[..., 0::2].sin(), x[..., 1::2].cos()), -1).flatten(2) for x in (rows, columns)]
        return torch.cat(pairs, dim=2).permute(2, 0, 1)

    def pixel_decoder(self, features):
        head = "panoptic_head.pixel_decoder"
        tokens, positions, references, shapes = [], [], [], []
        for level in range(3):
            feature = features[3 - level]
            height, width = feature.shape[2:]
            tokens.append(self.conv_norm(f"{head}.input_convs.{level}", feature).flatten(2).transpose(1, 2))
            encoding = self.weights[f"{head}.level_encoding.weight"][level]
            positions.append(self.positions(height, width, feature).flatten(1).T + encoding)
            rows = (torch.arange(height, dtype=feature.dtype)[:, None].expand(height, width) + 0.5) / height
            columns = (torch.arange(width, dtype=feature.dtype)[None].expand(height, width) + 0.5) / width
            references.append(torch.stack((columns, rows), -1).flatten(0, 1))
            shapes.append((height, width))
        x, position, reference = torch.cat(tokens, 1), torch.cat(positions), torch.cat(references)
        for layer in range(self.sizes["encoder_layers"]):
            name = f"{head}.encoder.layers.{layer}"
            x = x + self.deformable_attention(f"{name}.attentions.0", x, position, reference, shapes)
            x = self.layer_norm(f"{name}.norms.0", x)
            x = self.layer_norm(f"{name}.norms.1", x + self.ffn(f"{name}.ffns.0", x, F.relu))
        levels = [
            part.transpose(1, 2).reshape(len(x), -1, *shape)
            for part, shape in zip(x.split([h * w for h, w in shapes], dim=1), shapes, strict=True)
        ]
        lateral = self.conv_norm(f"{head}.lateral_convs.0", features[0])
        y = lateral + F.interpolate(levels[-1], size=lateral.shape[2:], mode="bilinear", align_corners=False)
        y = self.conv_norm(f"{head}.output_convs.0", y, padding=1).relu()
        mask_feature = F.conv2d(
            y, self.weights[f"{head}.mask_feature.weight"], self.weights[f"{head}.mask_feature.bias"]
        )
        return mask_feature, levels

    def deformable_attention(self, name, x, position, reference, shapes):
        batch, num_tokens, dims = x.shape
        heads = self.sizes["heads"]
        value = self.linear(f"{name}.value_proj", x).view(batch, num_tokens, heads, -1)
        query = x + position
        offsets = self.linear(f"{name}.sampling_offsets", query).view(batch, num_tokens, heads, 3, 4, 2)
        attention = self.linear(f"{name}.attention_weights", query).view(batch, num_tokens, heads, 12).softmax(-1)
        attention = attention.view(batch, num_tokens, heads, 3, 4)
        out = torch.zeros(batch, num_tokens, heads, dims // heads, dtype=x.dtype)
        start = 0
        for level, (height, width) in enumerate(shapes):
            plane = value[:, start : start + height * width].view(batch, height, width, heads, -1)
            start += height * width
            size = torch.tensor([width, height])
            places = reference[None, :, None, None] + offsets[:, :, :, level] / size  # (N, tokens, heads, 4, 2)
            for number in range(batch):
                for head in range(heads):
                    channels = plane[number, :, :, head].permute(2, 0, 1)
                    sampled = sample(channels, places[number, :, head])  # (dims, tokens, 4)
                    out[number, :, head] += torch.einsum("ctp,tp->tc", sampled, attention[number, :, head, level])
        return self.linear(f"{name}.output_proj", out.flatten(2))

    # -------------------------------------------------------------- decoder

    def head(self, mask_feature, levels):
        weights, heads = self.weights, self.sizes["heads"]
        sources = [
            level.flatten(2).transpose(1, 2) + weights["panoptic_head.level_embed.weight"][number]
            for number, level in enumerate(levels)
        ]
        positions = [self.positions(*level.shape[2:], level).flatten(1).T for level in levels]
        embed = weights["panoptic_head.query_embed.weight"]
        queries = weights["panoptic_head.query_feat.weight"].expand(len(mask_feature), -1, -1)
        classes, masks, hidden = self.predict(queries, mask_feature, levels[0].shape[2:])
        for layer in range(self.sizes["decoder_layers"]):
            name, level = f"panoptic_head.transformer_decoder.layers.{layer}", layer % 3
            hidden[hidden.sum(-1) == hidden.shape[-1]] = False
            keys = sources[level] + positions[level]
            attention = f"{name}.attentions.0.attn"
            queries = queries + self.attend(attention, queries + embed, keys, sources[level], heads, hidden)
            queries = self.layer_norm(f"{name}.norms.0", queries)
            attention = f"{name}.attentions.1.attn"
            queries = queries + self.attend(attention, queries + embed, queries + embed, queries, heads)
            queries = self.layer_norm(f"{name}.norms.1", queries)
            queries = self.layer_norm(f"{name}.norms.2", queries + self.ffn(f"{name}.ffns.0", queries, F.relu))
            classes, masks, hidden = self.predict(queries, mask_feature, levels[(layer + 1) % 3].shape[2:])
        return classes, masks

    def predict(self, queries, mask_feature, size):
        queries = self.layer_norm("panoptic_head.transformer_decoder.post_norm", queries)
        classes = self.linear("panoptic_head.cls_embed", queries)
        embed = self.linear("panoptic_head.mask_embed.0", queries).relu()
        embed = self.linear("panoptic_head.mask_embed.2", embed).relu()
        masks = torch.einsum("bqc,bchw->bqhw", self.linear("panoptic_head.mask_embed.4", embed), mask_feature)
        small = F.interpolate(masks, size, mode="bilinear", align_corners=False)
        return classes, masks, small.flatten(2).sigmoid() < 0.5

    def attend(self, name, query, key, value, heads, hidden=None):
        weights = self.weights[f"{name}.in_proj_weight"].chunk(3)
        biases = self.weights[f"{name}.in_proj_bias"].chunk(3)
        query, key, value = (
            F.linear(x, weight, bias).unflatten(-1, (heads, -1)).transpose(1, 2)  # (N, heads, tokens, dims)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        if hidden is not None:
            scores = scores.masked_fill(hidden[:, None], -math.inf)
        return self.linear(f"{name}.out_proj", (scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


def sample(plane, places):
    """(C, H, W) at `places` (..., (x, y)) in 0..1: bilinear, zero outside, pixel (0, 0) reaching from 0 to 1 / W."""
    height, width = plane.shape[1:]
    x, y = places[..., 0] * width - 0.5, places[..., 1] * height - 0.5
    out = 0
    for left in (x.floor(), x.floor() + 1):
        for top in (y.floor(), y.floor() + 1):
            share = (1 - (x - left).abs()) * (1 - (y - top).abs())
            is_inside = (left >= 0) & (left < width) & (top >= 0) & (top < height)
            rows, columns = top.clamp(0, height - 1).long(), left.clamp(0, width - 1).long()
            out = out + plane[:, rows, columns] * (share * is_inside)
    return out


# ------------------------------------------------------------------ the conversion


@pytest.mark.parametrize(("height", "width"), [(96, 160), (128, 64), (36, 44)])
def test_logits_equal_mmdets(small_file, weights, height, width):
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    pixels[:, :, -9:] = pixels[:, :, :, -21:] = 0.5  # padding, as the detector's input has it
    classes, masks = Mmdet(doubled(weights), SMALL)(pixels.double())
    model = load_openmmlab(small_file)
    with torch.no_grad():
        in_float32 = model(pixel_values=pixels)
        in_float64 = model.double()(pixel_values=pixels.double())
    assert classes.shape == (2, 7, 6)
    assert masks.shape == (2, 7, height // 4, width // 4)
    assert min(classes.std(), masks.std()) > 0.1
    for output, atol in ((in_float64, 1e-9), (in_float32, 1e-4)):
        torch.testing.assert_close(output.class_queries_logits.double(), classes, rtol=0, atol=atol)
        torch.testing.assert_close(output.masks_queries_logits.double(), masks, rtol=0, atol=atol)


def test_every_weight_moves_the_logits(weights):
    """Else the comparison above could not tell that a weight went to a wrong place."""
    leaves = doubled(weights)
    for value in leaves.values():
        value.requires_grad_(value.is_floating_point())
    classes, masks = Mmdet(leaves, SMALL)(torch.randn(1, 3, 64, 96, dtype=torch.float64))
    (classes.square().sum() + masks.square().sum()).backward()
    still = {name for name, value in leaves.items() if value.is_floating_point() and value.grad.abs().max() < 1e-9}
    assert not still


def test_the_official_architecture_is_converted_one_to_one(tmp_path):
    """Every tensor of the file that GenEval downloads has a place of its own, and no place stays empty."""
    shapes = all_shapes(OFFICIAL)
    model = load_openmmlab(save({name: torch.full(shape, 0.5) for name, shape in shapes.items()}, tmp_path / "x.pth"))
    used = {name: value for name, value in model.named_parameters() if "encoder.swin.layernorm" not in name}
    num_values = sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith("_index"))
    assert sum(value.numel() for value in used.values()) == num_values == 68_739_547
    assert all(torch.all(value == 0.5) for value in used.values())
    config, swin = model.config, model.config.backbone_config
    assert (config.num_labels, config.num_queries, config.num_attention_heads) == (80, 100, 8)
    assert (config.hidden_dim, config.dim_feedforward, config.encoder_feedforward_dim) == (256, 2048, 1024)
    assert (config.encoder_layers, config.decoder_layers) == (6, 10)
    assert (swin.embed_dim, swin.depths, swin.num_heads) == (96, [2, 2, 18, 2], [3, 6, 12, 24])
    assert (swin.window_size, swin.mlp_ratio, swin.patch_size) == (7, 4, 4)
    Mask2FormerDetector(model)


@pytest.mark.slow
def test_logits_equal_mmdets_at_the_official_size(tmp_path):
    weights = single(random_weights(OFFICIAL))
    pixels = torch.randn(1, 3, 128, 192, generator=torch.Generator().manual_seed(1))
    model = load_openmmlab(save(weights, tmp_path / "official.pth")).double()
    with torch.no_grad():
        classes, masks = Mmdet(doubled(weights), OFFICIAL)(pixels.double())
        output = model(pixel_values=pixels.double())
    assert classes.shape == (1, 100, 81)
    torch.testing.assert_close(output.class_queries_logits, classes, rtol=0, atol=1e-9)
    torch.testing.assert_close(output.masks_queries_logits, masks, rtol=0, atol=1e-9)


def test_merging_by_unfold_becomes_merging_by_slices():
    x = torch.randn(1, 5, 4, 6)  # (N, C, H, W)
    unfolded = F.unfold(x, kernel_size=2, stride=2).transpose(1, 2)
    parts = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    sliced = torch.cat(parts, dim=1).flatten(2).transpose(1, 2)
    assert torch.equal(slices_of(unfolded), sliced)
    assert not torch.equal(unfolded, sliced)


def test_a_converted_detector_is_saved_and_loaded_again(tmp_path):
    model = load_openmmlab(save(random_weights(SMALL | {"classes": 80}), tmp_path / "coco.pth"))
    assert model.config._name_or_path == "coco.pth"
    model.save_pretrained(tmp_path / "folder")
    detector = Mask2FormerDetector.from_pretrained(str(tmp_path / "folder"))
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        one, other = model(pixel_values=pixels), detector.model(pixel_values=pixels)
    assert torch.equal(one.class_queries_logits, other.class_queries_logits)
    assert torch.equal(one.masks_queries_logits, other.masks_queries_logits)
    found = Mask2FormerDetector(detector.model, 96, 64).detect(Image.new("RGB", (40, 30), "red"))
    assert sum(map(len, found.values())) == 100


# ------------------------------------------------------------------ files that are none


def test_the_digest_in_the_name_is_checked(small_file, tmp_path):
    data = small_file.read_bytes()
    path = tmp_path / f"small_20220504-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    path.write_bytes(data)
    load_openmmlab(path)
    assert sha256_of(path) == hashlib.sha256(data).hexdigest()
    path.write_bytes(data[:-1000] + bytes(1000))
    with pytest.raises(UserError, match=r"is damaged: its sha256 begins with [0-9a-f]{8}, and its name says"):
        load_openmmlab(path)
    (tmp_path / OFFICIAL_FILE).write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="its name says 743b7d99; download it again"):
        load_openmmlab(tmp_path / OFFICIAL_FILE)


def test_weights_that_do_not_fit_are_named(weights, tmp_path):
    path = tmp_path / "other.pth"
    fault = "is no Mask2Former with a Swin backbone of mmdet 2"
    with pytest.raises(UserError, match=rf"{fault} \(it has bbox_head\.weight\)"):
        load_openmmlab(save(weights | {"bbox_head.weight": torch.zeros(3)}, path))
    with pytest.raises(UserError, match=rf"{fault} \(it has too much: class_predictor\.scale\)"):
        load_openmmlab(save(weights | {"panoptic_head.cls_embed.scale": torch.zeros(3)}, path))
    lacking = {name: value for name, value in weights.items() if name != "panoptic_head.mask_embed.2.bias"}
    with pytest.raises(UserError, match=rf"{fault} \(it has nothing for .*mask_embedder\.1\.0\.bias\)"):
        load_openmmlab(save(lacking, path))
    resnet = {name: value for name, value in weights.items() if not name.startswith("backbone.patch_embed")}
    with pytest.raises(UserError, match=rf"{fault} \(it has no backbone\.patch_embed\.projection\.weight\)"):
        load_openmmlab(save(resnet, path))
    cut = weights | {"panoptic_head.pixel_decoder.lateral_convs.0.gn.bias": torch.zeros(3)}
    with pytest.raises(UserError, match=rf"{fault} \(.*adapter_1\.1\.bias is \(3,\) instead of \(64,\)\)"):
        load_openmmlab(save(cut, path))
    torch.save([1, 2], path)
    with pytest.raises(UserError, match=rf"{fault} \(it has no state_dict\)"):
        load_openmmlab(path)


class Trap:
    """Were the file read with all of pickle, this would leave a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_file_is_not_run(weights, tmp_path, is_zip):
    path, mark = tmp_path / "trap.pth", tmp_path / "mark"
    checkpoint = {"meta": {"hook": Trap(mark)}, "state_dict": weights}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(UserError, match=r"cannot be read as plain weights \(.*io\.open.*keep its weights alone"):
        load_openmmlab(path)
    assert not mark.exists()


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", b"PK\3\4 half a zip", pickle.dumps(3, protocol=2)])
def test_junk_is_refused_in_a_sentence(tmp_path, data):
    path = tmp_path / "junk.pth"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"junk\.pth (cannot be read as plain weights|is no Mask2Former)") as refusal:
        load_openmmlab(path)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "nowhere.pth", tmp_path / "nowhere-01234567.pth", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            load_openmmlab(path)

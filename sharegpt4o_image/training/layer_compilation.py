# SPDX-License-Identifier: Apache-2.0
"""torch.compile for training: of each layer, what does not depend on how the samples of a row are laid out.

Compiled as a whole, the model would be compiled anew for nearly every packed row, until PyTorch gives up after eight
times and goes on uncompiled. Normalisation and feed-forward take a row of any length, compiled once.
"""

from transformers import TrainingArguments

from sharegpt4o_image.janus4o import Janus4oForImageGeneration


def compile_layers(model: Janus4oForImageGeneration, args: TrainingArguments) -> None:
    """Compile normalisation and feed-forward of the language model, in place: names of weights stay."""
    language_model = model.model.language_model
    modules = [language_model.norm]
    for layer in language_model.layers:
        modules += [layer.input_layernorm, layer.post_attention_layernorm, layer.mlp]
    for module in modules:
        module.compile(backend=args.torch_compile_backend, mode=args.torch_compile_mode, dynamic=True)

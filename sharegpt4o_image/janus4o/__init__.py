# SPDX-License-Identifier: Apache-2.0
"""Janus-4o for transformers. Importing this package registers its classes with the Auto classes.

The modules beside this file are copied verbatim to the Hub by `save_pretrained`; this file is not.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from sharegpt4o_image.janus4o.configuration_janus4o import Janus4oConfig
from sharegpt4o_image.janus4o.modeling_janus4o import Janus4oForImageGeneration
from sharegpt4o_image.janus4o.processing_janus4o import Janus4oProcessor

__all__ = ["Janus4oConfig", "Janus4oForImageGeneration", "Janus4oProcessor"]

AutoConfig.register("janus4o", Janus4oConfig)
AutoModel.register(Janus4oConfig, Janus4oForImageGeneration)
AutoModelForImageTextToText.register(Janus4oConfig, Janus4oForImageGeneration)
AutoProcessor.register(Janus4oConfig, Janus4oProcessor)

Janus4oConfig.register_for_auto_class()
Janus4oForImageGeneration.register_for_auto_class("AutoModel")
Janus4oProcessor.register_for_auto_class("AutoProcessor")

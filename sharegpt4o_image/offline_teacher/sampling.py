# SPDX-License-Identifier: Apache-2.0
"""Random scene requests, and which of them training never sees.

Used to train the tiny checkpoints on fresh scenes and to write their held-out benchmark: every word of the benchmark
was seen in training, the full combination never. Proportions and held-out sets are our own choice.
"""

import hashlib
import random

from sharegpt4o_image.offline_teacher.editing import EditRequest
from sharegpt4o_image.offline_teacher.scene import (
    BACKGROUND_COLORS,
    CELLS,
    LIGHTINGS,
    OBJECT_COLORS,
    PLACES,
    RELATIONS,
    SHAPES,
    STYLES,
    ObjectRequest,
    Scene,
    SceneRequest,
)

HELD_OUT_SHARE = 8  # one combination in eight is held out

# Never in any training picture, so that the benchmark can ask for what was never seen together.
UNSEEN_PAIRS = frozenset({("green", "heart"), ("orange", "cross"), ("cyan", "star"), ("pink", "square")})

_KINDS = ("single", "pair", "several")
_KIND_WEIGHTS = (0.42, 0.46, 0.12)
_PLAIN_SHARE = 0.9  # scenes in flat style and daylight
_PLACE_SHARE = 0.35  # single objects whose place is named
_SIZE_SHARE = 0.4  # single objects whose size is named


def is_held_out(key: object) -> bool:
    """Whether the combination `key` belongs to the benchmark instead of training."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return digest[0] % HELD_OUT_SHARE == 0


def combination(request: SceneRequest) -> tuple[object, ...]:
    """What makes two requests the same combination: objects, colours, relation and background, in order."""
    return (tuple((o.shape, o.color, o.count) for o in request.objects), request.relation, request.background)


def has_unseen_pair(request: SceneRequest) -> bool:
    """Whether the request names a colour and shape that training never shows together."""
    return any((item.color, item.shape) in UNSEEN_PAIRS for item in request.objects)


def shows_unseen_pair(scene: Scene) -> bool:
    """Whether the scene shows a colour and shape together that training never does."""
    return any((item.color, item.shape) in UNSEEN_PAIRS for item in scene.objects)


def edit_combination(scene: Scene, edit: EditRequest) -> tuple[object, ...]:
    """What makes two edits the same combination: the source's objects and background, and the edit."""
    objects = tuple(sorted((item.shape, item.color) for item in scene.objects))
    return (objects, scene.background, edit)


def _random_object(rng: random.Random) -> ObjectRequest:
    return ObjectRequest(rng.choice(SHAPES), rng.choice(tuple(OBJECT_COLORS)))


def single_request(rng: random.Random) -> SceneRequest:
    """One object; size and place are named in some."""
    item = _random_object(rng)
    size = rng.choice(tuple(CELLS)) if rng.random() < _SIZE_SHARE else None
    place = rng.choice(tuple(PLACES)) if rng.random() < _PLACE_SHARE else None
    return SceneRequest(
        (ObjectRequest(item.shape, item.color, size, 1, place),), None, rng.choice(tuple(BACKGROUND_COLORS))
    )


def pair_request(rng: random.Random) -> SceneRequest:
    """Two objects that differ, with a relation."""
    first, second = _random_object(rng), _random_object(rng)
    while first == second:
        second = _random_object(rng)
    relation = rng.choice(tuple(RELATIONS))
    return SceneRequest((first, second), relation, rng.choice(tuple(BACKGROUND_COLORS)))


def several_request(rng: random.Random) -> SceneRequest:
    """Two to four equal objects."""
    item = _random_object(rng)
    objects = (ObjectRequest(item.shape, item.color, None, rng.randint(2, 4)),)
    return SceneRequest(objects, None, rng.choice(tuple(BACKGROUND_COLORS)))


def _with_look(request: SceneRequest, rng: random.Random) -> SceneRequest:
    if rng.random() < _PLAIN_SHARE:
        return request
    look = rng.choice([(style, None) for style in STYLES[1:]] + [(None, light) for light in LIGHTINGS[1:]])
    return SceneRequest(request.objects, request.relation, request.background, *look)


def training_request(rng: random.Random) -> SceneRequest:
    """A request from the training distribution: never a held-out combination, never an unseen pair."""
    draw = {"single": single_request, "pair": pair_request, "several": several_request}
    while True:
        kind = rng.choices(_KINDS, _KIND_WEIGHTS)[0]
        request = draw[kind](rng)
        if not is_held_out(combination(request)) and not has_unseen_pair(request):
            return _with_look(request, rng)

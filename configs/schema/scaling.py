"""Derives shape, tokens, batch size and learning rates from one dial: `model.depth` or `model.size`.

| value                             | rule                                   | source                                  |
|-----------------------------------|----------------------------------------|-----------------------------------------|
| `model.hidden_size`               | 64 x layers                            | nanochat (Karpathy 2025)                |
| `model.num_heads`, `.head_dim`    | heads of 64; of 128 from width 2,048   | GPT-3, arXiv:2005.14165, table 2.1      |
| all of them, for a published size | that model's own                       | GPT-2 (2019); GPT-3, table 2.1          |
| `train.tokens`                    | `train.tokens_per_parameter` (20) x N  | Chinchilla, arXiv:2203.15556            |
| `train.optimizer.lr`              | 0.3118 C^-0.125                        | DeepSeek LLM, arXiv:2401.02954, eq. 1   |
| `train.global_batch_size`         | 0.2920 C^0.3271 tokens, as a power of  | the same                                |
|                                   | two of sequences                       |                                         |
| `train.optimizer.weight_decay`    | 1 / (lr x steps / 2): weights average  | a constant share: Wang and Aitchison,   |
|                                   | their updates over half of the run; at | arXiv:2405.13698; half of it, and the   |
|                                   | most 0.2                               | most: our choice                        |
| `train.optimizer.muon             | the same rule with Muon's own rate     | the same                                |
| .weight_decay`, with Muon         |                                        |                                         |
| `train.schedule.warmup_steps`     | a twentieth of the steps, at most      | 2,000: DeepSeek LLM; a twentieth: our   |
|                                   | 2,000                                  | choice                                  |

The loss depends little on the proportions of the shape (Kaplan et al., arXiv:2001.08361, figure 5). N counts the
weights in matrix products of every token: the blocks' matrices and one vocabulary matrix. This is the total of a model
with tied embeddings, without positions and norms. C = 6 N D is the training compute in FLOPs for D tokens. The laws for
learning rate and batch size were fitted from 1e17 to 2e19 FLOPs. docs/scaling.md lists their values far below.

Values that the recipe sets win, and the others follow from them: other tokens give another C, hence other rates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

ASPECT = 64
LEAST_ASPECT, MOST_ASPECT = 21, 192  # three times more or less; Kaplan et al. found 10 to 300 within a few percent
TOLERANCE = 0.1  # largest relative difference between the asked size and the nearest shape
TOKENS_PER_PARAMETER = 20.0
DECAY_SHARE = 0.5  # share of the run over which AdamW's weights average their updates
MOST_DECAY = 0.2  # the rule's value at 1e17 FLOPs, the smallest fitted run; for a few hundred steps it would give 1
WARMUP_SHARE, MOST_WARMUP = 0.05, 2000
CHARACTER_ROWS = 256  # assumed rows of a `char` vocabulary, whose size is known only after data preparation
# A null for one of these keys, in the file or in an override, means: derive it from the dial.
SHAPE = ("num_layers", "hidden_size", "num_heads", "head_dim")
TRAINING = (
    ("train", "tokens"),
    ("train", "global_batch_size"),
    ("train", "optimizer", "lr"),
    ("train", "optimizer", "weight_decay"),
    ("train", "schedule", "warmup_steps"),
)
# Only with Muon. The dial does not change Muon's rate: orthogonal updates need the same 0.02 at any width.
MUON_DECAY = ("train", "optimizer", "muon", "weight_decay")
MUON_RATE = 0.02  # the recipe's default
GOVERNED: tuple[tuple[str, ...], ...] = (*(("model", key) for key in SHAPE), *TRAINING, MUON_DECAY)
# layers, width, heads. GPT-2 (Radford et al. 2019, table 2; heads from its release) and GPT-3 (table 2.1; its 24 heads
# of 128 at 1.3B are wider than the model: 16, as in other reproductions; 13B is 5,120 wide, not 5,140).
PUBLISHED: dict[str, tuple[int, int, int]] = {
    **dict.fromkeys(("124M", "125M"), (12, 768, 12)),
    **dict.fromkeys(("350M", "355M"), (24, 1024, 16)),
    "760M": (24, 1536, 16),
    "774M": (36, 1280, 20),
    "1.3B": (24, 2048, 16),
    **dict.fromkeys(("1.5B", "1558M"), (48, 1600, 25)),
    "2.7B": (32, 2560, 32),
    "6.7B": (32, 4096, 32),
    "13B": (40, 5120, 40),
    "175B": (96, 12288, 96),
}
_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


class Shape(NamedTuple):
    """Number of layers, width of the residual stream, number of heads, width of a head."""

    layers: int
    width: int
    heads: int
    head: int


def head_width(width: int) -> int:
    """Returns the width of a head for a model of this width."""
    return 128 if width >= 2048 and width % 128 == 0 else 64


def learning_rate(compute: float) -> float:
    """Computes AdamW's peak learning rate for a run of `compute` FLOPs, to two digits."""
    return float(f"{0.3118 * math.pow(compute, -0.125):.2g}")


def batch_tokens(compute: float) -> float:
    """Computes the tokens per step for a run of `compute` FLOPs."""
    return 0.2920 * math.pow(compute, 0.3271)


def batch_sequences(compute: float, context: int) -> int:
    """Rounds the batch to a power of two of sequences, so that it divides over ranks and micro-batches."""
    return 1 << max(0, round(math.log2(batch_tokens(compute) / context)))


def compute_of_steps(parameters: int, steps: int) -> float:
    """Computes the FLOPs of a run of `steps` steps: C = 6 N steps batch_tokens(C), solved for C."""
    return math.pow(6 * parameters * steps * 0.2920, 1 / (1 - 0.3271))


def weight_decay(rate: float, steps: int) -> float:
    """Solves 1 / (rate x decay) = `DECAY_SHARE` x steps for the decay, to two digits; at most `MOST_DECAY`."""
    return min(MOST_DECAY, float(f"{1 / (rate * steps * DECAY_SHARE):.2g}"))


def warmup(steps: int) -> int:
    """Computes the number of warm-up steps."""
    return min(MOST_WARMUP, round(WARMUP_SHARE * steps))


def parameters(shape: Shape, model: Mapping[str, Any], rows: int) -> int:
    """Computes N of the table above from a shape, the raw `model` section and the vocabulary's `rows`."""
    kv = model.get("num_kv_heads") or shape.heads
    gated = model.get("activation", "gelu" if model.get("family") == "gpt2" else "swiglu") == "swiglu"
    inside = model.get("intermediate_size") or (-(-8 * shape.width // 3 // 64) * 64 if gated else 4 * shape.width)
    attention = shape.width * shape.head * (2 * shape.heads + 2 * kv)
    return int(shape.layers * (attention + shape.width * inside * (3 if gated else 2)) + rows * shape.width)


def read_size(text: Any) -> float:
    """Parses `124M`, `1.3B`, `500k` or a number into a number of parameters.

    Raises:
        ValueError: for anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMBT]?)", str(text).replace("_", "").upper())
    if isinstance(text, bool) or not match or not float(match[1]):
        raise ValueError(f"model.size {text!r} is not a number of parameters; write it as 124M, 1.3B or 500k")
    return float(match[1]) * _UNITS[match[2]]


# --------------------------------------------------------------------------------------------------------------- shape
def _shape(model: Mapping[str, Any], rows: int | None) -> Shape:
    layers = model.get("num_layers")
    if (depth := model.get("depth")) is not None:
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise ValueError(f"model.depth is a number of layers, at least 1 (given: {depth!r})")
        if layers is not None and layers != depth:
            raise ValueError(f"model.depth {depth} and model.num_layers {layers} disagree; drop one of them")
        return _with_heads(model, depth, model.get("hidden_size") or ASPECT * depth)
    name = str(model["size"]).upper()
    wanted = read_size(model["size"])
    if name in PUBLISHED:
        published = PUBLISHED[name]
        given = [model.get(key) for key in SHAPE[:3]]
        if all(value is None or value == known for value, known in zip(given, published, strict=True)):
            return _with_heads({"num_heads": published[2], **_given(model)}, *published[:2])
    if rows is None:
        raise ValueError(
            "model.size includes the vocabulary's rows, and the size of a tokenizer from a file is not known here: set "
            "model.vocab_size (such as 50304), or use model.depth"
        )
    return _nearest(model, wanted, rows)


def _given(model: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if value is not None}


def _with_heads(model: Mapping[str, Any], layers: int, width: int) -> Shape:
    heads, head = model.get("num_heads"), model.get("head_dim")
    if heads is None:
        head = head or head_width(width)
        heads = max(1, width // head)
    if head is None:
        if width % heads:
            raise ValueError(f"model.num_heads {heads} does not divide the width {width}; drop it, or set head_dim")
        head = width // heads
    return Shape(layers, width, heads, head)


def _nearest(model: Mapping[str, Any], wanted: float, rows: int) -> Shape:
    def shapes() -> Iterator[tuple[float, float, Shape]]:
        layers, width = model.get("num_layers"), model.get("hidden_size")
        for depth in [layers] if layers else range(1, 201):
            # Solve 12 layers width^2 + rows width = wanted, and try multiples of 64 near the solution: the exact count
            # differs, for example by grouped-query attention or another MLP width.
            exact = (math.sqrt(rows**2 + 48 * depth * wanted) - rows) / (24 * depth)
            near = max(1, round(exact / ASPECT))
            for multiple in [0] if width else range(max(1, near - 2), near + 3):
                try:
                    shape = _with_heads(model, depth, width or ASPECT * multiple)
                except ValueError:
                    continue
                if not width and not LEAST_ASPECT <= shape.width / depth <= MOST_ASPECT:
                    continue
                off = abs(math.log(parameters(shape, model, rows) / wanted))
                yield off, abs(math.log(shape.width / ASPECT / depth)), shape

    candidates = list(shapes())
    if not candidates:
        raise ValueError(
            f"model.size {model['size']}: no shape of usual proportions has the recipe's layers and heads; drop these "
            "settings, or set model.hidden_size too"
        )
    allowed = math.log1p(TOLERANCE)
    off, _, best = min(candidates)
    if off > allowed:
        raise ValueError(
            f"model.size {model['size']}: the nearest shape, {best.layers} layers of width {best.width}, has "
            f"{parameters(best, model, rows):,} parameters, more than {TOLERANCE:.0%} off; choose another size, or "
            "drop the recipe's own settings of the shape, which win over the size"
        )
    # Of the shapes within half of the tolerance (or of the nearest one), take the one with the most usual proportions:
    # item[1] is the log distance of width / layers from ASPECT.
    near = [item for item in candidates if item[0] <= max(off, allowed / 2)]
    return min(near, key=lambda item: (item[1], item[0]))[2]


# ---------------------------------------------------------------------------------------------------------------- dial
def has_dial(values: Any) -> bool:
    """Tells whether a raw recipe sets the dial."""
    model = values.get("model") if isinstance(values, dict) else None
    return isinstance(model, dict) and (model.get("depth") is not None or model.get("size") is not None)


def vocabulary_rows(values: Mapping[str, Any]) -> int | None:
    """Returns the embedding rows that a raw recipe implies; None for a tokenizer from a file."""
    model, tokenizer = values["model"], (values.get("data") or {}).get("tokenizer") or {}
    if model.get("vocab_size"):
        return int(model["vocab_size"])
    kind = tokenizer.get("kind", "bpe")
    if kind == "file":
        return None
    if kind == "kmer":
        rows = len(tokenizer.get("alphabet", "ACGT")) ** tokenizer.get("kmer", 3)
    else:
        rows = tokenizer.get("vocab_size", 32768) if kind == "bpe" else CHARACTER_ROWS
    multiple = model.get("vocab_multiple", 64)
    return int(-(-rows // multiple) * multiple)


def derive(values: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Maps path to value for every setting that follows from the dial and is not set in the raw recipe; {} without one.

    Raises:
        ValueError: when the recipe's own settings and the dial contradict each other.
    """
    if not has_dial(values):
        return {}
    model: dict[str, Any] = _given(values["model"])
    if "size" in model and "depth" in model:
        raise ValueError("model.size and model.depth set the same dial; set only one of them")
    for key in SHAPE:
        if key in model and (not isinstance(model[key], int) or model[key] < 1):
            raise ValueError(f"model.{key} must be a whole number above zero (given: {model[key]!r})")
    rows = vocabulary_rows(values)
    shape = _shape(model, rows)
    derived: dict[tuple[str, ...], Any] = {("model", key): value for key, value in zip(SHAPE, shape, strict=True)}
    train = values.get("train") or {}
    count = parameters(shape, model, rows if rows is not None else 50_304)
    derived.update(_training(count, train, int(model.get("context_length", 1024))))
    return {path: value for path, value in derived.items() if value_at(values, path) is None}


def _training(count: int, train: Mapping[str, Any], context: int) -> dict[tuple[str, ...], Any]:
    optimizer = train.get("optimizer") or {}
    length = {key: train[key] for key in ("steps", "tokens", "epochs") if train.get(key) is not None}
    ratio = train.get("tokens_per_parameter") or TOKENS_PER_PARAMETER
    steps, tokens, batch = length.get("steps"), length.get("tokens"), train.get("global_batch_size")
    if not tokens:
        tokens = math.ceil(ratio * count)
        if steps:
            # Steps alone do not give the tokens: the batch size depends on C, and C on the batch size.
            compute = 6 * count * steps * batch * context if batch else compute_of_steps(count, steps)
            tokens = compute / (6 * count)
    compute = 6.0 * count * tokens
    batch = batch or batch_sequences(compute, context)
    steps = steps or max(1, -(-int(tokens) // (batch * context)))
    rate = optimizer.get("lr") or learning_rate(compute)
    values = (tokens, batch, rate, weight_decay(rate, steps), warmup(steps))
    derived: dict[tuple[str, ...], Any] = dict(zip(TRAINING, values, strict=True))
    if optimizer.get("name") == "muon":
        derived[MUON_DECAY] = weight_decay((optimizer.get("muon") or {}).get("lr") or MUON_RATE, steps)
    if length:  # the recipe sets the length itself, so `train.tokens` must stay unset
        del derived[TRAINING[0]]
    return derived


def value_at(node: Any, path: tuple[str, ...]) -> Any:
    """Returns the value at a path of a raw recipe; None where there is none."""
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def filled(values: Any, derived: Mapping[tuple[str, ...], Any]) -> Any:
    """Copies a raw recipe and adds the derived values; a null for a governed key counts as not set."""
    if not derived and not has_dial(values):
        return values
    values = _copied(values)
    for path in (*GOVERNED, ("train", "steps"), ("train", "epochs")):
        parent = value_at(values, path[:-1])
        if isinstance(parent, dict) and path[-1] in parent and parent[path[-1]] is None:
            del parent[path[-1]]
    for path, value in derived.items():
        node = values
        for key in path[:-1]:
            if node.get(key) is None:
                node[key] = {}
            node = node[key]
        node[path[-1]] = value
    return values


def _copied(node: Any) -> Any:
    return {key: _copied(value) for key, value in node.items()} if isinstance(node, dict) else node

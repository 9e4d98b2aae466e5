"""What is edited in attention: each steerer is one pure edit of a row's pre-softmax scores, and a method by itself.

Does not decide when or in which layers: that is the schedule's and the gate's work. Every steerer runs as published
(without a gate: at every step, and but for `KeyScaling` in the prefill too) or with `gate=Plausibility(β)`: then the
prefill stays raw and a schedule narrows the layers as in Directer. A token's weight w scales what is added to its
score, or is an exponent of what multiplies it: 0 leaves it alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch

from heedful.checks import keep_finite, whole
from heedful.errors import OptionError
from heedful.gate import Plausibility, check_gate
from heedful.recipe import ModelShape, Recipe, SpanView, Stage


class _Plain:
    """What most steerers share: they need no pool, and name no head."""

    is_pooled: ClassVar[bool] = False
    stage: ClassVar[Stage] = "scores"

    def share_of(self, scores: torch.Tensor, span: SpanView) -> torch.Tensor:
        raise NotImplementedError("this steerer does not pool")

    def check(self, model: ModelShape) -> None:
        """Nothing is named that a model could lack."""


@dataclass(frozen=True)
class KeyScaling(_Plain):
    """Scales the scores of the instruction's tokens, `s_i ← α^w_i · s_i`: the same as scaling their cached keys.

    `strength` is α ≥ 0. `layers`: the layers to steer, None for all. `level`: steer the top ⌊L/2^level⌋ layers of the
    ranking, the paper's ladder of fixed intensities (ST1, ST2 …); 0 is all. Without a gate this is static steering: it
    starts after the prefill and acts at every step. A row's own key is never scaled. Source: Directer, arXiv
    2603.06745. Raises `OptionError` where a value lies outside its range.
    """

    strength: float = 100.0
    layers: tuple[int, ...] | None = None
    level: int = 0
    gate: Plausibility | None = None

    stage: ClassVar[Stage] = "keys"

    def __post_init__(self) -> None:
        keep_finite(self, "strength")
        whole("level", self.level, low=0)
        check_gate(self.gate)
        object.__setattr__(self, "layers", _layers(self.layers))
        if self.level and self.gate is not None:
            raise OptionError("level is for static steering; with a gate, all levels are tried in turn")

    def edit(self, scores: torch.Tensor, span: SpanView, layer: int) -> None:
        """Multiplies the span's columns of the active rows; see `Steerer.edit`."""
        factor = span.once("factor", lambda: self._factor(span))
        scores[..., span.start : span.stop] *= factor

    def _factor(self, span: SpanView) -> torch.Tensor:
        return torch.where(span.active & (span.weights > 0), self.factors(span.weights), 1.0)

    def factors(self, weights: torch.Tensor) -> torch.Tensor:
        """What the scores, or the stored keys, of span tokens with these `weights` are multiplied by; float32."""
        # At most 1e30: float32 overflows at 3e38, and scores reach thousands.
        return (self.strength ** weights.cpu().double()).clamp_(max=1e30).float().to(weights.device)

    def recipe(self) -> Recipe:
        """Static steering, or gated where a gate is given."""
        return Recipe(self, gate=self.gate, layers=self.layers, level=self.level)

    def describe(self) -> dict[str, Any]:
        """Name and settings, as JSON values."""
        return {"name": "static" if self.gate is None else "key-scaling", **asdict(self)}


@dataclass(frozen=True)
class InstABoost(_Plain):
    """Multiplies the attention on the instruction's tokens and renormalises: `s_i ← s_i + w_i · log M`.

    `multiplier` is M > 0; M = 2 equals storing every span token twice. Source: InstABoost, arXiv 2506.13734. Raises
    `OptionError` where M is not a finite number above 0.
    """

    multiplier: float = 3.0
    layers: tuple[int, ...] | None = None
    gate: Plausibility | None = None

    def __post_init__(self) -> None:
        keep_finite(self, "multiplier", low_open=True)
        check_gate(self.gate)
        object.__setattr__(self, "layers", _layers(self.layers))

    def edit(self, scores: torch.Tensor, span: SpanView, layer: int) -> None:
        """Raises the span's columns of the active rows; see `Steerer.edit`."""
        bias = span.once("bias", lambda: span.active * span.weights * math.log(self.multiplier))
        scores[..., span.start : span.stop] += bias

    def recipe(self) -> Recipe:
        """As published, or gated where a gate is given."""
        return Recipe(self, gate=self.gate, layers=self.layers, steers_prefill=True)

    def describe(self) -> dict[str, Any]:
        """Name and settings, as JSON values."""
        return {"name": "instaboost", **asdict(self)}


@dataclass(frozen=True)
class SpotLight(_Plain):
    """Lifts each head's share of attention on the instruction to ψ where it is below.

    `s_i ← s_i + w_i · max(0, logit ψ - (lse_S - lse_rest))` over the span's tokens, for each head and row by itself;
    the row's own key belongs to one side or the other, an attention sink to neither. A row that sees no span token is
    left alone. `target` is ψ in (0, 1), or 0 for none. `pooled`: the published rule instead, one bias
    `max(0, log(ψ / p))` for all heads and rows of a layer, p being the span's share averaged over them (per pass: a
    prompt that is prefilled in pieces pools over each piece). Source: SpotLight, arXiv 2505.12025. Raises
    `OptionError` where ψ lies outside [0, 1).
    """

    target: float = 0.2
    pooled: bool = False
    layers: tuple[int, ...] | None = None
    gate: Plausibility | None = None

    def __post_init__(self) -> None:
        keep_finite(self, "target", high=1.0)
        if self.target == 1.0:
            raise OptionError("target must be below 1: a share of 1 would hide every other token")
        if not isinstance(self.pooled, bool):
            raise OptionError(f"pooled must be true or false; got {self.pooled!r}")
        check_gate(self.gate)
        object.__setattr__(self, "layers", _layers(self.layers))

    @property
    def is_pooled(self) -> bool:  # type: ignore[override]
        """Whether one bias serves all heads and rows."""
        return self.pooled

    def edit(self, scores: torch.Tensor, span: SpanView, layer: int) -> None:
        """Raises the span's columns of the active rows; see `Steerer.edit`."""
        if self.target == 0.0:
            return
        bias = self._pooled_bias(scores, span) if self.pooled else self._bias(scores, span)
        factor = span.once("factor", lambda: span.active * span.weights)
        scores[..., span.start : span.stop].addcmul_(bias, factor)

    def _bias(self, scores: torch.Tensor, span: SpanView) -> torch.Tensor:
        """`logit ψ - (lse_S - lse_rest)`, not below 0, `(slots, kv_heads, group, rows, 1)`."""
        logit = math.log(self.target) - math.log1p(-self.target)
        return _bounded(logit - _log_odds(scores, span))

    def _pooled_bias(self, scores: torch.Tensor, span: SpanView) -> torch.Tensor:
        share = self.share_of(scores, span).mean((1, 2), keepdim=True) if span.share is None else span.share
        return _bounded((self.target / share).log_())

    def share_of(self, scores: torch.Tensor, span: SpanView) -> torch.Tensor:
        """The span's share of attention in each head and row, `(slots, kv_heads, group, rows, 1)`."""
        return _log_odds(scores, span).sigmoid_()

    def recipe(self) -> Recipe:
        """As published, or gated where a gate is given."""
        return Recipe(self, gate=self.gate, layers=self.layers, steers_prefill=True)

    def describe(self) -> dict[str, Any]:
        """Name and settings, as JSON values."""
        return {"name": "spotlight", **asdict(self)}


def _log_odds(scores: torch.Tensor, span: SpanView) -> torch.Tensor:
    """`lse_S - lse_rest` of each row in float64, `(slots, kv_heads, group, rows, 1)`; -inf where no span token is seen.

    For few rows one softmax in float64 is several times as fast as two log-sum-exps, and as exact from e^-700 up; for
    a prefill's blocks float64 is what costs.
    """
    exact = torch.float32 if scores.device.type == "mps" else torch.float64  # MPS has no float64
    hull = slice(span.start, span.stop)
    if scores.shape[-2] * scores.shape[-1] <= FEW_SCORES:
        is_span = span.once("is span", lambda: (span.weights > 0).to(exact))
        share = (scores.softmax(-1, dtype=exact)[..., hull] * is_span).sum(-1, keepdim=True)
        return share.clamp_(max=1.0).logit_()  # rounding must not pass 1: its logit is NaN
    hidden = span.once("hidden", lambda: torch.where(span.weights > 0, 0.0, -torch.inf))
    inside, total = (scores[..., hull] + hidden).logsumexp(-1, keepdim=True), scores.logsumexp(-1, keepdim=True)
    share = (inside - total).to(exact).clamp_(max=0.0)
    return share - torch.log1p(-share.exp())


def _bounded(bias: torch.Tensor) -> torch.Tensor:
    """From 0 to 1000, in float32: a span that a row does not see stays hidden, since -inf + 1000 is -inf."""
    return bias.clamp_(0.0, 1000.0).float()


# Scores of one head, rows × columns, up to which float64 is cheap.
FEW_SCORES = 1 << 15

Heads: TypeAlias = tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Pasta(_Plain):
    """Lowers the attention of chosen heads on the prompt's tokens outside the instruction: `s_i ← s_i + log α`.

    `heads`: which heads of which layers, `{layer: [head, …]}` as a profile finds them (`from_file`). `strength` is
    α > 0. Tokens generated so far are left alone; a row's own key counts as the prompt's while the row is a prompt
    token. A span token of weight w is lowered by `(1 - w) · log α`. Source: PASTA, ICLR 2024, arXiv 2311.02262. Raises
    `OptionError` where α is not a finite number above 0 or no head is named.
    """

    heads: Any = ()
    """`{layer: [head, …]}`; kept as sorted pairs `((layer, (head, …)), …)`."""
    strength: float = 0.01
    gate: Plausibility | None = None
    profiled: ModelShape | None = None
    """The model that the heads were found on, where that is known."""

    def __post_init__(self) -> None:
        keep_finite(self, "strength", low_open=True)
        check_gate(self.gate)
        pairs = self.heads.items() if isinstance(self.heads, Mapping) else self.heads
        object.__setattr__(self, "heads", _sorted_heads(pairs))
        if not self.heads:
            raise OptionError("PASTA needs heads to steer: pass heads={layer: [head, …]}, or a profile's file")

    @classmethod
    def from_file(cls, *paths: str | Path, strength: float = 0.01, gate: Plausibility | None = None) -> Pasta:
        """The heads that all of these profiles name. Raises `OptionError` for a file that is none, or if none remain.

        A profile is `{"layer": [heads]}` as JSON: the published form, and what `heedful profile pasta` writes. Where
        the latter's scores lie beside it, the profile is refused by any other model than the one it was made for.
        """
        if not paths:
            raise OptionError("name at least one profile")
        profiles = [read_heads(Path(path)) for path in paths]
        shared = {layer: sorted(set.intersection(*(set(p.get(layer, ())) for p in profiles))) for layer in profiles[0]}
        kept = {layer: heads for layer, heads in shared.items() if heads}
        if not kept:
            raise OptionError(f"no head is in every one of {', '.join(map(str, paths))}")
        made = {shape for shape in map(profiled_on, map(Path, paths)) if shape is not None}
        if len(made) > 1:
            raise OptionError(f"these profiles were made for different models: {', '.join(map(str, paths))}")
        return cls(kept, strength, gate, made.pop() if made else None)

    def edit(self, scores: torch.Tensor, span: SpanView, layer: int) -> None:
        """Lowers the prompt outside the span in this layer's heads of the active rows; see `Steerer.edit`."""
        heads = next((heads for at, heads in self.heads if at == layer), ())
        if heads:
            chosen = span.once(f"heads {heads}", lambda: _head_mask(heads, scores))
            scores.addcmul_(span.once("bias", lambda: self._bias(span)), chosen)

    def _bias(self, span: SpanView) -> torch.Tensor:
        """`(slots, 1, 1, rows, columns)`."""
        bias = span.in_prompt() * span.active * math.log(self.strength)
        bias[..., span.start : span.stop] *= 1.0 - span.weights
        return bias

    def check(self, model: ModelShape) -> None:
        """Raises `OptionError` for a profile of another model, and for a layer or head that the model lacks."""
        made = self.profiled
        if made is not None and not made.may_be(model):
            raise OptionError(
                f"the profile was made for {made.name or 'a model'} ({made.num_layers} layers of {made.num_heads} "
                f"heads), this is {model.name or 'another'} ({model.num_layers} of {model.num_heads}): "
                "its heads mean nothing here"
            )
        for layer, heads in self.heads:
            if layer >= model.num_layers:
                raise OptionError(f"layer {layer} is not in the model: its layers are 0 to {model.num_layers - 1}")
            if heads[-1] >= model.num_heads:
                raise OptionError(f"head {heads[-1]} is not in layer {layer}: its heads are 0 to {model.num_heads - 1}")

    def recipe(self) -> Recipe:
        """As published, or gated where a gate is given: then the schedule narrows the layers that have heads."""
        layers = tuple(int(layer) for layer, _ in self.heads)
        return Recipe(self, gate=self.gate, layers=layers, steers_prefill=True)

    def describe(self) -> dict[str, Any]:
        """Name and settings, as JSON values."""
        heads = {str(layer): list(heads) for layer, heads in self.heads}
        gate = asdict(self.gate) if self.gate is not None else None
        return {"name": "pasta", "heads": heads, "strength": self.strength, "gate": gate}


def read_heads(path: Path) -> dict[int, tuple[int, ...]]:
    """`{layer: heads}` of a profile. Raises `OptionError` where the file cannot be read or is no profile."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return dict(_sorted_heads((int(layer), heads) for layer, heads in found.items()))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise OptionError(f'cannot read a PASTA profile ({{"layer": [heads]}}) from {path}: {error}') from error


def scores_path(profile: Path) -> Path:
    """Where the scores lie that a profile was made from: JSON lines, settings and model first."""
    return profile.with_name(profile.stem + ".scores.jsonl")


def profiled_on(profile: Path) -> ModelShape | None:
    """The model that a profile was made for, None where no scores lie beside it."""
    path = scores_path(profile)
    if not path.exists():
        return None
    try:
        with path.open(encoding="utf-8") as file:
            return ModelShape(**json.loads(file.readline())["model"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OptionError(f"cannot read the scores of {profile} from {path}: {error!r}") from error


def _sorted_heads(pairs: Iterable[tuple[Any, Iterable[int]]]) -> Heads:
    merged: dict[int, tuple[int, ...]] = {}
    try:
        listed = [(layer, heads) for layer, heads in pairs]
    except (TypeError, ValueError):
        raise OptionError(f"heads must be {{layer: [head, …]}}; got {pairs!r}") from None
    for layer, heads in listed:
        name = int(layer) if isinstance(layer, str) and layer.isascii() and layer.isdecimal() else layer
        (at,) = _indices("layers", (name,)) or ()
        merged[at] = tuple(sorted(set(_indices("heads", heads) or ())))
    return tuple((layer, merged[layer]) for layer in sorted(merged) if merged[layer])


def _indices(name: str, values: Iterable[int] | None) -> tuple[int, ...] | None:
    """`values` as a tuple of indices, None as it is. Raises `OptionError` where one is no index."""
    if values is None:
        return None
    try:
        listed = tuple(values)
    except TypeError:
        raise OptionError(f"{name} must be a list of whole numbers; got {values!r}") from None
    for value in listed:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise OptionError(f"{name} must be whole numbers of at least 0; got {value!r}")
    return listed


def _layers(values: Iterable[int] | None) -> tuple[int, ...] | None:
    """As `_indices`; an empty list is refused, because it would steer nothing."""
    listed = _indices("layers", values)
    if listed == ():
        raise OptionError("layers must name at least one layer; leave it out for all")
    return listed


def _head_mask(heads: Sequence[int], scores: torch.Tensor) -> torch.Tensor:
    """1 for the chosen heads, `(1, kv_heads, group, 1, 1)`: query heads of one key/value head stand side by side."""
    mask = torch.zeros(scores.shape[1] * scores.shape[2], device=scores.device)
    mask[list(heads)] = 1.0
    return mask.view(1, scores.shape[1], scores.shape[2], 1, 1)

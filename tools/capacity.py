"""The capacity tables of docs/scaling.md, worked out on paper: a roofline of decoding, with and without steering.

Nothing here is measured. `python tools/capacity.py` prints the tables; the formulas and what they leave out are in the
document.
"""

from __future__ import annotations

from dataclasses import dataclass

BYTES = 2  # bfloat16, weights and cache alike
USABLE = 0.9  # of the memory: the rest is activations, kernels' workspaces and fragmentation
GUESSES = 2.2  # raw rows of the next position in a gated step's forward, as measured on SmolLM2-135M (docs/log.md)
MISSED = 0.05  # of gated steps, whose outcome none of the guesses was: one pass more


@dataclass(frozen=True)
class Machine:
    """One accelerator: bytes of memory, bytes a second, bfloat16 operations a second."""

    name: str
    memory: float
    bandwidth: float
    arithmetic: float


@dataclass(frozen=True)
class Model:
    """A dense decoder with grouped queries; `params` counts everything, `vocab x width` of it is only looked up."""

    name: str
    params: float
    num_layers: int
    width: int
    num_heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @property
    def read(self) -> float:
        """Weights that each forward reads: all but the input embedding."""
        return self.params - self.vocab * self.width

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values of one token."""
        return 2 * self.num_layers * self.kv_heads * self.head_dim * BYTES

    @property
    def num_sets(self) -> int:
        """Candidate sets of the halving schedule, down to one layer: floor(log2 L) + 1."""
        return self.num_layers.bit_length()

    @property
    def extra_rows(self) -> float:
        """Rows that a gated step adds: its candidate sets, and the guesses but for the one that is the next step."""
        return self.num_sets + GUESSES - 1


H200 = Machine("H200", 141e9, 4.8e12, 989e12)
LLAMA_8B = Model("Llama-3.1-8B", 8.03e9, 32, 4096, 32, 8, 128, 128256)
LLAMA_70B = Model("Llama-3.1-70B", 70.55e9, 80, 8192, 64, 8, 128, 128256)
SETUPS = ((LLAMA_8B, 1), (LLAMA_70B, 2), (LLAMA_70B, 4))
RATES = (0.05, 0.12, 0.22, 0.5, 1.0)
BATCHES = (1, 32, 128)
CONTEXT = 2048


def terms(model: Model, num_machines: int, slots: float, rows: float, kv_reads: float, machine: Machine = H200) -> dict:
    """Seconds of one forward by what they are spent on: weights and cache read, and arithmetic."""
    attention = 4 * model.num_layers * model.num_heads * model.head_dim * CONTEXT
    return {
        "weights": model.read * BYTES / (num_machines * machine.bandwidth),
        "cache": slots * kv_reads * CONTEXT * model.kv_bytes / (num_machines * machine.bandwidth),
        "arithmetic": rows * (2 * model.read + attention) / (num_machines * machine.arithmetic),
    }


def seconds(parts: dict[str, float]) -> float:
    """Reading and arithmetic overlap: the slower of the two."""
    return max(parts["weights"] + parts["cache"], parts["arithmetic"])


def ratio(model: Model, num_machines: int, slots: int, rate: float, *, is_shared: bool) -> tuple[float, str]:
    """Steered throughput ÷ plain where the gate opens at `rate` of the steps, and what a steered forward waits for.

    `is_shared`: the rows of a slot read its cache once, as Heedful's engine does; else each row reads it for itself.
    """
    rows = 1 + rate * model.extra_rows
    plain = terms(model, num_machines, slots, slots, 1)
    steered = terms(model, num_machines, slots, slots * rows, 1 if is_shared else rows)
    found = seconds(plain) / (seconds(steered) * (1 + MISSED * rate))
    is_bound = steered["arithmetic"] >= steered["weights"] + steered["cache"]
    return found, "arithmetic" if is_bound else max(("weights", "cache"), key=steered.__getitem__)


def plugin(model: Model, num_machines: int, slots: int, rate: float) -> float:
    """Steered throughput ÷ plain of the vLLM plug-in: where any gate is open, one more forward of the candidate rows.

    The caches of the gated answers are read once for all of their candidate sets.
    """
    plain = seconds(terms(model, num_machines, slots, slots, 1))
    share = 1 - (1 - rate) ** slots  # of steps that have a second forward
    gated = slots * rate / share
    second = seconds(terms(model, num_machines, gated, gated * model.num_sets, 1))
    return plain / (plain + share * second)


def sizes() -> list[str]:
    """What fits, and what a gated step adds."""
    lines = [
        "| model, machines | weights | KV a token | answers of 2,048 tokens that fit | candidate sets | extra rows, "
        "gated step | ranking, rows a request |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for model, count in SETUPS:
        free = USABLE * count * H200.memory - model.params * BYTES
        fits = int(free / (CONTEXT * model.kv_bytes))
        lines.append(
            f"| {model.name}, {count} × {H200.name} | {model.params * BYTES / 1e9:.1f} GB | "
            f"{model.kv_bytes // 1024} KiB | {fits} | {model.num_sets} | {model.extra_rows:.1f} | {model.num_layers} |"
        )
    return lines


def throughput() -> list[str]:
    """Tokens a second without steering, and the ratio with it: both ways of reading the cache, and the plug-in."""
    lines = [
        "| model, machines | answers at a time | plain, tokens/s | "
        + " | ".join(f"{rate:.0%}" for rate in RATES)
        + " | what dominates at 12 %, at 100 % |",
        "| --- | ---: | ---: |" + " ---: |" * len(RATES) + " --- |",
    ]
    for model, count in SETUPS[:2]:  # with ideal tensor parallelism more machines change the speed and not the ratio
        for slots in BATCHES:
            plain = slots / seconds(terms(model, count, slots, slots, 1))
            both = [[ratio(model, count, slots, rate, is_shared=way) for way in (True, False)] for rate in RATES]
            ours = [plugin(model, count, slots, rate) for rate in RATES]
            cells = [f"{one[0][0]:.2f} / {one[1][0]:.2f} / {more:.2f}" for one, more in zip(both, ours, strict=True)]
            why = [" / ".join(dict.fromkeys(one[1] for one in both[RATES.index(rate)])) for rate in (0.12, 1.0)]
            lines.append(
                f"| {model.name}, {count} × {H200.name} | {slots} | {plain:,.0f} | {' | '.join(cells)} | "
                f"{why[0]}; {why[1]} |"
            )
    return lines


if __name__ == "__main__":
    print("\n".join([*sizes(), "", *throughput()]))

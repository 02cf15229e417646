"""How the replacing rate moves in training (section 3.3 of the paper).

A scheduler sets the rate for step 0 when it is made; `step()`, called after each optimiser step, sets
the rate for the next one. The rate is a function of the number of steps done, so that is all its state.
A new schedule is a class with `replacing_rate_at` and, if its words are to be better, `describe`.
"""


class ReplacementScheduler:
    """Base of the schedulers: counts optimiser steps and sets `replacing_rate_at(steps)`.

    A schedule sets its own attributes first and calls this constructor last, which asks it for the rate at step 0.

    Args:
        layers: what has `set_replacing_rate()`, the `TheseusLayers` of the model.

    Raises:
        ValueError: the rate at step 0 lies outside (0, 1].
    """

    def __init__(self, layers):
        self.layers, self.steps = layers, 0
        layers.set_replacing_rate(self.replacing_rate_at(0))

    def replacing_rate_at(self, steps: int) -> float:
        """The rate in force after `steps` optimiser steps."""
        raise NotImplementedError

    def full_replacement_step(self, n_steps: int) -> int | None:
        """The step, of 1 to `n_steps`, from which the successor trains alone, at a rate of 1; None: there is none."""
        steps = n_steps
        while steps and self.replacing_rate_at(steps - 1) == 1:
            steps -= 1
        return steps + 1 if steps < n_steps else None

    def describe(self, n_steps: int) -> str:
        """What the rate does in a training of `n_steps`, in words."""
        first, last = self.replacing_rate_at(0), self.replacing_rate_at(n_steps - 1)
        at_1 = self.full_replacement_step(n_steps)
        return f"from {first:.3g} to " + (f"1 at step {at_1:,}" if at_1 else f"{last:.3g} at the end")

    def step(self) -> float:
        """Count one optimiser step; returns the rate now in force."""
        self.steps += 1
        rate = self.replacing_rate_at(self.steps)
        self.layers.set_replacing_rate(rate)
        return rate

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]
        self.layers.set_replacing_rate(self.replacing_rate_at(self.steps))


class ConstantReplacementScheduler(ReplacementScheduler):
    """A constant rate for `replacing_steps` optimiser steps, then 1.0: successor fine-tuning.

    Args:
        layers: the `TheseusLayers` of the model.
        replacing_rate: in (0, 1].
        replacing_steps: the number of steps at that rate; 0 is taken as 1, None means for ever.

    Raises:
        ValueError: the rate lies outside (0, 1], or the number of steps is negative.
    """

    def __init__(self, layers, replacing_rate: float, replacing_steps: int | None = None):
        if replacing_steps is not None and replacing_steps < 0:
            raise ValueError(f"replacing_steps counts optimiser steps; it cannot be {replacing_steps}")
        self.replacing_rate = replacing_rate
        self.replacing_steps = replacing_steps
        super().__init__(layers)

    def replacing_rate_at(self, steps: int) -> float:
        # As in the 2020 release, the first step runs at the constant rate even if `replacing_steps` is 0.
        if self.replacing_steps is None or steps < max(self.replacing_steps, 1):
            return self.replacing_rate
        return 1.0

    def describe(self, n_steps: int) -> str:
        if self.replacing_rate_at(n_steps - 1) == self.replacing_rate:
            return f"{self.replacing_rate:g} in all steps"
        n_replacing = max(self.replacing_steps, 1)
        return f"{self.replacing_rate:g} for {n_replacing:,} step{'s' * (n_replacing > 1)}, then 1"


def slope_to_1(base_replacing_rate: float, n_steps: int) -> float:
    """The `k` with which the linear rate, `base_replacing_rate` at step 0, is 1 after `n_steps`, at least 1."""
    return (1 - base_replacing_rate) / n_steps * (1 + 1e-12)  # or rounding could keep it below 1 for a step more


class LinearReplacementScheduler(ReplacementScheduler):
    """A rate that rises linearly to 1: `p_t = min(1, k * t + b)`, the curriculum replacement of the paper.

    Args:
        layers: the `TheseusLayers` of the model.
        base_replacing_rate: `b`, the rate at step 0, in (0, 1].
        k: what the rate gains in each optimiser step, at least 0.

    Raises:
        ValueError: `b` lies outside (0, 1], or `k` is negative.
    """

    def __init__(self, layers, base_replacing_rate: float, k: float):
        if not k >= 0:
            raise ValueError(f"k is what the replacing rate gains a step; it cannot be {k}")
        layers.set_replacing_rate(base_replacing_rate)  # refuses a `b` above 1, which `replacing_rate_at` would hide
        self.base_replacing_rate = base_replacing_rate
        self.k = k
        super().__init__(layers)

    def replacing_rate_at(self, steps: int) -> float:
        return min(1.0, self.k * steps + self.base_replacing_rate)

    def describe(self, n_steps: int) -> str:
        return f"linearly, by {self.k:g} a step, {super().describe(n_steps)}"

"""One phase of training: its clock, learning rate, averaged weights, journal and checkpoints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

SAVE_EVERY = 60.0  # seconds
LOG_EVERY = 50  # steps


class Phase:
    """Iterate over it for the step numbers; it stops when `minutes` are spent, over all resumptions.

    The learning rate follows the clock and not the step count, so that a busy machine still ends on a decayed
    rate: a short warm-up, constant until `hold` of the time, then a cosine down to 2 %.
    """

    def __init__(
        self,
        runs: Path,
        name: str,
        model: nn.Module,
        minutes: float,
        rate: float,
        hold: float = 0.0,
        decay: float = 0.999,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        self.name, self.model, self.minutes, self.rate, self.hold = name, model, minutes, rate, hold
        self.path, self.journal = runs / f"{name}.pt", runs / "journal.jsonl"
        self.decay, self.step, self.seconds, self.done = decay, 0, 0.0, False
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.average = [weight.detach().clone() for weight in self.weights]
        matrices = [weight for weight in self.weights if weight.ndim > 1]
        vectors = [weight for weight in self.weights if weight.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=betas)
        self._losses: list[torch.Tensor] = []
        if self.path.exists():
            self._restore()

    def __iter__(self) -> Iterator[int]:
        saved = time.monotonic()
        while not self.done:
            began = time.monotonic()
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * self._factor()
            yield self.step
            self.step += 1
            self.seconds += time.monotonic() - began
            self.done = self.seconds >= 60 * self.minutes
            if self.done or time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()

    @property
    def progress(self) -> float:
        """Share of the time spent, 0..1."""
        return min(1.0, self.seconds / (60 * self.minutes))

    def update(self, loss: torch.Tensor) -> None:
        """Back-propagate, step, and move the averaged weights."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [weight.detach() for weight in self.weights], 1 - decay)
        self._losses.append(loss.detach())
        if len(self._losses) == LOG_EVERY:
            self._log()

    def use_average(self) -> None:
        """Put the averaged weights into the model, for good."""
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.average)

    def save(self) -> None:
        """Write everything needed to go on; never a half-written file."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "done": self.done,
        }
        aside = self.path.with_suffix(".saving")
        torch.save(state, aside)
        aside.replace(self.path)

    def _restore(self) -> None:
        device = self.weights[0].device
        state = torch.load(self.path, map_location=device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch._foreach_copy_(self.average, state["average"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.done = self.seconds >= 60 * self.minutes

    def _factor(self) -> float:
        warm_up = min(1.0, (self.step + 1) / 100)
        past = max(0.0, (self.progress - self.hold) / (1 - self.hold))
        return warm_up * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * past)))

    def _log(self) -> None:
        loss = torch.stack(self._losses).mean().item()
        self._losses.clear()
        entry = {
            "phase": self.name,
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "loss": round(loss, 6),
        }
        with self.journal.open("a") as file:
            print(json.dumps(entry), file=file)
        print(
            f"{self.name} step {self.step} {self.seconds:.0f}s loss {loss:.5f} {self.progress:.0%}",
            flush=True,
        )

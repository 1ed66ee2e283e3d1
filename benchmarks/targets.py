"""What was aimed at, and how to read it off the measurements."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.results import Results


@dataclass(frozen=True)
class Target:
    """One comparison's ratio against an aim.

    Attributes:
        what: in words.
        comparison: its title.
        fast, slow: the contenders.
        cpu, cuda: how many times faster the one is to be; None where nothing was aimed at.
    """

    what: str
    comparison: str
    fast: str
    slow: str
    cpu: float | None
    cuda: float | None
    most = False

    def aim(self, device: str) -> float | None:
        return self.cuda if device == "cuda" else self.cpu

    def value(self, results: Results) -> float | None:
        """What was measured; None where it was not."""
        found = results.measurements.get(self.comparison)
        return found and found.ratio(self.fast, self.slow)

    def met(self, value: float, device: str) -> bool:
        return value >= self.aim(device)

    def show(self, value: float) -> str:
        return f"{value:.3g}x"

    def reason(self, results: Results) -> str:
        """What this machine allows at all, and how much of it was reached."""
        found = results.measurements[self.comparison]
        limit = results.limit(found, self.fast)
        if limit is None:
            return ""
        allowed, share = limit / found.rate(self.slow), found.rate(self.fast) / limit
        beyond = ", less than the target" if allowed < self.aim(results.device) else ""
        reason = f"{allowed:.3g}x{beyond}; {share:.0%} of it reached"
        products = found.products.get(self.fast)
        if products:
            reason += f": {products:.0%} of the time is those products, at {share / products:.0%} of that limit"
        return reason


@dataclass(frozen=True)
class ShareOfStages(Target):
    """Folder captioning against its stages alone: their times added up on a CPU, the slowest one on a GPU."""

    def value(self, results: Results) -> float | None:
        found = results.measurements.get(self.comparison)
        if found is None:
            return None
        times = self._times(results)
        return found.rate("ours") * (max(times.values()) if results.device == "cuda" else sum(times.values()))

    def show(self, value: float) -> str:
        return f"{value:.2f}"

    def reason(self, results: Results) -> str:
        parts = ", ".join(f"{name} {1000 * time:.3g}" for name, time in self._times(results).items())
        return f"ms per image: {parts}; end to end {1000 / results.measurements[self.comparison].rate('ours'):.3g}"

    def _times(self, results: Results) -> dict[str, float]:
        found = results.measurements[self.comparison]
        return {n.removeprefix("stage: "): 1 / found.rate(n) for n in found.rates if n.startswith("stage: ")}


@dataclass(frozen=True)
class FlatMemory(Target):
    """Peak memory of predict.py for many photos against few: the growth."""

    most = True

    def value(self, results: Results) -> float | None:
        sizes = results.predict_memory
        return sizes[max(sizes)] / sizes[min(sizes)] - 1 if sizes else None

    def met(self, value: float, device: str) -> bool:
        return value <= self.aim(device)

    def show(self, value: float) -> str:
        return f"{value:+.1%}"

    def reason(self, results: Results) -> str:
        return ", ".join(f"{count} photos: {size / 2**20:.0f} MiB" for count, size in results.predict_memory.items())


def targets(device: str) -> list[Target]:
    stages = "its slowest stage alone" if device == "cuda" else "the sum of its stages' own times"
    hugging_face = "decoding, batch 32, against HF `generate` in the same precision: {}"
    return [
        Target("folder, greedy, 20 tokens, against the published loop", "folder", "ours", "published", 80, 100),
        Target("the same in fp32, captions identical", "folder fp32", "ours", "published", 20, None),
        Target("the same at 67 tokens", "folder 67 tokens", "ours", "published", 125, 150),
        Target("the same, beam 5", "folder beam 5", "ours", "published", 35, 100),
        Target("folder, greedy, against open_clip + HF `generate`, batch 32", "folder", "ours", "alternative", 2.5, 3),
        Target("single photo, warm, against the published loop", "single photo", "ours", "published", 5, 5),
        Target("embedding a folder against the published loop", "embedding", "ours", "published", 9, 20),
        *(
            Target(hugging_face.format(method), f"decoding {method}, batch 32", "ours", "alternative", cpu, 5)
            for method, cpu in (("greedy", 1.7), ("nucleus", 4), ("beam", 1.6))
        ),
        Target(
            "full fine-tuning, batch 16, against the published loop with CLIP in it",
            *("full fine-tuning", "ours", "published with CLIP"),
            *(14, 50),
        ),
        Target(
            "the same against the published fp32 step from stored embeddings, padded to 77, batch 40",
            *("full fine-tuning", "ours", "published"),
            *(9, 10),
        ),
        Target("LoRA against our own full fine-tuning", "strategies", "LoRA", "full", 1.2, 1.3),
        Target("head-only against our own full fine-tuning", "strategies", "head-only", "full", 2, 2.5),
        ShareOfStages(f"folder captioning as a share of {stages}", "folder", "ours", "", 0.85, 0.8),
        FlatMemory("growth of the peak memory of `predict.py` from few photos to many", "", "", "", 0.05, 0.05),
    ]

"""What Prometheus reads: times, tokens, waiting requests, memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lvlm_runtime.answering import Generation
from lvlm_runtime.serve.served import ServedBundle
from lvlm_runtime.serve.web import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# Seconds. A device takes tens of milliseconds to a minute for a first token.
FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60)
EACH_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2)


@dataclass
class ServingMetrics:
    """Counted since the server began; a registry of its own, so that several servers may live.

    Attributes:
        on_failure: Called with a bundle and the error of a request that it failed at.
    """

    on_failure: Callable[[str, BaseException], None]
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    _gauges: dict[str, Gauge] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make everything that is counted."""
        to = self.registry
        self.first_token = Histogram(
            "lvlm_time_to_first_token_seconds",
            "From the beginning of a request's turn to its first token",
            ["model", "ratio"],
            buckets=FIRST_TOKEN,
            registry=to,
        )
        self.each_token = Histogram(
            "lvlm_time_per_output_token_seconds",
            "Mean time of the tokens behind the first one, of each request",
            ["model", "ratio"],
            buckets=EACH_TOKEN,
            registry=to,
        )
        self.waited = Histogram(
            "lvlm_waiting_seconds",
            "From a request to the beginning of its turn",
            ["model"],
            buckets=FIRST_TOKEN,
            registry=to,
        )
        self.requests = Counter(
            "lvlm_requests", "Requests by status of HTTP", ["model", "status"], registry=to
        )
        self.tokens = Counter(
            "lvlm_tokens",
            "Tokens: prompt (before reduction in the decoder), visual (at its input), cached (of the"
            " prompt, not computed again), completion",
            ["model", "kind"],
            registry=to,
        )
        self.memory = Counter(
            "lvlm_picture_cache_requests",
            "Requests with pictures that found rows of the caches (hit) or none (miss)",
            ["model", "result"],
            registry=to,
        )
        self.cancelled = Counter(
            "lvlm_cancelled_requests", "Requests that nobody waited for", ["model"], registry=to
        )
        self.failures = Counter(
            "lvlm_failures", "Requests that the server failed at", ["model"], registry=to
        )

    def watch(self, bundle: ServedBundle) -> None:
        """Show what a bundle holds whenever it is asked for."""
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "lvlm_waiting_requests": ("Requests in the line", lambda: len(bundle.line)),
            "lvlm_running_requests": ("Requests in their turn", lambda: len(bundle.running)),
            "lvlm_kv_bytes": ("Caches of the requests in their turn", bundle.running_kv_bytes),
            "lvlm_picture_cache_bytes": ("What is kept of pictures", bundle.memory_bytes),
        }
        for name, (words, value) in gauges.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, words, ["model"], registry=self.registry)
            self._gauges[name].labels(bundle.name).set_function(value)

    def answered(self, bundle: str, generation: Generation, waited_ms: float) -> None:
        """As of ``Watcher``."""
        ratio = f"{generation.ratio:g}"
        self.first_token.labels(bundle, ratio).observe(generation.time_to_first_token_ms / 1e3)
        self.waited.labels(bundle).observe(waited_ms / 1e3)
        if generation.decode_tokens_per_s:
            self.each_token.labels(bundle, ratio).observe(1 / generation.decode_tokens_per_s)
        visual = dict(generation.visual_tokens).get("decoder", 0)
        counts = {
            "prompt": generation.prompt_tokens,
            "visual": visual,
            "cached": generation.reused_tokens,
            "completion": len(generation.token_ids),
        }
        for kind, count in counts.items():
            self.tokens.labels(bundle, kind).inc(count)
        if visual:
            self.memory.labels(bundle, "hit" if generation.reused_tokens else "miss").inc()
        if generation.finish_reason == "cancelled":
            self.cancelled.labels(bundle).inc()

    def failed(self, bundle: str, error: BaseException) -> None:
        """As of ``Watcher``."""
        self.failures.labels(bundle).inc()
        self.on_failure(bundle, error)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return bytes(generate_latest(self.registry))

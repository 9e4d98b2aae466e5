"""Counts and times for Prometheus; numbers only, no prompt, no user, no key."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from heedful.serve.protocol import Engine, Token

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/ready", "/metrics")


class Metrics:
    """A registry of its own for each server."""

    def __init__(self, engine: Engine) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "heedful_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self.prompt_tokens = Counter("heedful_prompt_tokens", "Prompt tokens of requests taken.", registry=registry)
        self.tokens = Counter(
            "heedful_tokens", "Tokens generated, by what the gate decided.", ["decision"], registry=registry
        )
        self.changed = Counter(
            "heedful_changed_tokens", "Tokens that are not the raw model's choice.", registry=registry
        )
        self.first_token = Histogram(
            "heedful_first_token_seconds", "From request to first token.", buckets=SECONDS, registry=registry
        )
        self.seconds = Histogram(
            "heedful_request_seconds", "From request to last token.", buckets=SECONDS, registry=registry
        )
        gauges = {
            "heedful_running_requests": ("Requests in slots.", lambda: engine.status().num_running),
            "heedful_waiting_requests": ("Requests in the queue.", lambda: engine.status().num_waiting),
            "heedful_slots": ("Requests that can run at a time.", lambda: engine.status().num_slots),
            "heedful_engine_steps": ("Forward passes so far.", lambda: engine.status().steps),
            "heedful_engine_failures": ("Steps that failed so far.", lambda: engine.status().num_failures),
        }
        for name, (help_text, value) in gauges.items():
            Gauge(name, help_text, registry=registry).set_function(value)

    def answered(self, path: str, status: int) -> None:
        """Adds one request."""
        self.requests.labels(path if path in PATHS else "other", str(status)).inc()

    def count(self, token: Token) -> None:
        """Adds one token."""
        self.tokens.labels(token.step.decision).inc()
        self.changed.inc(token.step.changed)

    def text(self) -> bytes:
        """What `GET /metrics` answers."""
        return generate_latest(self.registry)

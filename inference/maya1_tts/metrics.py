"""Prometheus metrics. Labels hold route templates, codes and engine names: never text, voices or users."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

# 0.2 s is the objective: an edge lies on it, and more lie around it than elsewhere.
TTFA_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.175, 0.2, 0.225, 0.25, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5, 10
)  # fmt: skip
GAP_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2.5, 5, 10)
RTF_BUCKETS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2.5)
QUEUE_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2.5, 5, 10, 30)
WAIT_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
CACHE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BUDGETS = ("characters", "audio_seconds")
CACHE_RESULTS = ("hit", "miss", "bypass", "joined")


class Metrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "maya1_tts_requests", "HTTP requests answered.", ("route", "method", "status"), registry=registry
        )
        self.request_duration = Histogram(
            "maya1_tts_request_duration_seconds", "Time from request to last byte of the answer.", ("route",),
            buckets=DURATION_BUCKETS, registry=registry,
        )  # fmt: skip
        self.ttfa = Histogram(
            "maya1_tts_ttfa_seconds", "Time from request to the first encoded audio being ready.", ("cache",),
            buckets=TTFA_BUCKETS, registry=registry,
        )  # fmt: skip
        self.rtf = Histogram(
            "maya1_tts_rtf", "Real-time factor of a synthesis: seconds spent per second of audio.",
            buckets=RTF_BUCKETS, registry=registry,
        )  # fmt: skip
        self.chunk_gap = Histogram(
            "maya1_tts_chunk_gap_seconds", "Time a listener of a stream waits for the next piece.",
            buckets=GAP_BUCKETS, registry=registry,
        )  # fmt: skip
        self.underruns = Counter(
            "maya1_tts_underruns",
            "Pieces that came after the audio sent before them was over.",
            registry=registry,
        )
        self.streams = Counter(
            "maya1_tts_streams",
            "Streams ended, by whether they had an underrun.",
            ("underrun",),
            registry=registry,
        )
        self.audio_seconds = Counter(
            "maya1_tts_audio_seconds", "Seconds of audio synthesised.", registry=registry
        )
        self.syntheses = Counter(
            "maya1_tts_syntheses", "Syntheses by outcome.", ("outcome",), registry=registry
        )
        self.queue_depth = Gauge(
            "maya1_tts_queue_depth", "Admitted syntheses that wait for a worker.", registry=registry
        )
        self.queue_seconds = Histogram(
            "maya1_tts_queue_seconds", "Time from the admission of a synthesis to its first worker.",
            buckets=QUEUE_BUCKETS, registry=registry,
        )  # fmt: skip
        self.backlog_seconds = Gauge(
            "maya1_tts_backlog_seconds", "Estimated time until all admitted work is done.", registry=registry
        )
        self.refusals = Counter(
            "maya1_tts_refusals", "Syntheses refused for want of room or time.", ("code",), registry=registry
        )
        self.queue_limit = Gauge(
            "maya1_tts_queue_limit", "Syntheses that may wait before new ones are refused.", registry=registry
        )
        self.active = Gauge(
            "maya1_tts_active_syntheses", "Syntheses that a worker is busy with.", registry=registry
        )
        self.workers = Gauge(
            "maya1_tts_workers",
            "Segments that may be spoken at the same time; adapts to the engine's speed.",
            registry=registry,
        )
        self.cache_requests = Counter(
            "maya1_tts_cache_requests", "Cache look-ups by result.", ("result",), registry=registry
        )
        self.cache_hits = Counter(
            "maya1_tts_cache_hits", "Entries found, by where they were.", ("tier",), registry=registry
        )
        self.cache_seconds = Histogram(
            "maya1_tts_cache_seconds", "Time of one cache operation.", ("tier", "operation"),
            buckets=CACHE_BUCKETS, registry=registry,
        )  # fmt: skip
        self.cache_stored_bytes = Counter(
            "maya1_tts_cache_stored_bytes", "Bytes written to the cache.", ("tier",), registry=registry
        )
        self.cache_pending_writes = Gauge(
            "maya1_tts_cache_pending_writes", "Writes to the object store under way.", registry=registry
        )
        self.cache_dropped_writes = Counter(
            "maya1_tts_cache_dropped_writes",
            "Writes to the object store given up since too many were under way.",
            registry=registry,
        )
        self.cache_damaged = Counter(
            "maya1_tts_cache_damaged", "Entries dropped because their checksum was wrong.", ("tier",),
            registry=registry,
        )  # fmt: skip
        self.cache_errors = Counter(
            "maya1_tts_cache_errors", "Failed cache operations.", ("tier",), registry=registry
        )
        self.cache_up = Gauge(
            "maya1_tts_cache_up",
            "1 while the tier of the cache answers, else 0.",
            ("tier",),
            registry=registry,
        )
        self.ready = Gauge("maya1_tts_ready", "1 while /readyz answers 200, else 0.", registry=registry)
        self.jobs = Counter(
            "maya1_tts_jobs", "Batch jobs ended by this process.", ("status",), registry=registry
        )
        self.auth_failures = Counter(
            "maya1_tts_auth_failures",
            "Refused tokens, and tokens without the scope of a route.",
            ("code",),
            registry=registry,
        )
        self.acoustic_tokens = Counter(
            "maya1_tts_acoustic_tokens", "Tokens that the acoustic model drew.", registry=registry
        )
        self.acoustic_batch = Histogram(
            "maya1_tts_acoustic_batch_size", "Segments that drew a token in the same step.",
            buckets=BATCH_BUCKETS, registry=registry,
        )  # fmt: skip
        self.vocoder_batch = Histogram(
            "maya1_tts_vocoder_batch_size", "Windows that the vocoder decoded together.",
            buckets=BATCH_BUCKETS, registry=registry,
        )  # fmt: skip
        self.vocoder_wait = Histogram(
            "maya1_tts_vocoder_wait_seconds", "Time that the first window of a batch waited.",
            buckets=WAIT_BUCKETS, registry=registry,
        )  # fmt: skip
        self.token_resyncs = Counter(
            "maya1_tts_token_resyncs", "Times that audio tokens were out of step and a frame was lost.",
            registry=registry,
        )  # fmt: skip
        self.runaways = Counter(
            "maya1_tts_runaways", "Segments that were ended since the model did not.", ("reason",),
            registry=registry,
        )  # fmt: skip
        self.budget_refusals = Counter(
            "maya1_tts_budget_refusals", "Requests that a subject had no budget left for.", ("budget",),
            registry=registry,
        )  # fmt: skip
        self.budget_store_up = Gauge(
            "maya1_tts_budget_store_up", "1 while budgets are counted in Redis, else 0.", registry=registry
        )
        self.gpu_memory_used = Gauge(
            "maya1_tts_gpu_memory_used_bytes", "Memory of the GPU in use.", ("gpu",), registry=registry
        )
        self.gpu_memory = Gauge(
            "maya1_tts_gpu_memory_bytes", "Memory that the GPU has.", ("gpu",), registry=registry
        )
        self.gpu_busy = Gauge(
            "maya1_tts_gpu_utilization_ratio",
            "Share of time that the GPU ran a kernel.",
            ("gpu",),
            registry=registry,
        )
        self.gpu_celsius = Gauge(
            "maya1_tts_gpu_temperature_celsius", "Temperature of the GPU.", ("gpu",), registry=registry
        )
        self.gpu_watts = Gauge(
            "maya1_tts_gpu_power_watts", "Power that the GPU draws.", ("gpu",), registry=registry
        )
        ProcessCollector(registry=registry)
        self.engine = Info("maya1_tts_engine", "The engine that speaks.", registry=registry)
        self.build = Info("maya1_tts_build", "This service.", registry=registry)
        for reason in ("length", "loop"):
            self.runaways.labels(reason)
        for result in CACHE_RESULTS:
            self.cache_requests.labels(result)
        for budget in BUDGETS:
            self.budget_refusals.labels(budget)
        for underrun in ("yes", "no"):
            self.streams.labels(underrun)
        for outcome in ("done", "cancelled", "failed", "refused"):
            self.syntheses.labels(outcome)
        for code in ("overloaded", "too_many_requests", "deadline_exceeded"):
            self.refusals.labels(code)
        for status in ("succeeded", "failed"):
            self.jobs.labels(status)

"""All settings, from MAYA1_TTS_* environment variables. Secrets come by file only."""

import ipaddress
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from maya1_tts.errors import ConfigError, shown

PREFIX = "MAYA1_TTS_"
DEFAULT_VOICES = {"onnx_voice": "joe", "maya1": "nora"}


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True)

    environment: Literal["production", "development"] = "production"
    engine: Literal["onnx_voice", "maya1"] = "onnx_voice"
    host: str = "0.0.0.0"  # noqa: S104  inside a container; the host decides what is published
    port: int = Field(8000, ge=1, le=65535)
    model_dir: Path = Path("/models")
    model_aliases: str = "tts-1,tts-1-hd,gpt-4o-mini-tts"
    default_voice: str = Field(default_factory=lambda data: DEFAULT_VOICES[data["engine"]])
    workers: int = Field(2, ge=1, le=64)
    threads: int = Field(1, ge=1, le=64)
    onnx_provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    tensorrt_cache_dir: Path | None = None
    maya1_backend: Literal["transformers", "vllm"] = "transformers"
    maya1_device: Literal["cuda", "cpu"] = "cuda"
    maya1_vocoder: Literal["torch", "onnx"] = "torch"
    maya1_max_batch: int = Field(16, ge=1, le=256)
    maya1_hop_frames: int = Field(1, ge=1, le=32)
    maya1_constrain_tokens: bool = True
    maya1_compile: bool = False
    maya1_gpu_memory: float = Field(0.85, ge=0.1, le=0.95)
    queue_limit: int = Field(16, ge=0, le=10000)
    queue_seconds: float = Field(30, gt=0, le=3600)
    deadline_seconds: float = Field(30, gt=0, le=3600)
    stream_deadline_seconds: float = Field(1, gt=0, le=3600)
    max_input_chars: int = Field(4096, ge=1, le=100_000)
    max_body_bytes: int = Field(65536, ge=1024, le=16_777_216)
    auth: Literal["jwt", "none"] = "jwt"
    jwt_secret_file: Path | None = None
    jwks_file: Path | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    gateway_secret_file: Path | None = None
    trusted_proxies: str = "127.0.0.1"
    budget_chars_per_minute: int = Field(0, ge=0, le=1_000_000_000)
    budget_audio_seconds_per_minute: float = Field(0, ge=0, le=1_000_000, allow_inf_nan=False)
    audit_text: bool = False
    audit_hash_key_file: Path | None = None
    redis_url: str | None = None
    redis_password_file: Path | None = None
    bundle: str = Field("", pattern=r"^[A-Za-z0-9._-]{0,64}$")
    cache_ttl_seconds: int = Field(86400, ge=1)
    cache_max_entry_bytes: int = Field(8_388_608, ge=1024)
    page: bool = True
    websocket_idle_seconds: float = Field(60, gt=0, le=3600)
    jobs_per_subject: int = Field(100, ge=1, le=10_000)
    job_max_input_chars: int = Field(20_000, ge=1, le=1_000_000)
    job_ttl_seconds: int = Field(86400, ge=60)
    grpc_port: int = Field(0, ge=0, le=65535)
    grpc_tls_cert_file: Path | None = None
    grpc_tls_key_file: Path | None = None
    grpc_client_ca_file: Path | None = None
    cache_memory_bytes: int = Field(67_108_864, ge=0)
    cache_per_tenant: bool = False
    shared_cache_seconds: int = Field(0, ge=0, le=31_536_000)
    cache_secret_file: Path | None = None
    object_store_url: str | None = None
    object_store_endpoint: str | None = None
    object_store_region: str = "us-east-1"
    object_store_access_key_id_file: Path | None = None
    object_store_secret_access_key_file: Path | None = None
    drain_seconds: float = Field(30, ge=0, le=3600)
    otlp_endpoint: str | None = None
    watchdog_seconds: float = Field(60, ge=0, le=3600)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: str | None) -> str | None:
        if value and not value.startswith(("unix://", "redis://", "rediss://")):
            raise ValueError("allowed: unix:///path/to/socket, redis://host:port/db or rediss://host:port/db")
        if value and "@" in value:
            raise ValueError("a password does not belong here; allowed: a URL without user and password")
        return value

    @field_validator("shared_cache_seconds")
    @classmethod
    def _for_everybody(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("cache_per_tenant"):
            raise ValueError("allowed with CACHE_PER_TENANT: 0, since a shared cache tells no tenants apart")
        return value

    @field_validator("object_store_url")
    @classmethod
    def _bucket(cls, value: str | None) -> str | None:
        if value and not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._/-]*)?", value):
            raise ValueError("allowed: s3://bucket or s3://bucket/prefix")
        return value

    @field_validator("object_store_endpoint")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        if value and not re.fullmatch(r"https?://[^/@?#]+/?", value):
            raise ValueError("allowed: https://host:port, or http:// in a network that you trust")
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _otlp_scheme(cls, value: str | None) -> str | None:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("allowed: a URL like http://collector:4318, without a path")
        return value

    @property
    def aliases(self) -> list[str]:
        return [name.strip() for name in self.model_aliases.split(",") if name.strip()]


def load_settings() -> Settings:
    """Read the environment. Raises ConfigError that names the variable, its value and what is allowed."""
    try:
        settings = Settings()  # type: ignore[call-arg]  # everything has a default
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + str(first["loc"][0]).upper()
        raise ConfigError(f"{name}={shown(first['input'])} is refused: {first['msg']}.") from None
    if settings.auth == "none" and settings.environment == "production":
        raise ConfigError(
            "MAYA1_TTS_AUTH='none' is refused while MAYA1_TTS_ENVIRONMENT='production'; "
            "allowed: AUTH 'jwt' in production, or ENVIRONMENT 'development'."
        )
    if settings.auth == "jwt" and not (settings.jwt_secret_file or settings.jwks_file):
        raise ConfigError(
            "MAYA1_TTS_AUTH='jwt' needs a key, but neither MAYA1_TTS_JWT_SECRET_FILE nor MAYA1_TTS_JWKS_FILE "
            "is set; allowed: a file with a secret of at least 32 bytes, a JWKS file, or both."
        )
    if settings.grpc_port:
        _check_grpc(settings)
    if bool(settings.object_store_access_key_id_file) != bool(settings.object_store_secret_access_key_file):
        raise ConfigError(
            "Only one of MAYA1_TTS_OBJECT_STORE_ACCESS_KEY_ID_FILE and "
            "MAYA1_TTS_OBJECT_STORE_SECRET_ACCESS_KEY_FILE is set; allowed: both files, or none where the "
            "machine itself has a role."
        )
    return settings


def _check_grpc(settings: Settings) -> None:
    if bool(settings.grpc_tls_cert_file) != bool(settings.grpc_tls_key_file):
        raise ConfigError(
            "Of MAYA1_TTS_GRPC_TLS_CERT_FILE and MAYA1_TTS_GRPC_TLS_KEY_FILE only one is set; "
            "allowed: both, or neither."
        )
    if settings.grpc_tls_cert_file:
        return
    if settings.grpc_client_ca_file:
        raise ConfigError("MAYA1_TTS_GRPC_CLIENT_CA_FILE needs MAYA1_TTS_GRPC_TLS_CERT_FILE and its key.")
    if settings.environment == "production" and not _is_loopback(settings.host):
        raise ConfigError(
            f"MAYA1_TTS_GRPC_PORT='{settings.grpc_port}' without TLS is refused while MAYA1_TTS_ENVIRONMENT="
            f"'production' and MAYA1_TTS_HOST={shown(settings.host)}, as tokens would travel in the clear; "
            "allowed: GRPC_TLS_CERT_FILE and GRPC_TLS_KEY_FILE, or a loopback HOST."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_secret(variable: str, path: Path) -> bytes:
    """The content of a secret file without the line end. Raises ConfigError if it is unreadable or empty."""
    try:
        secret = path.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(
            f"{PREFIX}{variable}={shown(str(path))} cannot be read: {error.strerror}."
        ) from None
    if not secret:
        raise ConfigError(
            f"{PREFIX}{variable}={shown(str(path))} is empty; allowed: a file with a secret in it."
        )
    return secret

"""The object store behind Redis, on a real server of the S3 API (SeaweedFS)."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
import redis
from conftest import Redis, Service, free_port, wait_for
from obstore.store import S3Store

KEY_ID, SECRET = "a-key-id", "a-secret-access-key"


class ObjectStore:
    """`weed server` on loopback, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
        self._grpc_ports = {name: free_port() for name in self._ports}
        self._process: subprocess.Popen[bytes] | None = None
        credentials = [{"accessKey": KEY_ID, "secretKey": SECRET}]
        identity = {"name": "test", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List"]}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"
        self.bucket = S3Store(
            "speech",
            config={
                "endpoint": self.endpoint, "region": "us-east-1",
                "access_key_id": KEY_ID, "secret_access_key": SECRET,
            },
            client_options={"allow_http": True, "timeout": "5s"}, retry_config={"max_retries": 0},
        )  # fmt: skip

    def start(self) -> None:
        ports = [f"-{name}.port={port}" for name, port in self._ports.items()]
        ports += [f"-{name}.port.grpc={port}" for name, port in self._grpc_ports.items()]
        sockets = [f"-{name}.localSocket={self._folder / name}.sock" for name in ("s3", "filer")]
        program = Path(sys.executable).parent / "weed"
        self._process = subprocess.Popen(
            [
                program, "server", f"-dir={self._folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3",
                f"-s3.config={self._folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0",
                "-master.volumeSizeLimitMB=64", "-volume.max=8", *ports, *sockets,
            ],
            stdout=subprocess.DEVNULL, stderr=(self._folder / "weed.log").open("ab"),
        )  # fmt: skip
        wait_for(self._writable, "the object store takes an object")

    def _writable(self) -> bool:
        try:
            obstore.put(self.bucket, "probe", b"probe")
        except obstore.exceptions.BaseError:
            return False
        return True

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
        for port in self._grpc_ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
                left.unlink()


class Stack:
    def __init__(self, folder: Path) -> None:
        self.redis, self.objects = Redis(folder), ObjectStore(folder)
        self.redis.start()
        self.database = redis.Redis(unix_socket_path=str(self.redis.socket))
        self.objects.start()
        (folder / "id").write_text(KEY_ID + "\n")
        (folder / "secret").write_text(SECRET + "\n")
        settings: dict[str, object] = {"REDIS_URL": self.redis.url, "CACHE_MEMORY_BYTES": 0}
        settings |= {"OBJECT_STORE_URL": "s3://speech/some/prefix"}
        settings |= {"OBJECT_STORE_ENDPOINT": self.objects.endpoint}
        settings |= {"OBJECT_STORE_ACCESS_KEY_ID_FILE": folder / "id"}
        settings |= {"OBJECT_STORE_SECRET_ACCESS_KEY_FILE": folder / "secret"}
        self.service = Service(folder, ENVIRONMENT="development", AUTH="none", **settings).wait_until_ready()

    def entries(self) -> list[str]:
        return [entry["path"] for page in self.objects.bucket.list("some/prefix") for entry in page]

    def hits(self, tier: str) -> float:
        return self.service.metric("cache_hits_total", tier=tier)

    def forget(self) -> None:
        """Redis loses everything."""
        wait_for(lambda: self.service.metric("cache_pending_writes") == 0, "all is written")
        self.database.flushall()

    def stop(self) -> None:
        self.service.stop()
        self.database.close()
        self.redis.kill()
        self.objects.kill()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("stack"))
    yield stack
    stack.stop()


@pytest.mark.parametrize("format", ["wav", "mp3"])
def test_what_redis_forgets_comes_from_the_object_store(stack: Stack, format: str) -> None:
    made = stack.service.speak("This is kept for long.", response_format=format)
    assert made.headers["x-cache"] == "miss"
    stack.forget()
    far, near = stack.hits("object_store"), stack.hits("redis")
    for _ in range(2):
        found = stack.service.speak("This is kept for long.", response_format=format)
        assert (found.headers["x-cache"], found.content) == ("hit", made.content)
        assert found.headers["x-audio-duration-seconds"] == made.headers["x-audio-duration-seconds"]
    assert (stack.hits("object_store") - far, stack.hits("redis") - near) == (1, 1)


def test_damaged_objects_are_dropped_and_made_anew(stack: Stack) -> None:
    made = stack.service.speak("This gets damaged.")
    before = set(stack.entries())
    stack.service.speak("This gets damaged, too.")
    stack.forget()
    (path,) = set(stack.entries()) - before
    stored = bytes(obstore.get(stack.objects.bucket, path).bytes())
    obstore.put(stack.objects.bucket, path, stored[:-50])
    again = stack.service.speak("This gets damaged, too.")
    assert again.headers["x-cache"] == "miss"
    assert stack.service.metric("cache_damaged_total", tier="object_store") == 1
    stack.forget()
    assert bytes(obstore.get(stack.objects.bucket, path).bytes()) == stored
    assert stack.service.speak("This gets damaged.").content == made.content


def test_the_object_store_may_come_and_go(stack: Stack) -> None:
    stack.objects.kill()
    first = stack.service.speak("The store is away.")
    assert (first.status_code, first.headers["x-cache"]) == (200, "miss")
    wait_for(lambda: stack.service.metric("cache_up", tier="object_store") == 0, "it is known to be down")
    assert stack.service.speak("The store is away.").headers["x-cache"] == "hit"
    assert stack.service.status("/readyz") == 200

    stack.objects.start()
    wait_for(lambda: stack.service.metric("cache_up", tier="object_store") == 1, "it is found again")
    before = len(stack.entries())
    stack.service.speak("The store is back.")
    stack.forget()
    assert len(stack.entries()) == before + 1
    assert stack.service.speak("The store is back.").headers["x-cache"] == "hit"

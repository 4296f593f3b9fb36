"""The compose file of role inference: GPUs are asked for where there are some, and nowhere else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]

PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars: {{ansible_python_interpreter: "{{{{ ansible_playbook_python }}}}"}}
  vars_files:
    - {project}/roles/inference/defaults/main.yml
    - {project}/roles/inference/vars/main.yml
  tasks:
    - ansible.builtin.template:
        src: {project}/roles/inference/templates/compose.yml.j2
        dest: {out}
        mode: "0644"
      vars:
        ansible_facts: {{getent_group: {{redis: [x, "115", ""]}}, processor_vcpus: 4}}
        __inference_image: maya1-tts:test
        docker_compose_command: docker compose
        inference_jwks_file: /tmp/jwks.json
        inference_gpu: {gpu}
        bundle: {{container_toolkit: {{request: {request}}}}}
        inference_engine: {engine}
        inference_grpc_port: {grpc_port}
"""


def rendered(
    folder: Path, gpu: bool = False, engine: str = "onnx_voice", grpc_port: int = 0, request: str = "gpus"
) -> dict[str, Any]:
    out, play = folder / "compose.yml", folder / "play.yml"
    variables = {"gpu": str(gpu).lower(), "engine": engine, "grpc_port": grpc_port, "request": request}
    play.write_text(PLAY.format(project=PROJECT, out=out, **variables))
    environment = os.environ | {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")}
    command = [str(PROJECT / ".venv/bin/ansible-playbook"), "-i", "localhost,", str(play)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    service: dict[str, Any] = yaml.safe_load(out.read_text())["services"]["maya1-tts"]
    return service


def test_a_host_with_gpus_hands_all_of_them_over(tmp_path: Path) -> None:
    service = rendered(tmp_path, gpu=True, request="gpus")
    devices = service["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
    assert "runtime" not in service
    assert "NVIDIA_VISIBLE_DEVICES" not in service["environment"]


def test_or_names_them_to_the_runtime(tmp_path: Path) -> None:
    service = rendered(tmp_path, gpu=True, request="cdi")
    assert service["runtime"] == "nvidia"
    assert service["environment"]["NVIDIA_VISIBLE_DEVICES"] == "nvidia.com/gpu=all"
    # One style of asking, not both.
    assert "deploy" not in service


@pytest.mark.parametrize("request_style", ["gpus", "cdi"])
def test_a_host_without_asks_for_none(tmp_path: Path, request_style: str) -> None:
    service = rendered(tmp_path, gpu=False, request=request_style)
    assert not {"deploy", "runtime"} & service.keys()
    assert "NVIDIA_VISIBLE_DEVICES" not in service["environment"]


@pytest.mark.parametrize("gpu", [True, False])
def test_the_sandbox_is_the_same_either_way(tmp_path: Path, gpu: bool) -> None:
    service = rendered(tmp_path, gpu)
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert {"mem_limit", "cpus", "pids_limit"} <= service.keys()
    assert not any("PASSWORD" in name and not name.endswith("_FILE") for name in service["environment"])


def test_only_the_engine_that_compiles_kernels_may_run_what_lies_in_tmp(tmp_path: Path) -> None:
    assert rendered(tmp_path, gpu=True)["tmpfs"] == ["/tmp"]
    assert rendered(tmp_path, gpu=True, engine="maya1")["tmpfs"] == ["/tmp:exec"]


def test_grpc_is_published_on_loopback_with_the_certificate_it_needs_in_production(tmp_path: Path) -> None:
    service = rendered(tmp_path, grpc_port=9443)
    port = service["environment"]["MAYA1_TTS_GRPC_PORT"]
    assert service["ports"] == ["127.0.0.1:8000:8000", f"127.0.0.1:9443:{port}"]
    mounted = {volume.split(":")[1] for volume in service["volumes"]}
    for name in ("CERT", "KEY"):
        assert service["environment"][f"MAYA1_TTS_GRPC_TLS_{name}_FILE"] in mounted
    assert "MAYA1_TTS_GRPC_PORT" not in rendered(tmp_path)["environment"]

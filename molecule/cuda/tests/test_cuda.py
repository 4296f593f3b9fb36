"""CUDA and cuDNN for programs of the host: one version, kept there, found by linker and shell.

Packages are stand-ins with NVIDIA's names and versions (repository.yml); nothing of CUDA runs.
"""

from __future__ import annotations

from conftest import Converge, said, upgrade_without_holds
from testinfra.host import Host

VERSIONS = {
    "cuda-libraries-12-8": "12.8.1-1",
    "cuda-toolkit-12-8": "12.8.1-1",
    "libcudnn9-cuda-12": "9.10.2.21-1",
}
PIN = "/etc/apt/preferences.d/maya1-cuda"


def test_versions_are_the_bundles_and_held(host: Host) -> None:
    assert {name: host.package(name).version for name in VERSIONS} == VERSIONS
    held = host.check_output("apt-mark showhold").split()
    # What came along is held too.
    assert held == sorted([*VERSIONS, "cuda-cudart-12-8"])


def test_newer_ones_are_not_taken(host: Host) -> None:
    assert "cud" not in upgrade_without_holds(host, VERSIONS)


def test_programs_find_the_libraries_without_a_variable(host: Host) -> None:
    known = host.check_output("ldconfig -p")
    assert "/usr/local/cuda-12.8/targets/x86_64-linux/lib/libcudart.so.12" in known
    assert "libcudnn.so.9" in known
    assert host.check_output("bash -lc 'echo ${LD_LIBRARY_PATH-unset}'") == "unset"


def test_a_shell_finds_the_compiler_last_and_keeps_what_is_set(host: Host) -> None:
    assert host.check_output("bash -lc nvcc") == "stand-in of nvcc 12.8.1-1"
    profile = ". /etc/profile.d/maya1-cuda.sh"
    script = f"PATH=/usr/bin:/mine CUDA_HOME=/mine; {profile}; {profile}; echo $PATH $CUDA_HOME"
    told = host.check_output(f"sh -c '{script}'")
    assert told == "/usr/bin:/mine:/usr/local/cuda-12.8/bin /mine"


def test_a_version_that_is_not_there_is_refused_with_those_that_are(host: Host, converge: Converge) -> None:
    # As cuDNN's versions read until its version 8.
    run = converge(cuda_cudnn_package_version="9.10.2.21-1+cuda12.8", check=True)
    assert run.returncode != 0
    message = said(run)
    assert "not to be had at version 9.10.2.21-1+cuda12.8, only at 9.11.0.98-1, 9.10.2.21-1" in message


def test_nothing_is_done_unless_it_is_asked_for(host: Host, converge: Converge) -> None:
    host.check_output(f"rm {PIN}")
    run = converge(cuda_libraries=False, cuda_toolkit=False)
    assert run.returncode == 0, run.stdout
    assert "changed=0" in run.stdout
    assert not host.file(PIN).exists

"""A guest is a machine of its own: it boots, takes a playbook, and a restart is a new boot."""

from tests.vm.guest import Guest


def test_it_runs_its_own_kernel(plain_guest: Guest) -> None:
    assert plain_guest.run("uname -r").strip() == plain_guest.kernel
    assert plain_guest.run("systemd-detect-virt --container || true").strip() == "none"


def test_a_restart_is_a_new_boot(plain_guest: Guest) -> None:
    before = plain_guest.wait()
    assert plain_guest.reboot() != before

"""playbooks/site.yml on a fresh host: converges, again without a change, and touches no other region."""

from tests.e2e.conftest import FINGERPRINT, Site
from tests.e2e.lab import FIRST, SECOND, Lab


def test_check_mode_passes_on_a_fresh_host(site: Site) -> None:
    assert site.fresh_check.code == 0, site.fresh_check.output
    assert site.fresh_check.counts(FIRST)["failed"] == 0
    assert site.fresh_check.counts(FIRST)["changed"] > 0


def test_the_first_run_converges(site: Site) -> None:
    assert site.first.code == 0, site.first.output
    assert site.first.counts(FIRST)["failed"] == 0
    assert site.first.counts(FIRST)["changed"] > 0


def test_the_second_run_changes_nothing(site: Site) -> None:
    assert site.second.code == 0, site.second.output
    assert site.second.counts(FIRST)["changed"] == 0, site.second.output


def test_check_mode_passes_on_a_converged_host_and_sees_no_change(site: Site) -> None:
    assert site.converged_check.code == 0, site.converged_check.output
    assert site.converged_check.counts(FIRST)["changed"] == 0, site.converged_check.output


def test_the_units_may_do_little(lab: Lab, site: Site) -> None:
    for unit, exposure in (("nginx", 20), ("maya1-tts", 40)):
        lab.on(FIRST, f"systemd-analyze security --threshold={exposure} {unit}.service")
    assert set(lab.on(FIRST, "ps -o user= -C nginx").split()) == {"www-data"}


def test_every_file_has_an_owner(lab: Lab, site: Site) -> None:
    """The container's too: its number belongs to an account of the host."""
    assert lab.on(FIRST, "find / -xdev '(' -nouser -o -nogroup ')'") == ""
    assert lab.on(FIRST, "ps -u maya1-tts -o comm=").strip()


def test_a_role_runs_alone_by_its_tag(lab: Lab, site: Site) -> None:
    alone = lab.provision("--region", "eu_frankfurt", "--tags", "hardening")
    assert alone.code == 0, alone.output
    assert alone.counts(FIRST)["changed"] == 0, alone.output


def test_a_region_limit_leaves_the_other_region_alone(site: Site) -> None:
    for run in (site.fresh_check, site.first, site.second, site.converged_check):
        assert list(run.result["hosts"]) == [FIRST]
    assert site.other_after == site.other_before


def test_the_fingerprint_would_have_shown_a_change(lab: Lab, site: Site) -> None:
    lab.on(SECOND, "touch /etc/canary")
    assert lab.on(SECOND, FINGERPRINT) != site.other_after
    lab.on(SECOND, "rm /etc/canary")


def test_what_was_left_out_is_said(site: Site) -> None:
    said = " ".join(site.first.result["not_run"][FIRST])
    assert "GPU: none found" in said
    assert "grafana: not installed" in said
    assert "GPU: none found" in site.first.output


def test_lab_up_ends_with_what_a_newcomer_wants_to_know(lab: Lab, site: Site) -> None:
    wav = lab.state / "speech.wav"
    assert wav.stat().st_size > 22050
    summary = "".join(site.second.output.split())
    for fact in (
        FIRST,
        lab.url,
        "GPU:nonefound",
        "onnx_voice",
        "TTFA",
        "RTF",
        str(wav),
        "mayafleetsay",
        "makelab-down",
    ):
        assert fact in summary, site.second.output


def test_an_unknown_authority_is_explained(lab: Lab, site: Site) -> None:
    """A TLS-inspecting proxy, played by the other lab host: nobody knows who signed its certificate."""
    overrides = lab.inventory / "host_vars" / f"{SECOND}.yml"
    overrides.parent.mkdir(exist_ok=True)
    probe = f'base_tls_probe_url: "https://{lab.address(FIRST)}/livez"\n'
    try:
        overrides.write_text(probe)
        refused = lab.provision("--region", "me_dubai", "--tags", "base")
        assert refused.code == 3, refused.output
        message = " ".join(refused.output.split())
        assert "base_extra_ca_certificates" in message
        assert lab.address(FIRST) in message

        indented = "".join(f"      {line}\n" for line in lab.authority.read_text().splitlines())
        overrides.write_text(
            f"{probe}base_extra_ca_certificates:\n  - name: inspecting-proxy\n    content: |\n{indented}"
        )
        trusted = lab.provision("--region", "me_dubai", "--tags", "base")
        assert trusted.code == 0, trusted.output
    finally:
        overrides.unlink()


def test_verify_passes_and_fails_when_something_is_wrong(lab: Lab, site: Site) -> None:
    arguments = ("verify", "-i", str(lab.inventory), "--region", "eu_frankfurt", "--runs-dir", str(lab.runs))
    good = lab.mayafleet(*arguments)
    assert good.code == 0, good.output
    lab.on(FIRST, "systemctl stop prometheus-node-exporter")
    try:
        bad = lab.mayafleet(*arguments)
        assert bad.code == 8, bad.output
        assert "prometheus-node-exporter" in bad.output
    finally:
        lab.on(FIRST, "systemctl start prometheus-node-exporter")

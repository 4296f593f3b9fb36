#!/bin/sh
# A package `grafana` that has what matters to the role (user, unit, ownership, /api/health), in a signed repository on
# 127.0.0.1:8099. It stands in for Grafana's own, which a test host without the internet cannot reach.
set -eu
root=/opt/grafana-repository
package=/opt/grafana-package
[ ! -e $root/ready ] || exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install --no-install-recommends gpg gpg-agent >/dev/null

mkdir -p $package/DEBIAN $package/usr/sbin $package/lib/systemd/system
cat > $package/usr/sbin/grafana-server <<'PYTHON'
#!/usr/bin/python3
"""Reads grafana.ini as Grafana does: address, and a password through $__file{}."""
import configparser, http.server, json, pathlib, re

settings = configparser.ConfigParser(interpolation=None)
settings.read("/etc/grafana/grafana.ini")
password = pathlib.Path(re.fullmatch(r"\$__file\{(.+)\}", settings["security"]["admin_password"])[1]).read_text().strip()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"database": "ok", "password_length": len(password)}).encode())


server = settings["server"]
http.server.ThreadingHTTPServer((server["http_addr"], int(server["http_port"])), Handler).serve_forever()
PYTHON
chmod 755 $package/usr/sbin/grafana-server
cat > $package/lib/systemd/system/grafana-server.service <<'UNIT'
[Service]
User=grafana
Group=grafana
ExecStart=/usr/sbin/grafana-server
[Install]
WantedBy=multi-user.target
UNIT
# What Grafana's own postinst does to the configuration.
cat > $package/DEBIAN/postinst <<'POSTINST'
#!/bin/sh
set -e
getent group grafana >/dev/null || groupadd --system grafana
id grafana >/dev/null 2>&1 || useradd --system --gid grafana --shell /bin/false grafana
mkdir -p /etc/grafana
[ -f /etc/grafana/grafana.ini ] || printf '[server]\nhttp_addr =\n' > /etc/grafana/grafana.ini
chown -Rh root:grafana /etc/grafana/*
find /etc/grafana -type f -exec chmod 640 {} ';'
find /etc/grafana -type d -exec chmod 755 {} ';'
POSTINST
chmod 755 $package/DEBIAN/postinst

mkdir -p $root/dists/stable/main/binary-amd64
cd $root
: > dists/stable/main/binary-amd64/Packages
for version in "$@"; do
    printf 'Package: grafana\nVersion: %s\nArchitecture: amd64\nMaintainer: test\nDescription: stand-in\n' "$version" \
        > $package/DEBIAN/control
    deb=grafana_${version}_amd64.deb
    dpkg-deb --build $package "$deb" >/dev/null
    { cat $package/DEBIAN/control
      printf 'Filename: %s\nSize: %s\nSHA256: %s\n\n' "$deb" "$(stat -c %s "$deb")" "$(sha256sum "$deb" | cut -d' ' -f1)"
    } >> dists/stable/main/binary-amd64/Packages
done
index=main/binary-amd64/Packages
printf 'Suite: stable\nCodename: stable\nComponents: main\nArchitectures: amd64\nDate: %s\nSHA256:\n %s %s %s\n' \
    "$(date -uR)" "$(sha256sum dists/stable/$index | cut -d' ' -f1)" "$(stat -c %s dists/stable/$index)" $index \
    > dists/stable/Release
export GNUPGHOME=/opt/grafana-gnupg
mkdir -m 700 $GNUPGHOME
gpg --batch --quiet --passphrase '' --quick-generate-key 'Stand-in <test@example.invalid>' rsa3072 sign never
gpg --batch --yes --armor --export > gpg.key
gpg --batch --yes --clearsign --output dists/stable/InRelease dists/stable/Release
gpg --batch --with-colons --list-keys | sed -n '/^fpr/{s/^fpr:*\([0-9A-F]*\):$/\1/p;q}' > fingerprint
systemd-run --quiet --unit grafana-repository python3 -m http.server 8099 --bind 127.0.0.1 --directory $root
touch ready

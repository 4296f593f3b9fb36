#!/bin/sh
# certificate_metric DIR: a textfile of node exporter in DIR says until when the host's certificate is valid.
# Prints `written` where that is news.
set -eu
file=$1/maya1_tls.prom
end=$(openssl x509 -in /etc/maya1/tls/fullchain.pem -noout -enddate)
metric="# HELP maya1_certificate_expires_seconds Unix time at which the host's certificate expires.
# TYPE maya1_certificate_expires_seconds gauge
maya1_certificate_expires_seconds $(date --date "${end#notAfter=}" +%s)"

if [ "$(cat "$file" 2>/dev/null)" != "$metric" ]; then
    printf '%s\n' "$metric" >"$file.new"
    chmod 0644 "$file.new"
    mv "$file.new" "$file"
    echo written
fi

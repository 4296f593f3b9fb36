#!/bin/sh
# Keeps a copy of what decides who gets into this host, and puts it back unless it is told in time that all went well.
#   guard arm SECONDS   keep a copy, start the timer
#   guard disarm        the new settings let people in: stop the timer, forget the copy
#   guard revert        put the copy back; what the timer does
#   guard reload        let the SSH server read its settings again
set -eu

kept=/var/lib/maya1/hardening/access.tar
paths="etc/ssh etc/sudoers etc/sudoers.d etc/pam.d etc/security usr/share/pam-configs var/lib/pam etc/systemd/system/ssh.socket.d"

reload() {
    if systemctl --quiet is-active ssh.socket; then
        systemctl daemon-reload
        systemctl restart ssh.socket
    fi
    systemctl try-reload-or-restart ssh.service
    # It closes its port for an instant, in which a new connection would be refused.
    sleep 1
}

stop_timer() {
    systemctl --quiet stop maya1-guard.timer 2>/dev/null || true
}

revert() {
    if [ -e "$kept" ]; then
        tar --extract --preserve-permissions --recursive-unlink --directory / --file "$kept"
        mv "$kept" "$kept.reverted"
        reload
    fi
}

case "$1" in
arm)
    # A run that died on its way leaves a copy, and only that is known to let people in.
    stop_timer
    revert
    mkdir --parents /etc/systemd/system/ssh.socket.d
    install --directory --mode 0700 "${kept%/*}"
    # shellcheck disable=SC2086 # one word a path
    (umask 077 && tar --create --file "$kept.new" --directory / $paths)
    mv "$kept.new" "$kept"
    systemd-run --quiet --collect --unit maya1-guard --on-active "$2" --timer-property AccuracySec=1s "$0" revert
    ;;
disarm)
    stop_timer
    rm --force "$kept"
    ;;
reload)
    reload
    ;;
revert)
    stop_timer
    revert
    ;;
*)
    echo "usage: guard arm SECONDS | disarm | reload | revert" >&2
    exit 2
    ;;
esac

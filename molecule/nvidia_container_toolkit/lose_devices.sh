#!/bin/sh
# Stands in for what systemd does on a machine with GPUs at each daemon-reload: containers that are units, as they are where
# Docker uses systemd for cgroups, lose devices that systemd was not told of. Here they lose the device's node. systemd runs this
# as a generator of units.
for process in /proc/[0-9]*; do
    id=$(sed -n 's,^.*/system.slice/docker-\([0-9a-f]*\)\.scope$,\1,p' "$process/cgroup" 2>/dev/null | head -n 1)
    told=/run/containerd/io.containerd.runtime.v2.task/moby/$id/config.json
    [ -n "$id" ] && [ -e "$told" ] || continue
    grep -q /dev/nvidia0 "$told" || rm -f "$process/root/dev/nvidia0"
done

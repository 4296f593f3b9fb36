#!/bin/sh
# Proves that a container gets the GPUs, and still has them after systemd has read its units again.
# Usage: gpu_in_container.sh gpus|cdi, as root. Leaves nothing behind.
set -eu

name=maya1-gpu-probe
case $1 in
    gpus) set -- --gpus all ;;
    cdi) set -- --runtime nvidia --env NVIDIA_VISIBLE_DEVICES=nvidia.com/gpu=all ;;
    *) echo "usage: $0 gpus|cdi" >&2; exit 2 ;;
esac

finish() {
    docker rm --force "$name" >/dev/null 2>&1 || true
    docker rmi --force "$name" >/dev/null 2>&1 || true
}
trap finish EXIT
finish

# An image of the host's own files, so that no registry is asked. The toolkit adds nvidia-smi, which needs what is listed here.
library=lib/x86_64-linux-gnu
tar --create --dereference --directory=/ usr/bin/dash usr/bin/sleep lib64/ld-linux-x86-64.so.2 "$library/libc.so.6" \
    "$library/libm.so.6" "$library/libdl.so.2" "$library/libpthread.so.0" "$library/librt.so.1" \
    | docker import - "$name" >/dev/null
docker run --detach --name "$name" --env NVIDIA_DRIVER_CAPABILITIES=compute,utility "$@" "$name" /usr/bin/sleep 600 >/dev/null

# Opening is what a container is refused when its cgroup lacks a device, or when the number of a device is an old one.
# shellcheck disable=SC2016
use='nvidia-smi --list-gpus || exit 1
     for device in /dev/nvidiactl /dev/nvidia[0-9]* /dev/nvidia-uvm; do [ -c "$device" ] && : <>"$device" || exit 1; done'
docker exec "$name" /usr/bin/dash -c "$use" || { echo "failed in a new container"; exit 1; }
systemctl daemon-reload
# systemd answers before it has gone through its units.
sleep 1
docker exec "$name" /usr/bin/dash -c "$use" || { echo "failed after systemctl daemon-reload"; exit 1; }

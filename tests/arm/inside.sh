#!/bin/sh
# Run a command in the root folder that build.sh made, on this machine's network.
#   inside.sh ROOT COMMAND ...
# The processor is a Raspberry Pi 4's, unless QEMU_CPU names another. Mounts and processes end with the command.
set -eu
exec unshare --mount --propagation private --pid --fork --kill-child sh -ec '
    root=$1
    shift
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount --bind "$root/../cpuinfo" "$root/proc/cpuinfo"
    mount --rbind /dev "$root/dev"
    for file in /etc/resolv.conf /etc/hosts /etc/ssl/certs; do
        [ -e "$file" ] || continue
        if [ -d "$file" ]; then mkdir -p "$root$file"; else : >>"$root$file"; fi
        mount --bind "$(realpath "$file")" "$root$file"
    done
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 QEMU_CPU="${QEMU_CPU:-cortex-a72}" \
        PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1 \
        ${PIP_CERT:+PIP_CERT="$PIP_CERT"} ${PIP_INDEX_URL:+PIP_INDEX_URL="$PIP_INDEX_URL"} chroot "$root" "$@"
' sh "$@"

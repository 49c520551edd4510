#!/bin/sh
# Boot the layers of build.sh over a disk image, until the machine is powered off or its power is cut.
#   boot.sh FOLDER DISK
# DISK is an ext4 image that holds all that the machine writes. Where the machine was killed, DISK.cut is the image as
# a disk would be found: what was not written through to it is lost. All mounts end with this program, and the machine
# ends at the latest when standard input is closed.
set -eu
[ "${apart:-}" ] || exec env apart=yes unshare --mount --propagation private "$0" "$@"
folder=$1 disk=$2
mkdir -p "$folder/disk" "$folder/machine"
mount -t tmpfs tmpfs /run/systemd
mount -o loop "$disk" "$folder/disk"
mkdir -p "$folder/disk/upper" "$folder/disk/work"
layers="lowerdir=$folder/layer:$folder/root,upperdir=$folder/disk/upper,workdir=$folder/disk/work"
mount -t overlay -o "$layers" overlay "$folder/machine"
exec 3<&0
systemd-nspawn --quiet --directory="$folder/machine" --boot --register=no --keep-unit --private-network --console=pipe \
    --bind-ro="$folder/wheel:/wheel" </dev/null 3<&- &
machine=$!
{
    cat >/dev/null
    xargs kill -KILL <"/proc/$machine/task/$machine/children"
} <&3 &
guard=$!
wait $machine || cp --sparse=always "$disk" "$disk.cut"
kill $guard 2>/dev/null || true

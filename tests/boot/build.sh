#!/bin/sh
# Make what the boot test boots, as far as it is not there yet.
#   build.sh FOLDER PYTHON
# FOLDER/root: a small Debian with systemd; FOLDER/layer: over it, /opt/orcawatch with all that orcawatch depends on;
# FOLDER/wheel: this tree's own wheel, made anew each time. PYTHON has pip, and the same version as Debian's python3.
set -eu
tree=$(cd "$(dirname "$0")/../.." && pwd)
folder=$1 python=$2
suite=bookworm
packages=systemd,systemd-sysv,dbus,python3,python3-venv,libportaudio2,libasound2-plugins,libsndfile1,pulseaudio

mkdir -p "$folder"
cd "$folder"

said=$(echo "$suite $packages" | cksum)
if [ "$(cat root.said 2>/dev/null)" != "$said" ]; then
    rm -rf root root.said layer.said
    debootstrap --variant=minbase --include="$packages" "$suite" root >debootstrap.log 2>&1 || {
        tail -5 debootstrap.log >&2
        exit 1
    }
    rm -rf root/var/cache/apt/archives/*.deb root/var/lib/apt/lists/*
    : >root/etc/machine-id
    echo buoy >root/etc/hostname
    echo "$said" >root.said
fi

rm -rf source wheel
mkdir source
for name in orcawatch plugins training deploy systemd setup.cfg pyproject.toml README.md LICENSE; do
    cp -r "$tree/$name" source/
done
"$python" -m pip wheel -qq --no-deps --wheel-dir wheel ./source
rm -rf source

said=$(cksum <"$tree/setup.cfg")
if [ "$(cat layer.said 2>/dev/null)" != "$said" ]; then
    rm -rf wheels layer layer.work layer.said
    "$python" -m pip download -qq --only-binary :all: --dest wheels wheel/*.whl
    mkdir layer layer.work merged 2>/dev/null || mkdir -p merged
    unshare --mount --propagation private sh -ec '
        mount -t overlay -o lowerdir=root,upperdir=layer,workdir=layer.work overlay merged
        mkdir -p merged/wheels
        mount --bind wheels merged/wheels
        chroot="env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot merged"
        $chroot python3 -m venv /opt/orcawatch
        $chroot /opt/orcawatch/bin/pip install --quiet --no-index --find-links /wheels orcawatch
        $chroot /opt/orcawatch/bin/pip uninstall --quiet --yes orcawatch
        umount merged/wheels
        rmdir merged/wheels'
    rmdir merged
    rm -rf layer.work
    echo "$said" >layer.said
fi

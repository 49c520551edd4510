#!/bin/sh
# Make a Debian of 64-bit ARM with this tree's wheel installed in it, as far as it is not there yet.
#   build.sh FOLDER PYTHON
# FOLDER/root is a Debian for 64-bit ARM; in it /opt/litert and /opt/tflite, environments with either interpreter.
# PYTHON makes the wheel.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
tree=$(cd "$here/../.." && pwd)
folder=$1 python=$2
suite=bookworm
packages=python3,python3-venv,libportaudio2,libsndfile1

# Programs of the other architecture run through the emulator, as systemd arranges it where it runs.
rules=/proc/sys/fs/binfmt_misc
[ -e "$rules/register" ] || mount -t binfmt_misc binfmt_misc "$rules"
[ -e "$rules/qemu-aarch64" ] || cat /usr/lib/binfmt.d/qemu-aarch64.conf >"$rules/register"

mkdir -p "$folder"
cd "$folder"
# The emulator shows this machine's own /proc/cpuinfo, which ai-edge-litert cannot read on ARM and then crashes: this one
# is a Raspberry Pi 4's, with as many processors as there are.
for number in $(seq 0 $(($(nproc --all) - 1))); do
    printf 'processor\t: %s\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\n' "$number"
    printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n'
done >cpuinfo

said=$(echo "$suite $packages" | cksum)
if [ "$(cat root.said 2>/dev/null)" != "$said" ]; then
    rm -rf root root.said
    unshare --mount --propagation private \
        debootstrap --variant=minbase --arch=arm64 --include="$packages" "$suite" root >debootstrap.log 2>&1 || {
        tail -5 debootstrap.log >&2
        exit 1
    }
    rm -rf root/var/cache/apt/archives/*.deb root/var/lib/apt/lists/*
    echo "$said" >root.said
fi

rm -rf source root/wheel
mkdir source
for name in orcawatch plugins training deploy systemd setup.cfg pyproject.toml README.md LICENSE; do
    cp -r "$tree/$name" source/
done
"$python" -m pip wheel -qq --no-deps --wheel-dir root/wheel ./source
rm -rf source

for name in litert tflite; do
    said=$(cksum <"$tree/setup.cfg")
    if [ "$(cat "root/opt/$name.said" 2>/dev/null)" != "$said" ]; then
        rm -rf "root/opt/$name"
        "$here/inside.sh" root sh -ec "
            cd /opt
            python3 -m venv $name
            $name/bin/pip install --quiet /wheel/*.whl
            # Where both interpreters are installed, orcawatch takes the newer one.
            [ $name = litert ] || $name/bin/pip uninstall --quiet --yes ai-edge-litert
            [ $name = litert ] || $name/bin/pip install --quiet tflite-runtime==2.14.0 'numpy<2'"
        echo "$said" >"root/opt/$name.said"
    fi
    "$here/inside.sh" root sh -c "/opt/$name/bin/pip install --quiet --no-deps --force-reinstall /wheel/*.whl"
done

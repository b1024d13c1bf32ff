#!/usr/bin/env bash
# Runs sifa-run on a camera: /dev/video0 of Linux's own driver for tests, vivid. Few machines have it, and it needs root,
# so a Debian kernel that has it is started in qemu, on the files of this machine: they are its root, read-only.
#   test_camera.sh
# Without KVM, which does not work inside every virtual machine, and would change nothing but the speed.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$PWD/build/camera
linux=$folder/linux
busybox=$linux/bin/busybox
share=$folder/share
stop() {
  echo "SIFA: $*" >&2
  exit 1
}

[[ $(uname -m) == x86_64 ]] || stop "test_camera.sh starts an x86-64 machine on this one's programs, and this is $(uname -m)"

# The network is asked only where something is missing; half a download does not count.
get_kernel() {
  [[ ! -e $linux/.made ]] || return 0
  echo "==> Downloading a Debian kernel into build/camera/linux"
  rm -rf "$linux" && mkdir -p "$linux"
  local apt=$folder/apt package=linux-image-amd64
  # That one says which is the newest. busybox-static conflicts with the busybox that Debian boots with.
  { scripts/private_apt.sh "$apt" amd64 && export APT_CONFIG=$apt/conf &&
    package=$(apt-cache depends --important "$package" | awk '/Depends: linux-image/ { print $2; exit }') &&
    (cd "$linux" && apt-get -q download "$package" busybox-static) >>"$apt.log" 2>&1; } ||
    stop "a Debian kernel cannot be downloaded (log: build/camera/apt.log): connect to the network; Ubuntu has none"
  for package in "$linux"/*.deb; do dpkg-deb --extract "$package" "$linux"; done
  rm -rf "$linux"/*.deb "$apt"
  # Debian 13's packages have both in usr.
  [[ -e $linux/lib ]] || ln -s usr/lib "$linux/lib"
  [[ -e $linux/bin ]] || ln -s usr/bin "$linux/bin"
  find "$linux" -name '*.ko.xz' -exec xz -d {} +
  "$busybox" depmod -b "$linux" "$(basename "$linux"/lib/modules/*)"
  [[ -n $(modules vivid) ]] || stop "the kernel in build/camera/linux has no module vivid"
  touch "$linux/.made"
}

# modules NAME…: their files, each after those that it needs.
modules() {
  local module
  for module in "$@"; do
    sed -nE "s|^(.*/$module\.ko)[^:]*:(.*)|\1\2|p" "$linux"/lib/modules/*/modules.dep | tr ' ' '\n' | sed '/^$/d; s/\.xz$//' | tac
  done | awk '!seen[$0]++'
}

# What the kernel starts first: it loads what the files of this machine come through, and goes on in them.
make_initramfs() {
  local root=$folder/initramfs module
  rm -rf "$root" && mkdir -p "$root"/{bin,dev,host,modules,proc,sys}
  cp "$busybox" "$root/bin"
  cat >"$root/init" <<INIT
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
INIT
  for module in $(modules virtio_pci 9pnet_virtio 9p vivid); do
    cp "$linux"/lib/modules/*/"$module" "$root/modules"
    echo "insmod /modules/$(basename "$module")" >>"$root/init"
  done
  cat >>"$root/init" <<INIT
mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=524288,ro host /host
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288 share /host$share
for each in proc sys dev; do mount --move /\$each /host/\$each; done
mkdir /host/dev/shm
mount -t tmpfs none /host/dev/shm
exec switch_root /host /bin/bash $share/in_the_machine.sh
INIT
  chmod +x "$root/init"
  (cd "$root" && find . | "$busybox" cpio -o -H newc 2>/dev/null) >"$folder/initramfs.cpio"
}

mkdir -p "$folder"
get_kernel
make_initramfs

echo "==> Making models, and compiling the example of a camera"
rm -rf "$share" && mkdir -p "$share/tmp"
.venv/bin/python tests/python/colours.py "$share"
packages=$(.venv/bin/python -c 'import sifa; print(";".join(sifa.__path__))')
sifa_run=$(.venv/bin/python -c 'from sifa.demo import find_sifa_run; print(find_sifa_run())')
{ .venv/bin/cmake -S cpp/examples/webcam -B "$folder/webcam" -DCMAKE_PREFIX_PATH="$packages" &&
  .venv/bin/cmake --build "$folder/webcam"; } >"$folder/build.log" 2>&1 ||
  { tail -n 60 "$folder/build.log" >&2 && stop "the build failed; the whole log is build/camera/build.log"; }

cat >"$share/in_the_machine.sh" <<MACHINE
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=$share/tmp TMPDIR=$share/tmp
export SIFA_TEST_RUN=$sifa_run SIFA_TEST_WEBCAM=$folder/webcam/webcam SIFA_TEST_MODELS=$share
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONDONTWRITEBYTECODE=1
cd $PWD
.venv/bin/python -m pytest -v -p no:cacheprovider tests/camera
echo \$? >$share/status
sync
$busybox poweroff -f
MACHINE

echo "==> Starting a machine that has a camera"
# Whatever happens in it, it ends.
code=0
timeout --foreground --kill-after=10 900 \
  qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 3G -no-reboot \
  -display none -vga none -monitor none -serial stdio -nic none \
  -kernel "$linux"/boot/vmlinuz-* -initrd "$folder/initramfs.cpio" -append "console=ttyS0 quiet panic=-1" \
  -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
  -virtfs local,path="$share",mount_tag=share,security_model=none </dev/null || code=$?
[[ $code != 124 && $code != 137 ]] || stop "the machine has not come to its end within 15 minutes"
[[ -e $share/status ]] || stop "the machine ended before its tests did (qemu: $code): what it printed is above"
[[ $(<"$share/status") == 0 ]] || stop "the tests of a camera failed: what they printed is above"

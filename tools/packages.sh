#!/bin/sh
# Installs from the distribution what building and testing need and is missing.
set -eu

# A file that a package brings, and the package.
needed() {
	cat <<-'EOF'
	/usr/sbin/dockerd docker.io
	/usr/sbin/iptables iptables
	/usr/sbin/nft nftables
	/usr/sbin/ip iproute2
	/bin/busybox busybox-static
	/usr/include/seccomp.h libseccomp-dev
	/usr/bin/gcc gcc
	/usr/bin/pkg-config pkg-config
	/usr/bin/pgrep procps
	/usr/bin/clang-14 clang-14
	/usr/bin/llvm-strip-14 llvm-14
	/usr/include/bpf/bpf_helpers.h libbpf-dev
	/usr/bin/python3 python3
	/usr/sbin/nginx nginx
	/usr/bin/redis-server redis-server
	/usr/bin/crun crun
	/usr/bin/runsc runsc
	/usr/bin/etcd etcd-server
	/usr/bin/qemu-system-x86_64 qemu-system-x86
	/usr/sbin/modprobe kmod
	/usr/bin/etcdctl etcd-client
	/usr/bin/script bsdutils
	/usr/bin/systemd-run systemd
	EOF
}

missing=$(needed | while read -r file package; do [ -e "$file" ] || echo "$package"; done)
[ -n "$missing" ] || exit 0
echo "installing" $missing
if [ "$(id -u)" != 0 ]; then
	echo "packages: root is needed to install them; run as root, or: sudo apt-get install" $missing >&2
	exit 1
fi
# The servers are for containers: invoke-rc.d(8) asks this file whether to start one
# here, and 101 forbids it.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	trap 'rm -f $policy' EXIT
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod +x $policy
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -y -q --no-install-recommends $missing

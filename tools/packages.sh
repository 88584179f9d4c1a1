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
	EOF
}

missing=$(needed | while read -r file package; do [ -e "$file" ] || echo "$package"; done)
[ -n "$missing" ] || exit 0
echo "installing" $missing
if [ "$(id -u)" != 0 ]; then
	echo "packages: root is needed to install them; run as root, or: sudo apt-get install" $missing >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -y -q --no-install-recommends $missing

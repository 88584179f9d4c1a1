// Package vm runs a program under another kernel than the machine's: in a
// virtual machine with a stock kernel of the distribution, on the machine's own
// files.
//
//	particle-vm ── qemu ── kernel ── init ── program
//	 │  │  │                  │       │ │
//	 │  │  └── initramfs: init is this program again, with the job and the few
//	 │  │                     │       │ modules that mount the root
//	 │  └── 9p, read-only: /  ┘       │
//	 └── virtio ports: stdout, stderr, status
//
// The root is the machine's own /, read-only over 9p, below an overlay in
// memory. So everything that is installed there is here, at the same path, and
// nothing that is done here remains. Of its own the machine has /proc, /sys,
// /dev, /run, /var/tmp (which is TMPDIR), cgroups of version 2, the kernel's
// modules, which load when they are asked for, and a loopback: no other network.
//
// Kernels are unpacked from Debian's packages into the cache, never installed.
//
// Programs that do not open their own stdout by a name (/dev/stdout) notice no
// difference but speed: without KVM a program takes several times as long.
package vm

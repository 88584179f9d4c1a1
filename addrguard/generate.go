package addrguard

// The objects are committed, so that only who changes the C needs clang. Which
// clang is part of their content: tools/packages.sh installs this one.
//
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -no-global-types -target bpfel -type container -type network -type sender -type steer_key -type verdict guard bpf/guard.c -- -mcpu=v3 -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -no-global-types -target bpfel device bpf/device.c -- -mcpu=v3 -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -no-global-types -target bpfel unix bpf/unix.c -- -mcpu=v3 -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu

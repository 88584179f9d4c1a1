package filter

import (
	"encoding/binary"
	"syscall"
	"testing"
)

// run interprets a program as the kernel does.
func run(t *testing.T, program []syscall.SockFilter, data []byte) uint32 {
	t.Helper()
	var acc uint32
	for pc := 0; pc < len(program); pc++ {
		in := program[pc]
		jump := func(yes bool) {
			if yes {
				pc += int(in.Jt)
			} else {
				pc += int(in.Jf)
			}
		}
		switch in.Code {
		case syscall.BPF_LD | syscall.BPF_W | syscall.BPF_ABS:
			acc = binary.LittleEndian.Uint32(data[in.K:])
		case syscall.BPF_ALU | syscall.BPF_AND | syscall.BPF_K:
			acc &= in.K
		case syscall.BPF_JMP | syscall.BPF_JEQ | syscall.BPF_K:
			jump(acc == in.K)
		case syscall.BPF_RET | syscall.BPF_K:
			return in.K
		default:
			t.Fatalf("instruction %d has code %#x", pc, in.Code)
		}
	}
	t.Fatal("the program does not end")
	return 0
}

// call is the kernel's struct seccomp_data.
func call(arch, number uint32, args ...uint64) []byte {
	data := make([]byte, 64)
	binary.LittleEndian.PutUint32(data[offsetNumber:], number)
	binary.LittleEndian.PutUint32(data[offsetArch:], arch)
	for i, a := range args {
		binary.LittleEndian.PutUint64(data[16+8*i:], a)
	}
	return data
}

// "Families of sockets other than AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_ALG and
// AF_VSOCK fail with EAFNOSUPPORT", and the like.
func TestProgram(t *testing.T) {
	const (
		allow, notify = uint32(retAllow), uint32(retNotify)
		x32           = 1 << 30
		pointer       = 0x7fff00000000 // its lower half is zero
	)
	no := func(e syscall.Errno) uint32 { return retErrno | uint32(e) }
	native := tables[0]
	for _, table := range tables {
		for _, c := range []struct {
			name             string
			number           uint32
			args             []uint64
			harden, supervis uint32
		}{
			{"read", 0, nil, allow, allow},
			{"TCP", table.socket, []uint64{afInet, syscall.SOCK_STREAM | syscall.SOCK_CLOEXEC, 0}, allow, allow},
			{"MPTCP", table.socket, []uint64{afInet6, syscall.SOCK_STREAM | syscall.SOCK_NONBLOCK, 262}, allow, allow},
			{"ping", table.socket, []uint64{afInet, syscall.SOCK_DGRAM, syscall.IPPROTO_ICMP}, allow, allow},
			{"raw", table.socket, []uint64{afInet, syscall.SOCK_RAW, 255}, allow, allow},
			{"SCTP", table.socket, []uint64{afInet, syscall.SOCK_STREAM, 132}, allow, no(syscall.EPROTONOSUPPORT)},
			{"SCTP by type", table.socket, []uint64{afInet6, syscall.SOCK_SEQPACKET, 0}, allow, no(syscall.ESOCKTNOSUPPORT)},
			{"SMC by protocol", table.socket, []uint64{afInet, syscall.SOCK_STREAM, 256}, allow, no(syscall.EPROTONOSUPPORT)},
			{"L2TP", table.socket, []uint64{afInet, syscall.SOCK_DGRAM, 115}, allow, no(syscall.EPROTONOSUPPORT)},
			{"unix", table.socket, []uint64{afUnix, syscall.SOCK_SEQPACKET, 0}, allow, allow},
			{"netlink", table.socket, []uint64{afNetlink, syscall.SOCK_RAW, 12}, allow, allow},
			{"netlink to the kernel", table.socket, []uint64{afNetlink, syscall.SOCK_DGRAM, syscall.NETLINK_ROUTE}, allow, allow},
			{"netlink between programs", table.socket, []uint64{afNetlink, syscall.SOCK_RAW | syscall.SOCK_CLOEXEC, 2}, no(syscall.EPROTONOSUPPORT), no(syscall.EPROTONOSUPPORT)},
			{"netlink between programs with more than an int", table.socket, []uint64{afNetlink, syscall.SOCK_DGRAM, 1<<32 | 2}, no(syscall.EPROTONOSUPPORT), no(syscall.EPROTONOSUPPORT)},
			{"vsock", table.socket, []uint64{afVsock, syscall.SOCK_STREAM, 0}, allow, allow},
			{"RDS", table.socket, []uint64{21, syscall.SOCK_SEQPACKET, 0}, no(syscall.EAFNOSUPPORT), no(syscall.EAFNOSUPPORT)},
			{"RDS with more than an int", table.socket, []uint64{1<<32 | 21, syscall.SOCK_SEQPACKET, 0}, no(syscall.EAFNOSUPPORT), no(syscall.EAFNOSUPPORT)},
			{"TIPC pair", table.socketpair, []uint64{30, syscall.SOCK_STREAM, 0}, no(syscall.EAFNOSUPPORT), no(syscall.EAFNOSUPPORT)},
			{"RxRPC", table.socket, []uint64{33, syscall.SOCK_DGRAM, 0}, no(syscall.EAFNOSUPPORT), no(syscall.EAFNOSUPPORT)},
			{"SMC", table.socket, []uint64{43, syscall.SOCK_STREAM, 0}, no(syscall.EAFNOSUPPORT), no(syscall.EAFNOSUPPORT)},
			{"unix pair", table.socketpair, []uint64{afUnix, syscall.SOCK_STREAM, 0}, allow, allow},
			{"bind", table.bind, []uint64{3, pointer, 16}, allow, notify},
			{"bind with a long address", table.bind, []uint64{3, pointer, 1<<64 - 1}, allow, notify},
			{"bind of netlink", table.bind, []uint64{3, pointer, 12}, allow, allow},
			{"connect", table.connect, []uint64{3, pointer, 28}, allow, notify},
			{"disconnect", table.connect, []uint64{3, pointer, 2}, allow, notify},
			{"bind of a short path", table.bind, []uint64{3, pointer, 4}, allow, notify},
			{"listen", table.listen, []uint64{3, 8}, allow, notify},
			{"send", table.sendto, []uint64{3, pointer, 1, 0, 0, 0}, allow, allow},
			{"sendto", table.sendto, []uint64{3, pointer, 1, 0, pointer, 16}, allow, notify},
			{"sendto below 4 GiB", table.sendto, []uint64{3, pointer, 1, 0, 0x1000, 16}, allow, notify},
			{"io_uring", table.ring, []uint64{8, pointer}, allow, no(syscall.EPERM)},
		} {
			for _, bit := range []uint32{0, x32} {
				if bit != 0 && table.mask == 0 {
					continue
				}
				data := call(table.audit, c.number|bit, c.args...)
				if got := run(t, Program(Harden), data); got != c.harden {
					t.Errorf("architecture %#x, %s (%#x): hardening says %#x, want %#x", table.audit, c.name, bit, got, c.harden)
				}
				if got := run(t, Program(Supervise), data); got != c.supervis {
					t.Errorf("architecture %#x, %s (%#x): supervision says %#x, want %#x", table.audit, c.name, bit, got, c.supervis)
				}
			}
		}
		if table.socketcall == 0 {
			continue
		}
		for n := range uint64(24) {
			want := allow
			if n == callBind || n == callConnect || n == callListen || n == callSendto {
				want = notify
			}
			if got := run(t, Program(Supervise), call(table.audit, table.socketcall, n, 0x1000)); got != want {
				t.Errorf("socketcall %d: %#x, want %#x", n, got, want)
			}
		}
	}
	for _, kind := range []Kind{Harden, Supervise} {
		if got := run(t, Program(kind), call(0xc00000f3, native.socket, afInet)); got != no(syscall.ENOSYS) {
			t.Errorf("an architecture of another machine: %#x", got)
		}
	}
}

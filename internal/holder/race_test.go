package holder_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rounds are enough to find a gap that is there: if the kernel is let go on with binds
// of unix sockets, the race is won in one of twenty.
const rounds = 3000

// A call that is interrupted by a signal gives the answer that it would have given.
func TestSignals(t *testing.T) {
	newBed(t).container(1).all("signals 10.77.0.1:0", "signals 0.0.0.0:0")
}

// signals binds sockets while a timer interrupts.
func signals(to string) error {
	heard := make(chan os.Signal, 1)
	signal.Notify(heard, syscall.SIGALRM)
	defer signal.Stop(heard)
	every := unix.MakeItimerval(200*time.Microsecond, 200*time.Microsecond)
	if _, err := unix.Setitimer(unix.ITIMER_REAL, every); err != nil {
		return err
	}
	defer func() { _, _ = unix.Setitimer(unix.ITIMER_REAL, unix.Itimerval{}) }()
	for range rounds {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err == nil {
			err = unix.Bind(fd, address(to))
		}
		_ = unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

// Another socket in the place of the one that was looked at, and another address in
// the memory that was read, bind nothing that is not the container's.
func TestRace(t *testing.T) {
	b := newBed(t)
	b.container(2)
	b.container(1).all("race 10.77.0.2:80 => never")
}

// race tries to bind the victim's address while a thread swaps the address and the
// descriptor.
func race(text string) (string, error) {
	victim := netip.MustParseAddrPort(text)
	memory := make([]byte, 16)
	target, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return "", err
	}
	var wanted atomic.Int64 // the Internet socket of this round
	var end atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		decoy, _ := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		ip := victim.Addr().As4()
		for n := byte(0); !end.Load(); n++ {
			_ = unix.Dup2(decoy, target)
			binary.NativeEndian.PutUint16(memory, unix.AF_UNIX)
			copy(memory[2:], []byte{0, 'n', n, byte(wanted.Load())})
			runtime.Gosched()
			binary.NativeEndian.PutUint16(memory, unix.AF_INET)
			binary.BigEndian.PutUint16(memory[2:], victim.Port())
			copy(memory[4:], ip[:])
			_ = unix.Dup2(int(wanted.Load()), target)
		}
	}()
	stolen := 0
	for range rounds {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return "", err
		}
		wanted.Store(int64(fd))
		_, _, _ = unix.Syscall(unix.SYS_BIND, uintptr(target), uintptr(unsafe.Pointer(&memory[0])), 16)
		if sa, err := unix.Getsockname(fd); err == nil {
			if a, ok := sa.(*unix.SockaddrInet4); ok && a.Addr == victim.Addr().As4() {
				stolen++
			}
		}
		_ = unix.Close(fd)
	}
	end.Store(true)
	<-done
	if stolen > 0 {
		return fmt.Sprintf("%d times", stolen), nil
	}
	return "never", nil
}

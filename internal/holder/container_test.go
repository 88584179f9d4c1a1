package holder

import (
	"net/netip"
	"syscall"
	"testing"

	"github.com/particle-net/particle/topology"
)

// Before Linux 5.19 a signal calls the caller away from a bind that succeeds, and it
// asks again. It must not hear that the socket is bound already; others must.
func TestRepeated(t *testing.T) {
	var c container
	one, other := socket{cookie: 1}, socket{cookie: 2}
	c.interrupted(one)
	for i, step := range []struct {
		socket    socket
		have, err syscall.Errno
	}{
		{other, syscall.EINVAL, syscall.EINVAL},
		{one, syscall.EINVAL, 0},
		{one, syscall.EINVAL, syscall.EINVAL}, // the caller has heard
		{one, 0, 0},
	} {
		if got := c.repeated(step.socket, step.have); got != step.err {
			t.Errorf("step %d: %v, want %v", i, got, step.err)
		}
	}
	c.interrupted(one)
	if got := c.repeated(one, syscall.EADDRINUSE); got != syscall.EADDRINUSE {
		t.Errorf("another error: %v", got)
	}
}

// A call that is answered when its caller's last process has ended leaves nothing to
// the next container of that address.
func TestAnswerAfterTheEnd(t *testing.T) {
	const id = topology.ContainerID("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
	dir := t.TempDir()
	own := Identity{Namespace: "/proc/self/ns/net", Loopback4: netip.MustParseAddr("127.0.1.0"), Loopback6: netip.MustParseAddr("fdb9::1")}
	if err := Tell(dir, id, own); err != nil {
		t.Fatal(err)
	}
	all := faces{all: map[Identity]*face{}}
	c := container{id: id, dir: dir, faces: &all}
	if _, known := c.known(); !known || len(all.all) != 1 {
		t.Fatalf("known %v, %d faces", known, len(all.all))
	}
	c.gone()
	late := container{id: id, dir: dir, faces: &all}
	late.gone()
	if _, known := late.known(); known || len(all.all) != 0 {
		t.Errorf("known %v, %d faces", known, len(all.all))
	}
}
